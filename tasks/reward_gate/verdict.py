"""The verdict on a new reward model: one criterion after the other, each with its reason. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from storage.records import GateCriterion
from tasks.reward_gate.comparison import Checked, Comparison
from tasks.reward_gate.config import RewardGateConfig

CHANCE = 0.5


@dataclass(frozen=True)
class Case:
    """What the criteria look at: the candidate's check, the present one's (None: there is none) and both compared."""

    candidate: Checked
    incumbent: Checked | None
    comparison: Comparison | None
    config: RewardGateConfig

    def values(self, metric: str) -> tuple[float | None, float | None]:
        """A metric of the candidate and of the present one; None where it wasn't measured."""
        present = self.incumbent.metrics.get(metric) if self.incumbent else None
        return _finite(self.candidate.metrics.get(metric)), _finite(present)


@dataclass(frozen=True)
class Criterion:
    """A row of the table `gate`."""

    name: str
    candidate: float | None
    incumbent: float | None
    limit: float | None
    passed: bool
    why: str


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate grades from the next iteration on, by which criteria."""

    promoted: bool
    criteria: list[Criterion]
    why: str

    @property
    def frame(self) -> pl.DataFrame:
        """The `GateCriterion` frame."""
        rows = [{"position": index, **vars(each)} for index, each in enumerate(self.criteria)]
        return pl.DataFrame(rows, schema=GateCriterion.create_empty().schema)


def judge(case: Case) -> Verdict:
    """Promoted when every criterion holds; the first reward model always where the configuration says so."""
    criteria = [criterion(case) for criterion in CRITERIA.values()]
    failed = [each for each in criteria if not each.passed]
    let_in = case.incumbent is None and case.config.first == "always"
    if not failed:
        return Verdict(True, criteria, "every criterion holds")
    reasons = "; ".join(f"{each.name}: {each.why}" for each in failed)
    if let_in:
        return Verdict(
            True, criteria, f"the first reward model grades whatever its check says (reward_gate.first): {reasons}"
        )
    return Verdict(False, criteria, reasons)


def enough_pairs(case: Case) -> Criterion:
    """Enough held-out pairs to know anything."""
    limit = case.config.min_pairs
    if case.comparison is None:
        count, what = int(case.values("pairs")[0] or 0), "held-out pairs"
    else:
        count, what = case.comparison.pairs, "held-out pairs that both judged and neither trained on"
        if case.comparison.left_out:
            what += f" ({case.comparison.left_out} more trained the present one)"
    why = f"{count} {what}, at least {limit} are needed"
    return Criterion("heldout_pairs", float(count), None, float(limit), count >= limit, why)


def accuracy(case: Case) -> Criterion:
    """Above chance for the first one; for a candidate not worse than the present one (non-inferiority, paired)."""
    return (
        _above_chance(case) if case.comparison is None else _not_worse(case.comparison, case.config.max_accuracy_loss)
    )


def _above_chance(case: Case) -> Criterion:
    limit = CHANCE + case.config.min_over_chance
    found = case.values("heldout_accuracy")[0]
    low, high = (case.values(f"heldout_accuracy_{end}")[0] for end in ("low", "high"))
    if found is None or low is None:
        return Criterion("accuracy", found, None, limit, False, "it wasn't measured: there are no held-out pairs")
    until = f", {high:.3f}" if high is not None else ""
    why = f"accuracy {found:.3f} with interval [{low:.3f}{until}], which must lie above {limit:g}"
    return Criterion("accuracy", found, None, limit, low > limit, why)


def _not_worse(compared: Comparison, loss: float) -> Criterion:
    difference = compared.difference
    if difference is None:
        why = "the held-out pairs are of fewer than two prompt clusters: the difference has no interval"
        return Criterion("accuracy", _finite(compared.candidate), _finite(compared.incumbent), -loss, False, why)
    passed = difference.low >= -loss and difference.high >= 0
    interval = f"{difference.estimate:+.3f} with interval [{difference.low:+.3f}, {difference.high:+.3f}]"
    why = (
        f"accuracy {compared.candidate:.3f} after {compared.incumbent:.3f} on the same {compared.pairs} pairs: "
        f"difference {interval}, which must lie above {-loss:g} and not wholly below 0"
    )
    return Criterion("accuracy", compared.candidate, compared.incumbent, -loss, passed, why)


def gap(case: Case) -> Criterion:
    """The mean absolute gap to people's scores, where there are such scores."""
    found, before = case.values("gap_mae")
    if found is None:
        return Criterion("gap", None, before, None, True, "no absolute scores by people among the held-out pairs")
    limits = [case.config.max_gap] if case.config.max_gap is not None else []
    limits += [case.config.max_gap_ratio * before] if before is not None else []
    if not limits:
        return Criterion("gap", found, before, None, True, f"mean absolute gap {found:.3f}; nothing to compare it with")
    limit = min(limits)
    after = f" after {before:.3f}" if before is not None else ""
    why = f"mean absolute gap {found:.3f}{after}, at most {limit:.3f} is allowed"
    return Criterion("gap", found, before, limit, found <= limit, why)


def length_bias(case: Case) -> Criterion:
    """Correlation of score and length at fixed quality: beyond the limit by more than its interval grants."""
    found, before = case.values("length_correlation")
    limit = max(case.config.max_length_correlation, abs(before or 0.0))
    if found is None:
        return Criterion("length_bias", None, before, limit, True, "it wasn't measured")
    low, high = (case.values(f"length_correlation_{end}")[0] for end in ("low", "high"))
    sure = nearest_to_zero(found if low is None else low, found if high is None else high)
    after = f" after {before:+.3f}" if before is not None else ""
    why = f"correlation with length {found:+.3f}{after}, {sure:.3f} of it sure; at most {limit:.3f} is allowed"
    return Criterion("length_bias", found, before, limit, sure <= limit, why)


def anchors(case: Case) -> Criterion:
    """The share of the anchor pairs that it has right, where the run file names such pairs."""
    found, before = case.values("anchor_agreement")
    if found is None:
        return Criterion("anchors", None, before, None, True, "the run file names no anchors")
    kept = before - case.config.max_anchor_loss if before is not None else 0.0
    limit = max(case.config.min_anchor_agreement, kept)
    after = f" after {before:.3f}" if before is not None else ""
    why = f"{found:.3f} of the anchor pairs right{after}, at least {limit:.3f} are needed"
    return Criterion("anchors", found, before, limit, found >= limit, why)


def nearest_to_zero(low: float, high: float) -> float:
    """The smallest size of what lies in an interval."""
    return max(low, -high, 0.0)


CRITERIA: dict[str, Callable[[Case], Criterion]] = {
    "heldout_pairs": enough_pairs,
    "accuracy": accuracy,
    "gap": gap,
    "length_bias": length_bias,
    "anchors": anchors,
}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
