"""An update in several processes: the job as files in the scratch folder, the same `update_policy` in each of them."""

import json
import sys
from pathlib import Path

import polars as pl
from pydantic import BaseModel

from tasks._training.launch import run_in_processes
from tasks._training.parallel import leave_world, writes_files
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.policy import PolicyFolders
from tasks.policy_update.update import Lessons, PolicyUpdate, update_policy

JOB, TRAJECTORIES, PREFERENCES = "job.json", "trajectories.parquet", "preferences.parquet"
STEPS, METRICS = "steps.parquet", "metrics.json"


class Job(BaseModel):
    """What the processes need besides the two tables beside it."""

    policy: PolicyFolders
    reference: PolicyFolders | None
    config: PolicyUpdateConfig
    seed: int


def update_in_processes(
    lessons: Lessons, folders: PolicyFolders, config: PolicyUpdateConfig, *, seed: int, scratch: Path
) -> PolicyUpdate:
    """`update_policy` in `config.processes` processes of torchrun; resumes, raises and returns as it does."""
    lessons.trajectories.write_parquet(scratch / TRAJECTORIES)
    if lessons.preferences is not None:
        lessons.preferences.write_parquet(scratch / PREFERENCES)
    job = Job(policy=folders, reference=lessons.reference, config=config, seed=seed)
    (scratch / JOB).write_text(job.model_dump_json())
    run_in_processes(__name__, scratch, config.processes, scratch / "processes.log")
    metrics = json.loads((scratch / METRICS).read_text())
    return PolicyUpdate(scratch / "policy", pl.read_parquet(scratch / STEPS), metrics)


def main(scratch: Path) -> None:
    """One of the processes."""
    job = Job.model_validate_json((scratch / JOB).read_text())
    preferences = scratch / PREFERENCES
    lessons = Lessons(
        trajectories=pl.read_parquet(scratch / TRAJECTORIES),
        preferences=pl.read_parquet(preferences) if preferences.is_file() else None,
        reference=job.reference,
    )
    updated = update_policy(lessons, job.policy, job.config, seed=job.seed, scratch=scratch, progress=_tell)
    if writes_files():
        updated.steps.write_parquet(scratch / STEPS)
        (scratch / METRICS).write_text(json.dumps(updated.metrics))
    leave_world()


def _tell(done: int, total: int, label: str) -> None:
    sys.stdout.write(f"{done} of {total} {label}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
