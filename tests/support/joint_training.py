"""Jobs that one process or several run alike: three steps of training on the tiny model.

Run as `python -m joint_training JOBS`, JOBS a JSON file with a list of jobs: model, kind (full or lora), folder, and
perhaps gradient_checkpointing, dtype, budget, spoil, stop_before (the step before which the process dies).
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from storage.errors import StageFailed
from tasks._maths.metrics import Maximum, Total
from tasks._maths.objectives import LossOutputs
from tasks._training.batching import group_rows, plan_microbatches
from tasks._training.full import save_full
from tasks._training.logprobs import token_logprobs
from tasks._training.loop import OptimizerSpec, Surroundings, Work, train
from tasks._training.lora import LoraSpec, attach_lora, load_causal_model, save_lora, trainable_parameters
from tasks._training.packing import pack
from tasks._training.parallel import join_world, leave_world, shard, whole
from tasks._training.value_head import fresh_value_head, token_values

STEPS = 3
OPTIMIZER = OptimizerSpec(learning_rate=1e-2, warmup_steps=1, max_grad_norm=1.0, weight_decay=0.01, schedule="cosine")


def example_steps(budget):
    """The micro-batches of every step: rows of unlike lengths, another number of micro-batches a step."""
    steps = []
    for step in range(STEPS):
        random = np.random.default_rng(step)
        prompts, responses = [], []
        for length in (5, 9, 2, 4)[: 2 + step]:
            prompt = random.integers(3, 300, length).astype(np.int32)
            for _ in range(3):
                prompts.append(prompt)
                responses.append(random.integers(3, 300, int(random.integers(1, 8))).astype(np.int32))
        steps.append(plan_microbatches(group_rows(prompts, responses, max_tokens=budget), budget))
    return steps


def build(job, world, device):
    """The policy of the job, and a critic's head beside it."""
    options = {"gradient_checkpointing": job.get("gradient_checkpointing", False)}
    dtype = job.get("dtype", "float32")
    if job["kind"] == "full":
        model = load_causal_model(Path(job["model"]), dtype, torch.device("cpu"), trainable=True, **options)
        model = shard(model, world, device)
    else:
        model = attach_lora(load_causal_model(Path(job["model"]), dtype, device, **options), LoraSpec(4, 8), seed=1)
    return model, fresh_value_head(64, device)


def loss_function(model, head, device, spoil):
    """A sum over tokens with a slope of its own for each, and the head's squared error."""

    def loss(groups):
        batch = pack(groups, pad_token_id=0, device=device)
        found = token_logprobs(model, batch, torch.full((len(batch.rows),), 0.8, device=device))
        slopes = torch.cos(batch.targets.float())[batch.mask]
        logprobs = found.logprobs[batch.mask]
        values = token_values(head, found.hidden)
        total = (-(slopes * logprobs).sum() + 0.5 * (values - slopes).square().sum()) / 30
        if spoil == "loss" and len(groups[0].prompt) == 2:
            total = total * float("nan")
        if spoil == "gradient" and len(groups[0].prompt) == 2:
            logprobs.register_hook(lambda gradient: gradient * float("inf"))
        return LossOutputs(total, {"tokens": Total(len(logprobs)), "longest": Maximum(float(batch.mask.sum(1).max()))})

    return loss


def run(job, world, device):
    """Trains and writes parameters, history and what is served into the job's folder; or the error."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    model, head = build(job, world, device)
    parameters = trainable_parameters(torch.nn.ModuleDict({"policy": model, "head": head}))

    def progress(done, total, label):
        if done == job.get("stop_before"):
            os._exit(9)

    def write(groups, path):
        path.write_text(json.dumps([group.rows for group in groups]))

    work = Work(
        example_steps(job.get("budget", 30)),
        loss_function(model, head, device, job.get("spoil")),
        write,
        size=lambda groups: sum(group.length for group in groups),
    )
    try:
        history = train(parameters, work, OPTIMIZER, Surroundings(folder, 1, progress, world))
    except StageFailed as error:
        (folder / f"error-{world.rank}.txt").write_text(str(error))
        return
    (save_full if job["kind"] == "full" else save_lora)(model, folder / "model")
    full = {name: whole(p.detach()).cpu().contiguous() for name, p in parameters.items()}
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters.values())
    (folder / f"held-{world.rank}.json").write_text(json.dumps(held))
    if world.rank == 0:
        save_file(full, folder / "parameters.safetensors")
        (folder / "history.json").write_text(json.dumps(history))


def main():
    """All jobs one after the other."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    world, device = join_world(torch.device(jobs[0].get("device", "cpu")))
    for job in jobs:
        run(job, world, device)
    leave_world()


if __name__ == "__main__":
    main()
