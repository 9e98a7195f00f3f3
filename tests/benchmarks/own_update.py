"""Our side of the update benchmark: `python own_update.py JOB.json` prints what it measured as JSON.

The call is that of the stage `policy_update`. Timed is from the start of the first optimizer step to the end of the
last one, checkpoints included; loading the model isn't, nor the parity gate, which TRL has no counterpart of.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

SIDE, PRODUCTS = 4096, 5


def product_rate(dtype: str) -> float:
    """FLOP/s of a plain product of two square matrices, the best of several."""
    import torch

    left, right = (torch.randn(SIDE, SIDE).to(getattr(torch, dtype)) for _ in range(2))
    product = left @ right.T
    best = float("inf")
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        torch.mm(left, right.T, out=product)
        best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best


def update(trajectories: Path, job: dict, optimizer_steps: int) -> tuple[float, list[float]]:
    """Seconds of the optimizer steps of one whole update, and the norm of each step's gradient."""
    import polars as pl

    from tasks.policy_update.config import LoraConfig, ParityConfig, PolicyUpdateConfig
    from tasks.policy_update.policy import PolicyFolders
    from tasks.policy_update.update import Lessons, update_policy

    config = PolicyUpdateConfig(
        learning_rate=job["learning_rate"],
        optimizer_steps=optimizer_steps,
        max_tokens=job["max_tokens"],
        lora=LoraConfig(rank=job["rank"]),
        parity=ParityConfig(enabled=False),
        device="cpu",
    )
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        updated = update_policy(
            Lessons(pl.read_parquet(trajectories)),
            PolicyFolders(Path(job["base"]), Path(job["adapter"])),
            config,
            seed=0,
            scratch=Path(scratch),
            progress=lambda *_: marks.append(time.perf_counter()),
        )
    steps = updated.steps.sort("step")
    norms = steps.filter(steps["metric"] == "grad_norm")["value"].to_list()
    if len(norms) != optimizer_steps:
        sys.exit(f"{len(norms)} optimizer steps were made, expected {optimizer_steps}")
    return marks[-1] - marks[0], norms


def main(path: str) -> None:
    """One step on the first rows to warm up, then whole updates, with the machine's best product before and after."""
    job = json.loads(Path(path).read_text())
    from tasks._devices import choose_dtype

    dtype = choose_dtype("auto", "cpu")
    products = [product_rate(dtype)]
    _, norms = update(Path(job["first"]), job, 1)
    seconds = [update(Path(job["trajectories"]), job, job["optimizer_steps"])[0] for _ in range(job["repetitions"])]
    products.append(product_rate(dtype))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = {"seconds": seconds, "grad_norm": norms[0], "peak_bytes": peak_bytes, "product_rate": max(products)}
    print(json.dumps(measured | {"dtype": dtype, "threads": os.environ.get("OMP_NUM_THREADS")}))


if __name__ == "__main__":
    main(sys.argv[1])
