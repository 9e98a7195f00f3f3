"""The stages `label_queue` and `labels`: graded groups -> pairs for people, and what people said -> an artifact."""

from collections.abc import Sequence

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.labels import LabelQueues, joined_labels, labelled_items
from storage.records import RECORDS
from tasks._stage import StageContext, stage
from tasks.label_queue.candidates import (
    answers_of,
    drawn_answers,
    graded_by,
    known_of,
    ordering_grader,
    pairs_of,
    without,
)
from tasks.label_queue.choose import PROMPT, choose, queue_metrics, queue_of
from tasks.label_queue.config import LabellingConfig
from tasks.label_queue.contradictions import contradicted_pairs, scores_by_people
from tasks.label_queue.measures import label_metrics


def of_campaign(campaign: str) -> str:
    """Labels lie below their campaign: another one with the same queue has its own."""
    return campaign


@stage("label_queue", version=1)
def make_queue(
    rollouts: Artifact,
    rewards: Artifact,
    batch: Artifact,
    labels: Artifact | None,
    config: LabellingConfig,
    *,
    earlier_rollouts: Sequence[Artifact] = (),
    earlier_rewards: Sequence[Artifact] = (),
    seed: int,
    context: StageContext,
) -> Outputs:
    """The pairs of this iteration's answers that people are asked about. `labels`: what they said so far.

    `earlier_rollouts` with their rewards: what they said it of, for the strategies that look for contradictions.
    """
    sampled, grades = rollouts.scan("rollouts"), rewards.scan("grades")
    grader = ordering_grader(grades, config)
    answers = drawn_answers(answers_of(sampled, rewards.scan("rewards"), grades, grader), seed)
    prompts, candidates = batch.scan("batch"), [pairs_of(answers)]
    if labels is not None and config.contradictions and earlier_rollouts:
        people = scores_by_people(labels.read("labels"), labels.read("label_queue"))
        for made, graded in zip(earlier_rollouts, earlier_rewards, strict=True):
            if not graded_by(graded.scan("grades"), grader):
                continue  # the first reward model came later
            known = answers_of(made.scan("rollouts"), graded.scan("rewards"), graded.scan("grades"), grader)
            candidates.append(contradicted_pairs(known, people, config))
        prompts = pl.concat([table.select(PROMPT) for table in (prompts, labels.scan("label_queue"))])
        sampled = pl.concat([each.scan("rollouts") for each in (rollouts, *earlier_rollouts)], how="diagonal")
    pairs = pl.concat(candidates, how="diagonal")
    pairs = without(pairs, _labelled_enough(labels, config), sampled)
    chosen = choose(pairs, known_of(pairs, answers, grades, seed), config)
    queue = queue_of(chosen, sampled, prompts, context.iteration)
    context.log.info("label queue: %d of %d pairs", len(queue), len(pairs))
    return Outputs(metrics=queue_metrics(queue, len(pairs)), label_queue=queue)


@stage("labels", version=1, extra=of_campaign)
def collect_labels(
    queues: Sequence[Artifact],
    before: Artifact | None,
    *,
    campaign: str,
    context: StageContext,
) -> Outputs:
    """Every standing label of these queues of a campaign, and the items that they belong to.

    `before` is what the iteration before took up. What comes later belongs to the next one: this never changes.
    """
    known = LabelQueues(queues[0].root, campaign)
    nothing = RECORDS["labels"].create_empty()
    labels = joined_labels(
        [known.labels_of(queue.id) for queue in queues], before.read("labels") if before else nothing
    )
    tables = [each.scan("label_queue") for each in (*queues, *([before] if before else []))]
    items, metrics = labelled_items(tables, labels), label_metrics(labels)
    context.log.info("labels: %d of %d pairs, by %d people", len(labels), len(items), metrics["annotators"])
    return Outputs(metrics=metrics, labels=labels, label_queue=items)


def _labelled_enough(labels: Artifact | None, config: LabellingConfig) -> pl.DataFrame:
    """`prompt_id, first, second` of the items with as many labels as are wanted."""
    if labels is None:
        return pl.DataFrame(schema={"prompt_id": pl.String, "first": pl.String, "second": pl.String})
    said = labels.scan("labels").filter(pl.col("choice") != "skip").group_by("item_id").len()
    enough = said.filter(pl.col("len") >= config.labels_per_item)
    items = labels.scan("label_queue").join(enough, on="item_id", how="semi")
    return items.select("prompt_id", "first", "second").collect()
