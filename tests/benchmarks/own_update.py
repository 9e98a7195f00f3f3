"""Our side of the update benchmark: `python own_update.py JOB.json` prints what it measured as JSON.

The call is that of the stage `policy_update`. Timed is from the start of the first optimizer step to the end of the
last one, checkpoints included; loading the model isn't, nor the parity gate, which TRL has no counterpart of, nor the
products between the steps.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from apart import peak_bytes

# Of the square matrices: a GPU needs larger ones to be full.
SIDES, PRODUCTS = {"cpu": 4096, "cuda": 8192}, 2


class Stopwatch:
    """Times an update's optimizer steps, and between them the machine's plain product of two square matrices.

    A machine shared with others is faster now and slower then: the two rates may be compared only because each is
    a mean over the same minutes.
    """

    def __init__(self, dtype: str, device: str) -> None:
        import torch

        self.device, self.side = device, SIDES[device]
        shape = (self.side, self.side)
        self.left, self.right = (torch.randn(shape).to(device, getattr(torch, dtype)) for _ in range(2))
        self.product = self.left @ self.right.T
        self.steps = self.product_seconds = 0.0
        self.products = 0
        self.started: float | None = None

    def __call__(self, *_: object) -> None:
        """Takes the place of a progress bar, which is told of the start of every step and of the end."""
        import torch

        now = self._clock()
        if self.started is not None:
            self.steps += now - self.started
        for _repetition in range(PRODUCTS):
            torch.mm(self.left, self.right.T, out=self.product)
        self.products += PRODUCTS
        self.started = self._clock()
        self.product_seconds += self.started - now

    def product_rate(self) -> float:
        """FLOP/s of the products."""
        return 2 * self.side**3 * self.products / self.product_seconds

    def _clock(self) -> float:
        """Seconds, once the device has done what it was given."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def update(trajectories: Path, job: dict, optimizer_steps: int, watch: Stopwatch) -> list[float]:
    """One whole update under a watch; returns the norm of each step's gradient."""
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
        device=job["device"],
        tokens_per_microbatch=job.get("tokens_per_microbatch"),
    )
    with tempfile.TemporaryDirectory() as scratch:
        updated = update_policy(
            Lessons(pl.read_parquet(trajectories)),
            PolicyFolders(Path(job["base"]), Path(job["adapter"])),
            config,
            seed=0,
            scratch=Path(scratch),
            progress=watch,
        )
    steps = updated.steps.sort("step")
    norms = steps.filter(steps["metric"] == "grad_norm")["value"].to_list()
    if len(norms) != optimizer_steps:
        sys.exit(f"{len(norms)} optimizer steps were made, expected {optimizer_steps}")
    return norms


def main(path: str) -> None:
    """One step on the first rows to warm up, then whole updates."""
    job = {"device": "cpu"} | json.loads(Path(path).read_text())
    from tasks._devices import choose_dtype

    dtype = choose_dtype("auto", job["device"])
    norms = update(Path(job["first"]), job, 1, Stopwatch(dtype, job["device"]))
    watches = [Stopwatch(dtype, job["device"]) for _ in range(job["repetitions"])]
    for watch in watches:
        update(Path(job["trajectories"]), job, job["optimizer_steps"], watch)
    measured = {
        "seconds": [watch.steps for watch in watches],
        "product_rates": [watch.product_rate() for watch in watches],
        "grad_norm": norms[0],
        "peak_bytes": peak_bytes(job["device"]),
    }
    print(json.dumps(measured | {"dtype": dtype, "threads": os.environ.get("OMP_NUM_THREADS")}))


if __name__ == "__main__":
    main(sys.argv[1])
