"""The stages `preference_files` (somebody's pairs and logs) and `preferences`: graded groups, files, labels and earlier
iterations -> the pairs for the reward model.
"""

from collections import Counter
from collections.abc import Sequence

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.fingerprints import derive_seed
from tasks._sources.rows import rejected_frame
from tasks._stage import StageContext, stage
from tasks.preferences.clusters import joined_clusters
from tasks.preferences.collecting import Origins, collect_pairs, pair_metrics
from tasks.preferences.config import PreferencesConfig
from tasks.preferences.counterexamples import counterexamples
from tasks.preferences.files import content_of_files, read_preferences
from tasks.preferences.files_config import PreferenceFilesConfig
from tasks.preferences.frames import joined
from tasks.preferences.labels import label_pairs
from tasks.preferences.pairs import (
    PROMPT_COLUMNS,
    Voice,
    answers_of,
    complete_rewards,
    graded_pairs,
    scores_of,
    verdict_pairs,
    verdicts_of,
)
from tasks.preferences.splits import assign_splits, refuse_leaks


@stage("preference_files", version=1, extra=content_of_files)
def import_pairs(config: PreferenceFilesConfig, *, seed: int, context: StageContext) -> Outputs:
    """The pairs of files, split by cluster of their prompts, and the rows that are none. Raises `InputError`."""
    found = read_preferences(config, seed)
    threshold = config.near_duplicate_threshold
    clustered = found.pairs.with_columns(joined_clusters(found.pairs, threshold, context.scratch))
    pairs = assign_splits(clustered, config.eval_fraction, seed)
    refuse_leaks(pairs, threshold, context.scratch)
    reasons = Counter(rejection.reason for rejection in found.rejected)
    said = "".join(f", {reason} {count}" for reason, count in sorted(reasons.items()))
    context.log.info("preference_files: %d pairs of %d rows, set aside%s", len(pairs), found.rows, said or " nothing")
    metrics = pair_metrics(pairs) | {"rows": float(found.rows), "rows_without_pair": float(found.rows_without_pair)}
    metrics |= {f"rejected_{reason}": float(count) for reason, count in sorted(reasons.items())}
    return Outputs(metrics=metrics, preferences=pairs, rejected=rejected_frame(found.rejected))


@stage("preferences", version=3)
def collect_preferences(
    rollouts: Artifact,
    rewards: Artifact,
    batch: Artifact,
    config: PreferencesConfig,
    imported: Artifact | None = None,
    labels: Sequence[Artifact] = (),
    history: Sequence[Artifact] = (),
    anchors: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Outputs:
    """This iteration's pairs, those of files and labels, and earlier iterations'; perhaps none.

    `imported` is what `preference_files` made, `labels` have the tables `label_queue` and `labels`, `history` is what
    this stage made before. `anchors`: pairs as `preference_files` makes them, whose prompts never train.
    """
    answers = _answers(rollouts, rewards, batch, config)
    prompts = batch.scan("batch").select(PROMPT_COLUMNS).collect()
    graded = _graded(answers, prompts, rewards, config, seed)
    origins = Origins(
        graded=graded,
        counterexamples=_counterexamples(answers, prompts, graded, config, seed),
        imported=imported.read("preferences") if imported else joined([]),
        labelled=joined([label_pairs(each.read("label_queue"), each.read("labels")) for each in labels]),
        earlier=[(each.manifest.iteration or 0, each.read("preferences")) for each in history],
        anchors=anchors.read("preferences") if anchors else joined([]),
    )
    policies = answers["policy_id"].unique().to_list()
    pairs, counts = collect_pairs(origins, config, seed, context.scratch, policies)
    metrics = pair_metrics(pairs) | counts
    context.log.info("preferences: %d pairs, %d held out", metrics["pairs"], metrics["eval_pairs"])
    if metrics["left_out"]:
        context.log.info(
            "preferences: %d pairs of %d held-out annotators and %d held-out policies are left out: their prompts "
            "train",
            metrics["left_out"],
            metrics["held_out_annotators"],
            metrics["held_out_policies"],
        )
    if metrics["left_out_anchors"]:
        context.log.info("preferences: %d pairs are left out: their prompts are anchors'", metrics["left_out_anchors"])
    return Outputs(metrics=metrics, preferences=pairs)


def _answers(rollouts: Artifact, rewards: Artifact, batch: Artifact, config: PreferencesConfig) -> pl.DataFrame:
    if config.grader is None:
        scores = complete_rewards(rewards.scan("rewards"))
    else:
        scores = scores_of(rewards.scan("grades"), config.grader)
    return answers_of(rollouts.scan("rollouts"), scores, batch.scan("batch"))


def _graded(
    answers: pl.DataFrame, prompts: pl.DataFrame, rewards: Artifact, config: PreferencesConfig, seed: int
) -> pl.DataFrame:
    """By the composite reward, or by one grader; where that is a judge the pairs are an AI's, by its verdicts on pairs
    where it gave some.
    """
    if config.grader is None:
        return graded_pairs(answers, prompts, config, seed)
    judges = {_label(grader) for grader in rewards.manifest.config.get("graders", []) if grader.get("judging")}
    voice = Voice("ai" if config.grader in judges else "grader", config.grader)
    verdicts = verdicts_of(rewards.scan("grades"), config.grader)
    if len(verdicts):
        return verdict_pairs(answers, verdicts, prompts, config, seed, voice)
    return graded_pairs(answers, prompts, config, seed, voice)


def _label(grader: dict[str, str]) -> str:
    return grader.get("name") or grader["grader"]


def _counterexamples(
    answers: pl.DataFrame, prompts: pl.DataFrame, graded: pl.DataFrame, config: PreferencesConfig, seed: int
) -> pl.DataFrame:
    if config.counterexamples is None:
        return joined([])
    drawn = derive_seed(seed, "counterexamples")
    return counterexamples(answers, prompts, graded, config, config.counterexamples, drawn)
