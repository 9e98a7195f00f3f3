"""What `test_training_launch.py` starts: writes its process id down, then ends as JOB says (wait, fail or end)."""

import os
import sys
import time
from pathlib import Path

import torch

from tasks._training.parallel import join_world, leave_world

if __name__ == "__main__":
    job = Path(sys.argv[1])
    world, _ = join_world(torch.device("cpu"))
    (job.parent / f"rank-{world.rank}").write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    what = job.read_text()
    if what == "wait":
        time.sleep(300)
    if what == "fail" and world.rank == 1:
        raise ValueError("rank one has had enough")
    leave_world()
