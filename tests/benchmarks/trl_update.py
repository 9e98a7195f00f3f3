"""TRL's side of the update benchmark, run by its own environment: `python trl_update.py JOB.json` prints JSON.

GRPOTrainer with its generation replaced by the stored rollouts: what is left is its own shuffling, padding,
loss, backward pass and optimizer step. Timed is from the start of the first optimizer step to the end of the last
one; it writes no checkpoint. A job without a way to run it tries some on one step, precision first, then rows a
micro-batch, and names the fastest; a job with one times whole updates, in a process whose memory is theirs alone.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from apart import peak_bytes
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

# Of the base's weights, and whether LoRA's float32 weights take part in bf16 (autocast) as TRL's default has it.
PRECISIONS = (("bfloat16", False), ("bfloat16", True), ("float32", False))
FIRST_ROWS, OTHER_ROWS = {"cpu": 4, "cuda": 16}, {"cpu": (2, 8, 16), "cuda": (8, 32, 64)}


def clock() -> float:
    """Seconds, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StoredRollouts(GRPOTrainer):
    """Takes the next of its `stored` batches where the trainer would generate and score one."""

    stored: list[dict[str, torch.Tensor]]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        return {name: stored.to(self.accelerator.device) for name, stored in self.stored.pop(0).items()}


class Stopwatch(TrainerCallback):
    """Notes when each optimizer step starts and ends, and the norm of its gradient."""

    def __init__(self) -> None:
        self.started: list[float] = []
        self.ended: list[float] = []
        self.norms: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started.append(clock())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended.append(clock())

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))


def padded(lines: list[list[Any]], fill: float, *, left: bool) -> torch.Tensor:
    """Lines of numbers as one tensor, as long as the longest."""
    length = max(len(line) for line in lines)
    filled = [[fill] * (length - len(line)) for line in lines]
    whole = [rest + line if left else line + rest for line, rest in zip(lines, filled, strict=True)]
    return torch.tensor(whole)


def stored_batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What the trainer makes of the rollouts of one optimizer step: prompts padded left, responses right."""
    prompts, responses = [row["prompt_token_ids"] for row in rows], [row["token_ids"] for row in rows]
    return {
        "prompt_ids": padded(prompts, 0, left=True),
        "prompt_mask": padded([[1] * len(prompt) for prompt in prompts], 0, left=True),
        "completion_ids": padded(responses, 0, left=False),
        "completion_mask": padded([[1] * len(response) for response in responses], 0, left=False),
        "old_per_token_logps": padded([row["logprobs"] for row in rows], 0.0, left=False),
        "advantages": torch.tensor([row["advantage"] for row in rows], dtype=torch.float32),
        "num_items_in_batch": torch.tensor(sum(map(len, responses))),
    }


def train(steps: list[list[dict]], job: dict, dtype: str, autocast: bool, rows_at_once: int) -> Stopwatch:
    """A fresh trainer, one optimizer step per entry of `steps`."""
    base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            loss_type="dr_grpo",
            beta=0.0,
            epsilon=0.2,
            epsilon_high=0.28,
            num_iterations=1,
            num_generations=job["samples"],
            max_completion_length=job["max_tokens"],
            temperature=1.0,
            max_steps=len(steps),
            per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=len(steps[0]) // rows_at_once,
            learning_rate=job["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=autocast,
            use_cpu=job["device"] == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        stopwatch = Stopwatch()
        trainer = StoredRollouts(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["stored"] * (len(steps) * len(steps[0]))}),
            processing_class=AutoTokenizer.from_pretrained(job["base"]),
            callbacks=[stopwatch],
        )
        trainer.stored = [stored_batch(rows) for rows in steps]
        trainer.train()
    return stopwatch


def one_step_seconds(first: list[dict], job: dict, way: tuple[str, bool, int]) -> float:
    """Seconds of the second of two equal steps."""
    stopwatch = train([first, first], job, *way)
    return stopwatch.ended[1] - stopwatch.started[1]


def fastest_way(first: list[dict], job: dict) -> dict[str, Any]:
    """The fastest precision, then the fastest number of rows a micro-batch with it, and the seconds of all.

    Half of the step's rows tell as much in half of the time.
    """
    first = first[: len(first) // 2]
    tried: dict[tuple[str, bool, int], float] = {}
    for precision in PRECISIONS:
        if job["dtype"] == "float32" and precision[0] != "float32":
            continue  # emulated on this processor: hundreds of times slower
        way = (*precision, FIRST_ROWS[job["device"]])
        tried[way] = one_step_seconds(first, job, way)
    dtype, autocast, _ = min(tried, key=tried.__getitem__)
    for count in OTHER_ROWS[job["device"]]:
        if len(first) % count == 0:
            try:
                tried[dtype, autocast, count] = one_step_seconds(first, job, (dtype, autocast, count))
            except torch.cuda.OutOfMemoryError:
                break
    return {"way": min(tried, key=tried.__getitem__), "tried": [[*way, seconds] for way, seconds in tried.items()]}


def whole_updates(first: list[dict], job: dict) -> dict[str, Any]:
    """One step on the first rows to warm up, then updates over all rows."""
    rows = pyarrow.parquet.read_table(job["trajectories"]).to_pylist()
    size = len(rows) // job["optimizer_steps"]
    steps = [rows[start : start + size] for start in range(0, len(rows), size)]
    norm = train([first], job, *job["way"]).norms[0]
    runs = [train(steps, job, *job["way"]) for _ in range(job["repetitions"])]
    peak = peak_bytes(job["device"])
    seconds = [run.ended[-1] - run.started[0] for run in runs]
    return {"seconds": seconds, "grad_norm": norm, "peak_bytes": peak}


def main(path: str) -> None:
    """What the job asks for, as the last line printed."""
    job = {"device": "cpu"} | json.loads(Path(path).read_text())
    first = pyarrow.parquet.read_table(job["first"]).to_pylist()
    print(json.dumps(whole_updates(first, job) if job.get("way") else fastest_way(first, job)))


if __name__ == "__main__":
    main(sys.argv[1])
