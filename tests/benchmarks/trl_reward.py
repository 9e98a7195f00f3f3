"""TRL's side of the reward-model benchmark, run by its own environment: `python trl_reward.py JOB.json` prints JSON.

RewardTrainer on pairs that are tokenized already, with the same adapter and head to start from. Timed is from the start
of the first optimizer step to the end of the last one, and the trainer's own prediction over all pairs; it writes no
checkpoint. A job without a way to run it tries some on one step, precision first, then pairs a micro-batch, and names
the fastest; a job with one times whole trainings, in a process whose memory is theirs alone.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from apart import peak_resident_bytes
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer

# Of the base's weights, and whether LoRA's float32 weights take part in bf16 (autocast) as TRL's default has it.
PRECISIONS = (("bfloat16", False), ("bfloat16", True), ("float32", False))
FIRST_PAIRS, OTHER_PAIRS = 2, (1, 4, 8)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Stopwatch(TrainerCallback):
    """Notes when each optimizer step starts and ends, and the norm of its gradient."""

    def __init__(self) -> None:
        self.started: list[float] = []
        self.ended: list[float] = []
        self.norms: list[float] = []

    def on_step_begin(self, *args, **kwargs) -> None:
        self.started.append(time.perf_counter())

    def on_step_end(self, *args, **kwargs) -> None:
        self.ended.append(time.perf_counter())

    def on_log(self, *args, logs: dict[str, float], **kwargs) -> None:
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))


def model_of(job: dict, dtype: str):
    """The base with the adapter and the head that our side began with."""
    base = AutoModelForSequenceClassification.from_pretrained(
        job["base"], num_labels=1, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    adapter = LoraConfig(
        task_type="SEQ_CLS",
        r=job["rank"],
        lora_alpha=2 * job["rank"],
        target_modules=TARGETS,
        modules_to_save=["score"],
    )
    model = get_peft_model(base, adapter)
    weights = model.state_dict()
    for name, value in load_file(job["start"]).items():
        theirs = name.removeprefix("backbone.").replace("base_model.model.", "base_model.model.model.")
        theirs = "base_model.model.score.modules_to_save.default.weight" if name == "head.weight" else theirs
        weights[theirs].copy_(value)
    return model


def dataset_of(rows: list[dict]) -> Dataset:
    sides = {f"{side}_ids": [row["prompt"] + row[side] for row in rows] for side in ("chosen", "rejected")}
    return Dataset.from_dict(sides)


def train(
    rows: list[dict], job: dict, dtype: str, autocast: bool, pairs_at_once: int
) -> tuple[Stopwatch, RewardTrainer]:
    """A fresh trainer over the rows once, in steps of the job's pairs."""
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=pairs_at_once,
            per_device_eval_batch_size=pairs_at_once,
            gradient_accumulation_steps=job["batch_pairs"] // pairs_at_once,
            learning_rate=job["learning_rate"],
            lr_scheduler_type="constant",
            center_rewards_coefficient=0.01,
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=None,
            gradient_checkpointing=False,
            bf16=autocast,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        stopwatch = Stopwatch()
        trainer = RewardTrainer(
            model=model_of(job, dtype),
            args=config,
            train_dataset=dataset_of(rows),
            processing_class=AutoTokenizer.from_pretrained(job["base"]),
            callbacks=[stopwatch],
        )
        trainer.train()
    return stopwatch, trainer


def one_step_seconds(rows: list[dict], job: dict, way: tuple[str, bool, int]) -> float:
    """Seconds of the second of two equal steps."""
    stopwatch, _ = train(rows + rows, job, *way)
    return stopwatch.ended[1] - stopwatch.started[1]


def fastest_way(rows: list[dict], job: dict) -> dict:
    """The fastest precision, then the fastest number of pairs a micro-batch with it, and the seconds of all."""
    rows = rows[: job["batch_pairs"]]
    tried: dict[tuple[str, bool, int], float] = {}
    for precision in PRECISIONS:
        if job["dtype"] == "float32" and precision[0] != "float32":
            continue  # emulated on this processor: hundreds of times slower
        tried[*precision, FIRST_PAIRS] = one_step_seconds(rows, job, (*precision, FIRST_PAIRS))
    dtype, autocast, _ = min(tried, key=tried.__getitem__)
    for count in OTHER_PAIRS:
        if job["batch_pairs"] % count == 0:
            tried[dtype, autocast, count] = one_step_seconds(rows, job, (dtype, autocast, count))
    return {"way": min(tried, key=tried.__getitem__), "tried": [[*way, seconds] for way, seconds in tried.items()]}


def whole_trainings(rows: list[dict], job: dict) -> dict:
    """One step on the first pairs to warm up, then trainings over all pairs, and predictions by the last model."""
    norm = train(rows[: job["batch_pairs"]], job, *job["way"])[0].norms[0]
    runs = [train(rows, job, *job["way"]) for _ in range(job["repetitions"])]
    trainer, scored = runs[-1][1], dataset_of(rows)
    score_seconds = []
    for _ in range(job["repetitions"] + 1):
        started = time.perf_counter()
        trainer.predict(scored)
        score_seconds.append(time.perf_counter() - started)
    seconds = [run.ended[-1] - run.started[0] for run, _ in runs]
    return {
        "seconds": seconds,
        "score_seconds": score_seconds[1:],
        "grad_norm": norm,
        "peak_bytes": peak_resident_bytes(),
    }


def main(path: str) -> None:
    """What the job asks for, as the last line printed."""
    job = json.loads(Path(path).read_text())
    rows = json.loads(Path(job["pairs"]).read_text())
    print(json.dumps(whole_trainings(rows, job) if job.get("way") else fastest_way(rows, job)))


if __name__ == "__main__":
    main(sys.argv[1])
