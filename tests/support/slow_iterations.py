"""Iterations with a slow grader of one's own, without Prefect."""

import sys
from contextlib import contextmanager

import polars as pl
from graded_rollouts import batch_rows, committed, context, rollout_rows

from storage.records import Grade, Reward
from tasks.grading import stage as grading
from tasks.grading.config import GraderConfig, GradingConfig

OWN = GraderConfig(grader="cluster:Cluster", name="slow", latency="slow", chunk=4)


@contextmanager
def own_cluster(folder, monkeypatch):
    """A slow grader of one's own, as a module on the path: what it was asked, and the answers that it has."""
    (folder / "cluster.py").write_text(
        "class Cluster:\n"
        "    version = '7'\n"
        "    asked, answers = [], {}\n"
        "    def __init__(self, queue='short'):\n        self.queue = queue\n"
        "    def submit(self, samples):\n"
        "        Cluster.asked += [sample.text for sample in samples]\n"
        "        return [f'{self.queue}:{sample.text}' for sample in samples]\n"
        "    def collect(self, tickets):\n"
        "        return {t: Cluster.answers[t] for t in tickets if t in Cluster.answers}\n"
        "class Half:\n    def submit(self, samples):\n        return []\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    import cluster

    yield cluster.Cluster
    del sys.modules["cluster"]


class Iterations:
    """The stages of a few iterations, without Prefect: two prompts of three rollouts in each."""

    def __init__(self, folder, spec, **changes):
        self.folder, self.made = folder, {}
        self.config = GradingConfig(graders=[GraderConfig(weight=0.5), spec], **changes)

    def ask(self, iteration, texts=None, before=None, fresh=None):
        prefix = fresh or f"i{iteration}r"
        texts = texts or [(f"p{index // 3}", f"text {iteration} {index}") for index in range(6)]
        root, name = str(self.folder / "root"), f"{iteration}x{len(self.made)}"
        rollouts = committed(
            self.folder, "rollouts", name, root, rollouts=rollout_rows(texts, iteration=iteration, prefix=prefix)
        )
        ids = [f"{prefix}{index}" for index in range(len(texts))]
        rewards = pl.DataFrame(
            {
                "rollout_id": ids,
                "reward": [float(index % 2) if prompt == "p0" else 1.0 for index, (prompt, _) in enumerate(texts)],
                "components": [[]] * len(ids),
                "complete": True,
                "passed": None,
            },
            schema=Reward.create_empty().schema,
        )
        grades = pl.DataFrame(
            [(each, "verifier", "v/1", "ok", 0.5, None, None, "{}", 0.0, 0.0, "policy") for each in ids],
            schema=Grade.create_empty().schema,
            orient="row",
        )
        instant = committed(self.folder, "grading", name, root, rewards=rewards, grades=grades)
        batch = committed(self.folder, "select", name, root, batch=batch_rows(2, samples=3))
        arguments = dict(rollouts=rollouts, batch=batch, grading=instant, pending=before)
        outputs = grading.ask_slow.function(
            **arguments, config=self.config.asking(iteration), seed=3, context=context(self.folder, iteration)
        )
        asked = committed(self.folder, "slow_grading", name, root, **outputs.tables)
        self.made[iteration] = (rollouts, batch, instant, asked)
        return outputs, asked

    def settle(self, iteration, late=()):
        rollouts, batch, instant, asked = self.made[iteration]
        return grading.settle.function(
            rollouts=rollouts, batch=batch, grading=instant, asked=asked, late=list(late), config=self.config
        )


def statuses(frame):
    """Of the rows in the order of their rollouts."""
    return frame.sort("rollout_id")["status"].to_list()
