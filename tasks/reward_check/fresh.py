"""What a reward model says of fresh answers, on which nobody preferred one: uncertainty, length, other graders."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from tasks._maths.agreement import spearman
from tasks._maths.alignment_gap import Measure, correlation_interval
from tasks._maths.length_bias import partial_correlation
from tasks._maths.lengths import centred, without_end

Rows = Float[np.ndarray, " rows"]
# Answers from which a correlation is told.
FEWEST = 20


@dataclass(frozen=True)
class Fresh:
    """Fresh answers: reward and uncertainty in training deviations, length in tokens without the end, the prompt as a
    number, and the other graders' scores by their name (nan: none).
    """

    reward: Rows
    uncertainty: Rows
    length: Rows
    prompt: np.ndarray
    others: Mapping[str, Rows]


def sample_prompts(rollouts: pl.LazyFrame, limit: int, seed: int) -> pl.DataFrame:
    """Whole prompts' rollouts, drawn by seed, `limit` rollouts at most but always one prompt; with `length`."""
    sizes = rollouts.group_by("prompt_id").agg(size=pl.len()).sort("prompt_id").collect()
    order = np.random.default_rng(seed).permutation(len(sizes))
    total = np.cumsum(sizes["size"].to_numpy()[order]) if len(sizes) else np.zeros(0)
    taken = order[: max(int((total <= limit).sum()), 1)]
    names = sizes["prompt_id"].gather(np.sort(taken).tolist()).to_list()
    columns = ["rollout_id", "prompt_id", "prompt_token_ids", "token_ids", "finish_reason"]
    drawn = rollouts.filter(pl.col("prompt_id").is_in(names)).select(columns).sort("prompt_id", "rollout_id").collect()
    stopped = (drawn["finish_reason"].cast(pl.String) == "stop").to_numpy()
    return drawn.with_columns(length=without_end(drawn["token_ids"].list.len().to_numpy(), stopped))


def other_scores(grades: pl.LazyFrame, rollouts: pl.DataFrame, own_version: str) -> dict[str, Rows]:
    """The other graders' scores of these rollouts; grades that this very reward model made don't count."""
    rows = (
        grades.filter((pl.col("status") == "ok") & (pl.col("grader_version") != own_version))
        .select("rollout_id", "grader", "score")
        .join(rollouts.lazy().select("rollout_id"), on="rollout_id", how="semi")
        .collect()
    )
    found = {}
    for (grader,), part in rows.group_by("grader", maintain_order=True):
        joined = rollouts.select("rollout_id").join(part, on="rollout_id", how="left", maintain_order="left")
        found[str(grader)] = joined["score"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return dict(sorted(found.items()))


def fresh_measures(fresh: Fresh, *, seed: int) -> list[Measure]:
    """Spearman's correlation with each other grader, and of reward and length within prompts at the others' scores.

    With no other grader nothing holds quality fixed: the correlation is then that of reward and length.
    """
    count = len(fresh.reward)
    if count < FEWEST:
        return []
    measures = []
    for name, scores in fresh.others.items():
        known = np.flatnonzero(np.isfinite(scores))
        value = spearman(fresh.reward[known], scores[known]) if len(known) >= FEWEST else None
        if value is not None:
            columns = np.column_stack([fresh.reward[known], scores[known]])
            low, high = correlation_interval(columns, fresh.prompt[known], seed=seed)
            measures.append(Measure("fresh_spearman", f"grader: {name}", value, low, high, len(known)))
    complete = [scores for scores in fresh.others.values() if np.isfinite(scores).all()]
    within = [centred(values, fresh.prompt) for values in (fresh.reward, fresh.length, *complete)]
    controls = np.column_stack(within[2:]) if complete else np.zeros((count, 0))
    value = partial_correlation(within[0], within[1], controls)
    if value is not None:
        title = f"quality: {', '.join(fresh.others)}" if complete else "quality: unknown"
        measures.append(Measure("fresh_length_correlation", title, value, None, None, count))
    return measures


def fresh_metrics(fresh: Fresh, measures: list[Measure], held_out_uncertainty: float) -> dict[str, float]:
    """`fresh_uncertainty_ratio`: the mean uncertainty over that of the held-out answers, where there is an ensemble."""
    metrics = {"fresh_answers": float(len(fresh.reward)), "fresh_reward_mean": float(fresh.reward.mean())}
    metrics["fresh_uncertainty_mean"] = float(fresh.uncertainty.mean())
    if held_out_uncertainty > 0:
        metrics["fresh_uncertainty_ratio"] = metrics["fresh_uncertainty_mean"] / held_out_uncertainty
    for each in measures:
        name = each.measure if each.measure != "fresh_spearman" else f"fresh_spearman/{each.slice[len('grader: ') :]}"
        metrics[name] = each.value
    return metrics
