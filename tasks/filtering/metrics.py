"""What the stage tells of a filtering in numbers. Rates of passing and rewards are of all rollouts, never of the kept.

Among groups that are neither all right nor all wrong the mean pass rate is pulled towards 1/2, to
(p - p^n) / (1 - p^n - (1 - p)^n): what the filter leaves says little of the policy.

Where an iteration screens its prompts by their first samples, the rates of all rollouts are biased too: a prompt that
goes on has more rollouts and so more weight. `first_pass_rate` of the step `select` is the unbiased one there.
"""

import polars as pl

from tasks.filtering.evidence import Evidence
from tasks.filtering.rules import KEPT
from tasks.filtering.trajectories import group_codes

# SkyRL's tolerance: rewards that differ by less are equal.
EVEN = 1e-6


def filter_metrics(decided: pl.DataFrame, graders_pass_rate: float | None = None) -> dict[str, float]:
    """Kept and dropped rollouts by rule, groups, tokens, diversity, and the rates of all complete rollouts.

    `graders_pass_rate` is taken for `pass_rate` where no judge says anything.
    """
    counts = dict(decided.group_by("rule").len().iter_rows())
    spread = decided.filter("kept")["advantage"].std(ddof=0)
    dropped = {f"dropped_{rule}": float(count) for rule, count in sorted(counts.items()) if rule != KEPT}
    judged = decided["passed"].cast(pl.Float64).mean()
    return {
        "kept": float(counts.get(KEPT, 0)),
        "kept_fraction": counts.get(KEPT, 0) / max(len(decided), 1),
        **_of_groups(decided),
        **_of_tokens(decided),
        "distinct_fraction": decided["output"].n_unique() / max(len(decided), 1),
        **_known("pass_rate", graders_pass_rate if judged is None else judged),
        **_known("reward_mean", decided["graded"].mean()),
        **_known("advantage_std", spread),
        **dropped,
    }


def _of_groups(decided: pl.DataFrame) -> dict[str, float]:
    """Groups, those with a kept rollout, and those whose complete rewards are all alike."""
    groups = decided["group_id"].n_unique()
    complete = decided.filter("complete")
    codes = group_codes(complete)
    count = int(codes.max(initial=-1)) + 1
    spread = Evidence(complete, codes, count).deviation(complete["graded"].to_numpy())
    even = complete.filter(pl.Series(spread <= EVEN))["group_id"].n_unique()
    return {
        "groups": float(groups),
        "groups_without_variance": float(even),
        "zero_variance_fraction": even / max(count, 1),
        "effective_groups": float(decided.filter("kept")["group_id"].n_unique()),
    }


def _of_tokens(decided: pl.DataFrame) -> dict[str, float]:
    tokens = decided["tokens"].cast(pl.Float64)
    generated, kept = float(tokens.sum()), float(tokens.filter(decided["kept"]).sum())
    return {"tokens_generated": generated, "tokens_kept": kept, "tokens_saved": generated - kept}


def _known(name: str, value: object) -> dict[str, float]:
    return {name: float(value)} if isinstance(value, float) else {}
