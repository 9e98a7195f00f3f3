"""What a campaign's own artifacts say of its cost and of its prompts: speed, tokens a rollout, pass rates, runs."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.lineage import read_manifests

RECENT = 10
SAMPLES, ROLLOUTS, SCORE = "select.samples_per_prompt", "rollouts/rollouts", "evaluation/mean_score"
# Steps that sampled: `rollouts`, which holds all of an iteration's, and those of rounds, which it joins.
SAMPLING = re.compile(r"rollouts(-\d+(-rest)?)?")
# How the history names whoever made a prompt's outcomes, where these were a pass or a fail.
VERDICT = "verdict:"


@dataclass(frozen=True)
class Throughput:
    """How fast iterations went, all their stages counted, and how long the answers were; `source` says by what."""

    rollouts_per_s: float | None
    tokens_per_rollout: float | None
    source: str


@dataclass(frozen=True)
class PassRates:
    """A Beta posterior of the pass rate for each of a campaign's prompts that was ever sampled."""

    alpha: np.ndarray
    beta: np.ndarray
    source: str

    @property
    def mean(self) -> float:
        """The mean of the posterior means."""
        return float(np.mean(self.alpha / (self.alpha + self.beta)))


def throughput(campaign: Campaign) -> Throughput | None:
    """Rollouts per second and tokens per rollout over the newest iterations; None before the first is committed.

    A second counts once: where rollouts of an iteration were found, not made, the iteration is left out, and so is
    an artifact that two steps have. Rounds' rollouts count in the step that joins them, their seconds where they ran.
    """
    states = [campaign.state(k) for k in campaign.iterations() if k > 0][-RECENT:]
    manifests = read_manifests(campaign.root, {made for state in states for made in state.steps.values()})
    rollouts = seconds = tokens = 0.0
    counted = 0
    for state in states:
        made = {name: manifests[name] for name in state.steps.values() if name in manifests}
        joined = made.get(state.steps.get("rollouts", ""))
        sampled = [made[name] for step, name in state.steps.items() if SAMPLING.fullmatch(step) and name in made]
        own = all(each.iteration == state.iteration and each.campaign == campaign.name for each in sampled)
        if joined is None or not own:
            continue
        counted += 1
        rollouts += joined.metrics.get("rollouts", 0.0)
        tokens += joined.metrics.get("tokens", 0.0)
        seconds += sum(each.duration_s for each in made.values() if each.iteration == state.iteration)
    if not rollouts or not seconds:
        return None
    source = f"{counted} iteration{'s' if counted > 1 else ''} of campaign {campaign.name}, all stages"
    return Throughput(rollouts / seconds, tokens / rollouts, source)


def pass_rates(campaign: Campaign) -> PassRates | None:
    """The history's posteriors of a verdict where it has them, else Beta(1, 1) and the newest iterations' counts.

    None where rollouts neither pass nor fail: rewards other than 0 and 1 without a verdict.
    """
    last = campaign.last_state()
    if last is None or last.iteration == 0:
        return None
    return _from_history(campaign, last) or _from_rewards(campaign)


def _from_history(campaign: Campaign, last: State) -> PassRates | None:
    if last.prompt_history is None:
        return None
    history = Artifact.at(campaign.root, last.prompt_history).scan("prompt_history")
    if not {"alpha", "beta", "outcome_key"} <= set(history.collect_schema()):
        return None
    # A score or a reward is no share of passes, though the history keeps its posterior in the same columns.
    judged = pl.col("outcome_key").str.starts_with(VERDICT) & pl.col("alpha").is_not_null()
    known = history.filter(judged & (pl.col("times_drawn") > 0)).select("alpha", "beta").collect()
    if known.is_empty():
        return None
    source = f"the posteriors of {len(known)} prompts after iteration {last.iteration}"
    return PassRates(known["alpha"].to_numpy(), known["beta"].to_numpy(), source)


