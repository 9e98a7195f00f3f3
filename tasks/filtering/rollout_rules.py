"""Rules that look at a rollout by itself: how it ended, how old it is, what its graders say."""

import numpy as np

from tasks.filtering.evidence import Evidence, Finding, flagged
from tasks.filtering.rules_config import Aborted, Disagreement, MajorityOnly, Stale, Truncated, Uncertain


def aborted(evidence: Evidence, _: Aborted) -> Finding:
    """Whether the engine gave up."""
    return flagged((evidence.series("finish_reason") == "abort").to_numpy())


def truncated(evidence: Evidence, _: Truncated) -> Finding:
    """Whether the length limit cut it."""
    return flagged((evidence.series("finish_reason") == "length").to_numpy())


def stale(evidence: Evidence, rule: Stale) -> Finding:
    """Iterations since it was sampled."""
    age = evidence.column("age").astype(np.float64)
    return Finding(age, age > rule.threshold, rule.threshold)


def majority_only(evidence: Evidence, rule: MajorityOnly) -> Finding:
    """The votes' score, 0 where there is none: without a vote there is no majority to belong to."""
    score = np.nan_to_num(evidence.column(f"score:{rule.grader}"), nan=0.0)
    return Finding(score, score < rule.threshold, rule.threshold)


def disagreement(evidence: Evidence, rule: Disagreement) -> Finding:
    """How far two graders' scores are apart, or 1 where only one of them passes it. Unknown without either's answer."""
    first, second = (evidence.column(f"{rule.by}:{grader}").astype(np.float64) for grader in rule.graders)
    apart = np.abs(first - second)
    threshold = rule.threshold if rule.by == "score" else 0.0
    return Finding(apart, apart > threshold, threshold)


def uncertain(evidence: Evidence, rule: Uncertain) -> Finding:
    """The uncertainty of the score, against a limit or this iteration's quantile. Unknown ones are kept."""
    uncertainty = evidence.column(f"uncertainty:{rule.grader or ''}")
    threshold = rule.threshold
    if rule.quantile is not None:
        known = uncertainty[~np.isnan(uncertainty)]
        threshold = float(np.quantile(known, rule.quantile)) if len(known) else np.inf
    return Finding(uncertainty, uncertainty > threshold, np.nan if threshold is None else threshold)
