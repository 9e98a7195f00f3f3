"""The part of an iteration in which people are asked: a queue is opened, labels are waited for, then taken up."""

import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.config import RunConfig
from flows.slow_grades import Graded
from flows.steps import FIRST
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.fingerprints import derive_seed
from storage.labels import LabelQueues, OpenQueue
from tasks._shown import progress_of
from tasks._stage import RunContext
from tasks.label_queue.config import COLLECT, LabellingConfig
from tasks.label_queue.stage import collect_labels, make_queue

QUEUE, LABELS = "label-queue", "labels"


def ask_people(state: State, config: RunConfig, run: RunContext, graded: Graded) -> Artifact | None:
    """Open this iteration's queue, and give what people said of it and of earlier ones; None without `labelling`.

    With `labelling.wait_s` the labels are waited for, unless they were taken up before (a run that goes on, a rerun).
    """
    if config.labelling is None:
        return None
    campaign = Campaign(run.root, config.campaign)
    before = Artifact.at(run.root, state.steps[LABELS]) if LABELS in state.steps else None
    earlier = [campaign.state(k).steps for k in reversed(campaign.iterations()) if FIRST < k < run.iteration]
    queue = make_queue(
        rollouts=graded.rollouts,
        rewards=graded.grading,
        batch=graded.batch,
        labels=before,
        config=config.labelling,
        **(_said_of(earlier, config.labelling, run.root) if before else {}),
        seed=derive_seed(config.seed, run.iteration, "people"),
        step=QUEUE,
    )
    arguments: dict[str, Any] = {
        "queues": [queue, *(Artifact.at(run.root, steps[QUEUE]) for steps in earlier if QUEUE in steps)],
        "before": before,
        "config": COLLECT,
        "campaign": config.campaign,
    }
    _open(queue, config, run)
    if not collect_labels.artifact(run.root, **arguments).exists():
        _wait(queue, config, run)
    return collect_labels(**arguments, step=LABELS)


def _said_of(earlier: Sequence[Mapping[str, str]], asked: LabellingConfig, root: str) -> dict[str, list[Artifact]]:
    """The answers of which people were asked lately and their rewards, where a strategy looks for contradictions."""
    if not asked.contradictions:
        return {}
    recent = [steps for steps in earlier[: asked.contradiction_iterations] if QUEUE in steps]
    return {
        "earlier_rollouts": [Artifact.at(root, steps["rollouts"]) for steps in recent],
        "earlier_rewards": [Artifact.at(root, steps.get("rewards", steps["grading"])) for steps in recent],
    }


def _open(queue: Artifact, config: RunConfig, run: RunContext) -> None:
    assert config.labelling is not None
    asked = config.labelling
    LabelQueues(run.root, config.campaign).open(
        OpenQueue(
            iteration=run.iteration,
            queue=queue.id,
            labels_per_item=asked.labels_per_item,
            max_score=asked.max_score,
            opened_at=datetime.now(UTC),
        )
    )


def _wait(queue: Artifact, config: RunConfig, run: RunContext) -> None:
    assert config.labelling is not None
    asked = config.labelling
    wanted = math.ceil(queue.metrics["items"] * asked.labels_per_item * asked.wait_for)
    if not wanted:
        return
    log = get_run_logger()
    log.info("%d pairs to label: posttrain label %s --root %s", queue.metrics["items"], config.campaign, run.root)
    if asked.wait_s:
        came = wait_for_labels(run.root, config.campaign, queue, wanted, asked)
        log.info("labels: %d of %d came in time", came, wanted)


@task(name="wait-for-labels", task_run_name="wait-for-labels", cache_policy=NO_CACHE, persist_result=False)
def wait_for_labels(root: str, campaign: str, queue: Artifact, wanted: int, config: LabellingConfig) -> int:
    """Wait until so many labels of a queue are there, or `config.wait_s` is over; how many there are then.

    A skipped item counts: it was looked at. Prefect shows the number as a progress bar.
    """
    labels = LabelQueues(root, campaign).labels_of(queue.id)
    progress = progress_of("labels", get_run_logger())
    deadline = time.monotonic() + config.wait_s
    while True:
        labels.refresh()
        came = len(labels.standing())
        progress(came, wanted, "labels")
        left_s = deadline - time.monotonic()
        if came >= wanted or left_s <= 0:
            return came
        time.sleep(min(config.poll_s, left_s))
