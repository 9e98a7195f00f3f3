"""An update in several processes: the job as files in the scratch folder, the same `update_policy` in each of them."""

import json
import sys
from pathlib import Path

import polars as pl
from pydantic import BaseModel

from storage.errors import InputError, StageFailed
from tasks._training.launch import run_in_processes
from tasks._training.parallel import leave_world, writes_files
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.policy import PolicyFolders
from tasks.policy_update.update import Lessons, PolicyUpdate, Progress, update_policy

JOB, TRAJECTORIES, PREFERENCES = "job.json", "trajectories.parquet", "preferences.parquet"
STEPS, METRICS, PROGRESS, REFUSAL = "steps.parquet", "metrics.json", "progress.json", "refusal.txt"


class Job(BaseModel):
    """What the processes need besides the two tables beside it."""

    policy: PolicyFolders
    reference: PolicyFolders | None
    config: PolicyUpdateConfig
    seed: int


def update_in_processes(
    lessons: Lessons,
    folders: PolicyFolders,
    config: PolicyUpdateConfig,
    *,
    seed: int,
    scratch: Path,
    progress: Progress,
) -> PolicyUpdate:
    """`update_policy` in `config.processes` processes of torchrun; resumes, raises and returns as it does."""
    lessons.trajectories.write_parquet(scratch / TRAJECTORIES)
    if lessons.preferences is not None:
        lessons.preferences.write_parquet(scratch / PREFERENCES)
    job = Job(policy=folders, reference=lessons.reference, config=config, seed=seed)
    (scratch / JOB).write_text(job.model_dump_json())
    for left in (PROGRESS, REFUSAL):
        (scratch / left).unlink(missing_ok=True)

    def watch() -> None:
        if (scratch / PROGRESS).is_file():
            progress(*json.loads((scratch / PROGRESS).read_text()))

    try:
        run_in_processes(__name__, scratch, config.processes, scratch / "processes.log", watch=watch)
    except StageFailed:
        if (scratch / REFUSAL).is_file():
            raise InputError((scratch / REFUSAL).read_text()) from None
        raise
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

    def tell(done: int, total: int, label: str) -> None:
        _replace(scratch / PROGRESS, json.dumps([done, total, label]))

    try:
        updated = update_policy(lessons, job.policy, job.config, seed=job.seed, scratch=scratch, progress=tell)
    except InputError as error:
        _replace(scratch / REFUSAL, str(error))
        raise
    if writes_files():
        updated.steps.write_parquet(scratch / STEPS)
        (scratch / METRICS).write_text(json.dumps(updated.metrics))
    leave_world()


def _replace(path: Path, content: str) -> None:
    """Whole or not at all for whoever reads; every process would write the same."""
    unfinished = path.with_suffix(f".{writes_files()}")
    unfinished.write_text(content)
    unfinished.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
