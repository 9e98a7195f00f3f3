"""A verifier that takes its time and writes down every text that it graded; run as a program, it grades a slice."""

import os
import sys
import time
from pathlib import Path

SECONDS = 0.02


def slow(text, answer, params):
    """Grades a text by its length; every call leaves a line in the file that $GRADED names."""
    from tasks.grading.verdict import Verdict

    time.sleep(SECONDS)
    with Path(os.environ["GRADED"]).open("a") as log:
        log.write(f"{text}\n")
    if text.startswith("bad"):
        raise ValueError("no grade for this one")
    return Verdict(len(text) / 100, True, {"length": len(text)}, cost=0.25)


def main(folder: Path) -> None:
    """Grade 40 committed rollouts in chunks of five."""
    from graded_rollouts import grade_shard

    from storage.artifacts import Artifact
    from tasks.grading.config import GraderConfig, GradingConfig

    root = str(folder / "root")
    config = GradingConfig(graders=[GraderConfig(grader="slow_verifier:slow", cached=True, chunk=5)])
    made = grade_shard(Artifact.at(root, "rollouts/rollouts0"), Artifact.at(root, "select/select0"), config, folder)
    made.tables["grades"].write_parquet(folder / "grades.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
