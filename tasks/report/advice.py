"""What the numbers of a campaign advise, by rules that stand here with their sources."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks._maths.reward_curve import CurveFit
from tasks._maths.trends import slope_t

RECENT, TREND = 3, 8
FEWEST_FOR_TREND = 4
# ScaleRL's asymptote moves by 0.02 between seeds (arXiv 2510.13786): a smaller gain can't be told from none.
GAIN_SEEN = 0.02
# GRESO aims at a quarter of groups without variance, a third of them too easy (arXiv 2506.02177).
TOO_EASY, TOO_HARD = 0.25 / 3, 0.5 / 3
# Proxy reward models order 60 to 75 % of held-out pairs as people did (arXiv 2310.02743).
PROXY_ACCURACY = 0.60
# Of fewer pairs the accuracy is known to no better than 9 points.
FEWEST_PAIRS = 30
# Above a tenth truncated precedes instability, below a twentieth is where to stay (arXiv 2510.13786).
TRUNCATED, UNSTABLE = 0.05, 0.10
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Advice:
    """What was found, and what to do about it; `rule` names the rule."""

    rule: str
    found: str
    do: str


@dataclass(frozen=True)
class Evidence:
    """The numbers that the rules read, a row per iteration, ascending."""

    spending: Rows
    rewards: Rows
    evaluations: Rows
    rollouts: Rows
    reward_models: Rows
    curve: CurveFit | None


def advise(evidence: Evidence) -> list[Advice]:
    """The advice of every rule that has something to say."""
    found = [rule(evidence) for rule in RULES]
    return [advice for advice in found if advice is not None]


def saturation(evidence: Evidence) -> Advice | None:
    """The curve's gain that is left, where the data reach past its middle."""
    fit = evidence.curve
    if fit is None or not fit.determined:
        return None
    left = f"{fit.gain_left.value:.3f} [{fit.gain_left.low:.3f}, {fit.gain_left.high:.3f}]"
    if fit.gain_left.high < GAIN_SEEN:
        return Advice(
            "rollouts are saturated",
            f"more rollouts of this kind gain at most {left} of held-out score, less than {GAIN_SEEN}",
            "change the prompts, the reward or the model, or take more samples per prompt, instead of more of the same",
        )
    if fit.gain_left.low >= GAIN_SEEN:
        return Advice("rollouts still pay", f"the curve has {left} of held-out score to gain", "go on as it is")
    return None


def too_easy(evidence: Evidence) -> Advice | None:
    """Groups whose every rollout is good."""
    share = _recent_share(evidence.spending, "even_high")
    if share is None or share <= TOO_EASY:
        return None
    return Advice(
        "prompts are too easy",
        f"{share:.0%} of the groups have nothing but good rollouts, above {TOO_EASY:.0%}",
        "retire prompts that are solved (select.retire_from), or add harder ones",
    )


def too_hard(evidence: Evidence) -> Advice | None:
    """Groups whose every rollout is bad."""
    share = _recent_share(evidence.spending, "even_low")
    if share is None or share <= TOO_HARD:
        return None
    return Advice(
        "prompts are too hard",
        f"{share:.0%} of the groups have nothing but bad rollouts, above {TOO_HARD:.0%}",
        "draw moderately difficult prompts more often, or take more samples of hard ones (select.samples_per_prompt)",
    )


def reward_model(evidence: Evidence) -> Advice | None:
    """A reward model that orders held-out pairs badly, or a reward that rises while the held-out score doesn't."""
    judged = [row for row in evidence.reward_models if "heldout_accuracy" in row]
    if not judged:
        return None
    newest = judged[-1]
    accuracy, pairs = newest["heldout_accuracy"], newest.get("heldout_pairs", FEWEST_PAIRS)
    more = "collect preferences on recent rollouts and train it again, or give it less weight"
    if pairs >= FEWEST_PAIRS and newest.get("heldout_accuracy_high", accuracy) < PROXY_ACCURACY:
        found = f"it orders {accuracy:.0%} of the held-out pairs rightly, below {PROXY_ACCURACY:.0%}"
        return Advice("the reward model is the bottleneck", found, more)
    reward = _trend(evidence.rewards, "reward_mean")
    score = _trend(evidence.evaluations, "mean_score")
    if reward is None or score is None or reward <= 2.0 or score >= 1.0:
        return None
    found = (
        f"the training reward rises ({reward:.1f} standard errors a night) and the held-out score doesn't "
        f"({score:.1f}): the policy learns what the reward model likes"
    )
    return Advice("the reward model is the bottleneck", found, more)


def truncation(evidence: Evidence) -> Advice | None:
    """Answers that the length limit cuts."""
    shares = [row["truncated_fraction"] for row in evidence.rollouts[-RECENT:] if "truncated_fraction" in row]
    share = float(np.mean(shares)) if shares else 0.0
    if share <= TRUNCATED:
        return None
    found = f"{share:.0%} of the rollouts are cut off, above {TRUNCATED:.0%}"
    found += "; above a tenth precedes instability" if share > UNSTABLE else ""
    return Advice(
        "answers are cut off", found, "raise rollouts.sampling.max_tokens, or punish length (filtering.overlong)"
    )


RULES: tuple[Callable[[Evidence], Advice | None], ...] = (saturation, too_easy, too_hard, reward_model, truncation)


def _recent_share(rows: Rows, column: str) -> float | None:
    """The share of the groups of the newest iterations that the column counts."""
    known = [row for row in rows[-RECENT:] if row.get(column) is not None and row.get("groups")]
    return sum(row[column] for row in known) / sum(row["groups"] for row in known) if known else None


def _trend(rows: Rows, metric: str) -> float | None:
    """The slope of the newest iterations in its standard errors; None of fewer than four."""
    values = [row[metric] for row in rows if metric in row][-TREND:]
    return slope_t(np.array(values)) if len(values) >= FEWEST_FOR_TREND else None