def _from_rewards(campaign: Campaign) -> PassRates | None:
    states = [campaign.state(k) for k in campaign.iterations() if k > 0][-RECENT:]
    counted = [frame for state in states for frame in _counts(campaign.root, state)]
    if not counted:
        return None
    rows = pl.concat(counted).group_by("prompt_id").agg(pl.col("passed", "graded", "unclear").sum())
    if rows["unclear"].sum() or not rows["graded"].sum():
        return None
    failed = (rows["graded"] - rows["passed"]).to_numpy()
    source = f"{int(rows['graded'].sum()):,} graded rollouts of {len(rows):,} prompts, from a uniform prior"
    return PassRates(1.0 + rows["passed"].to_numpy(), 1.0 + failed, source)


def _counts(root: str, state: State) -> list[pl.DataFrame]:
    """Passed, graded and unclear rollouts per prompt of one iteration's training rollouts, those of rounds joined."""
    sampled, rewarded = (_scan(root, state, *named) for named in (("rollouts", "rollouts"), ("rewards", "rewards")))
    rewarded = _scan(root, state, "grading", "rewards") if rewarded is None else rewarded
    if sampled is None or rewarded is None:
        return []
    passed = pl.coalesce("passed", pl.when(pl.col("reward").is_in([0.0, 1.0])).then(pl.col("reward") == 1.0))
    known = rewarded.filter(pl.col("reward").is_not_null()).with_columns(passed.alias("passed"))
    return [
        sampled.select("rollout_id", "prompt_id")
        .join(known.select("rollout_id", "passed"), on="rollout_id")
        .group_by("prompt_id")
        .agg(
            passed=pl.col("passed").sum().cast(pl.Int64),
            graded=pl.len().cast(pl.Int64),
            unclear=pl.col("passed").null_count().cast(pl.Int64),
        )
        .collect(engine="streaming")
    ]


def _scan(root: str, state: State, step: str, table: str) -> pl.LazyFrame | None:
    made = Artifact.at(root, state.steps[step]) if step in state.steps else None
    return made.scan(table) if made is not None and table in made.manifest.tables else None


def campaign_runs(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Samples per prompt -> its campaigns as (rollouts so far, held-out score), from a tracker's rows.

    A row is an iteration: `campaign`, `iteration`, `samples`, `rollouts`, `score`. Of several rows of an iteration
    the first counts. A campaign that changed its samples per prompt belongs to none.
    """
    campaigns: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        campaigns[row["campaign"]].setdefault(row["iteration"], row)
    runs: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for found in campaigns.values():
        ordered = [found[iteration] for iteration in sorted(found) if iteration > 0]
        sizes = {row["samples"] for row in ordered}
        if len(sizes) == 1:
            rollouts = np.cumsum([float(row["rollouts"]) for row in ordered])
            runs[sizes.pop()].append((rollouts, np.array([float(row["score"]) for row in ordered])))
    return dict(runs)


def tracked_rows(runs: Sequence[Mapping[str, Any]], model: str) -> list[dict[str, Any]]:
    """The rows of `campaign_runs` among a tracker's runs: those of that base model that have a held-out score."""
    return [
        {
            "campaign": run["campaign"],
            "iteration": run["iteration"],
            "samples": int(run["params"][SAMPLES]),
            "rollouts": run["metrics"][ROLLOUTS],
            "score": run["metrics"][SCORE],
        }
        for run in runs
        if run["params"].get("model.path") == model
        and SAMPLES in run["params"]
        and {ROLLOUTS, SCORE} <= set(run["metrics"])
    ]


def pool_size(campaign: Campaign) -> int | None:
    """The training prompts of the pool, as the newest selection counted them: with rounds that of the first."""
    last = campaign.last_state()
    made = last.steps.get("select-1", last.steps.get("select")) if last else None
    pool = Artifact.at(campaign.root, made).metrics.get("pool") if made else None
    return None if pool is None else int(pool)


def newest_advice(campaign: Campaign) -> list[dict[str, str]]:
    """What the newest report advises: `rule`, `found`, `do`."""
    last = campaign.last_state()
    made = last.steps.get("report") if last else None
    return list(Artifact.at(campaign.root, made).manifest.facts.get("advice", [])) if made else []
