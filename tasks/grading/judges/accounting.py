"""What judging costs: tokens and dollars of a reply, and what a stage reports of its judges."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from tasks.grading.judges.judge import Reply

PER_MILLION = 1e-6
# As json.dumps writes it in a grade's detail. In a quoted text the quotation marks are escaped, so none is counted.
SUSPECTED = '"suspected_injection": true'


def dollars(reply: Reply, prices: tuple[float, float]) -> float:
    """The price of a reply, from dollars per million prompt and completion tokens; 0 where nobody counted tokens."""
    prompt_price, completion_price = prices
    tokens = (reply.prompt_tokens or 0) * prompt_price + (reply.completion_tokens or 0) * completion_price
    return tokens * PER_MILLION


def tokens_of(replies: Iterable[Reply]) -> dict[str, Any]:
    """Tokens of several replies, as a grade's detail holds them. Empty where nobody counted."""
    counted = [reply for reply in replies if reply.prompt_tokens is not None]
    if not counted:
        return {}
    return {
        "prompt_tokens": sum(reply.prompt_tokens or 0 for reply in counted),
        "completion_tokens": sum(reply.completion_tokens or 0 for reply in counted),
    }


def judge_metrics(grades: pl.LazyFrame, labels: list[str]) -> dict[str, float]:
    """Per judge: dollars spent, and the share of answers that look as if they spoke to it."""
    if not labels:
        return {}
    found = (
        grades.filter(pl.col("grader").cast(pl.String).is_in(labels))
        .group_by("grader")
        .agg(pl.col("cost").sum(), pl.col("detail").str.contains(SUSPECTED, literal=True).mean().alias("suspected"))
        .sort("grader")
        .collect()
    )
    metrics: dict[str, float] = {}
    for grader, cost, suspected in found.iter_rows():
        metrics |= {f"cost/{grader}": float(cost), f"suspected_injection/{grader}": float(suspected)}
    return metrics
