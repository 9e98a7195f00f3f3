"""Rules that compare the rewards of a group."""

import numpy as np
import polars as pl

from storage.errors import InputError
from tasks._maths.subsets import max_variance_subset
from tasks.filtering.evidence import Evidence, Finding, Values
from tasks.filtering.rules_config import BestOnly, DifficultyBand, MaxVariance, NoVariance, Oversample, SignalToNoise


def no_variance(evidence: Evidence, rule: NoVariance) -> Finding:
    """The standard deviation of the group's rewards, against the largest that counts as none."""
    spread = evidence.deviation(evidence.column("reward"))
    return Finding(spread, spread <= rule.threshold, rule.threshold)


def difficulty_band(evidence: Evidence, rule: DifficultyBand) -> Finding:
    """The group's mean reward or pass rate, against the bound that it misses.

    What passes the judges say, or all graders that draw a line where there are no judges. Raises `InputError` where
    nobody says.
    """
    rate = evidence.mean(evidence.column("reward") if rule.of == "reward" else _passed(evidence))
    hard, easy = rate < rule.low, rate > rule.high
    return Finding(rate, hard | easy, np.where(hard, rule.low, rule.high))


def _passed(evidence: Evidence) -> Values:
    for name in ("passed", "verdict:"):
        said = evidence.series(name).cast(pl.Float64).to_numpy()
        if not len(said) or not np.isnan(said).all():
            return said
    raise InputError("rule difficulty_band of passed: no grader says what passes; use of: reward, or set judge: true")


def max_variance(evidence: Evidence, rule: MaxVariance) -> Finding:
    """The rank of the reward in its group (1 is the best), against the number that a group keeps."""
    reward = evidence.column("reward")
    chosen = max_variance_subset(reward, evidence.groups, rule.keep)
    return Finding(evidence.rank(reward), ~chosen, float(rule.keep))


def best_only(evidence: Evidence, rule: BestOnly) -> Finding:
    """The rank of the reward in its group, against the last that is kept."""
    rank = evidence.rank(evidence.column("reward"))
    return Finding(rank, rank > rule.threshold, rule.threshold)


def signal_to_noise(evidence: Evidence, rule: SignalToNoise) -> Finding:
    """The deviation of the group's rewards over the graders' mean uncertainty of them.

    Unknown, and so kept, where no grader of the group says how sure it is, or all are certain.
    """
    noise = evidence.mean(evidence.column(f"uncertainty:{rule.grader or ''}"))
    spread = evidence.deviation(evidence.column("reward"))
    ratio = np.divide(spread, noise, out=np.full(len(evidence), np.nan), where=noise > 0)
    return Finding(ratio, ratio < rule.threshold, rule.threshold)


def oversample(evidence: Evidence, rule: Oversample) -> Finding:
    """The group's variance as a share of the largest (4 p (1 - p) for pass or fail): how moderate its difficulty is."""
    variance = evidence.deviation(evidence.column("reward")) ** 2
    share = variance / max(variance.max(initial=0.0), np.finfo(float).tiny)
    return Finding(share, np.zeros(len(evidence), dtype=bool), weight=1.0 + rule.strength * share)
