"""From the gathered content to one HTML page that loads nothing: style, figures and Plotly itself are in it."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tasks.report.figures import figures
from tasks.report.gather import Content
from tasks.report.plotting import finite

FOLDER = Path(__file__).parent
MINUTE_S = 60.0


def render(content: Content) -> str:
    """The page. All text of prompts, answers and names is escaped."""
    drawn = figures(content)
    return (
        _environment()
        .get_template("page.html")
        .render(
            content=content,
            headline=headline(content),
            iterations=iteration_rows(content),
            figures=[figure for figure in drawn if not figure.small],
            training=[figure for figure in drawn if figure.small],
            figures_json=embedded_json({figure.key: figure.spec for figure in drawn}),
            style=_trusted("page.css"),
            script=_trusted("page.js"),
            plotly=Markup(get_plotlyjs()),
        )
    )


def headline(content: Content) -> dict[str, Any]:
    """The first and the last held-out score, which policy is the champion, and how much work it was."""
    scored = [row for row in content.evaluations if finite(row.get("mean_score")) is not None]
    promoted = [row for row in scored if row.get("promoted") == 1]
    judged = promoted or scored[:1]
    trained = [row["iteration"] for row in content.rollouts]
    return {
        "first": scored[0] if scored else None,
        "last": scored[-1] if len(scored) > 1 else None,
        "champion": judged[-1] if judged else None,
        "iterations": len(trained) or len(content.iterations),
        "rollouts": sum(finite(row.get("rollouts")) or 0 for row in content.rollouts),
        "tokens": sum(finite(row.get("tokens")) or 0 for row in content.rollouts),
        "seconds": float(content.seconds["seconds"].sum()),
    }


def iteration_rows(content: Content) -> list[dict[str, Any]]:
    """What each iteration came to, in one row of numbers."""
    rollouts, rewards = _by_iteration(content.rollouts), _by_iteration(content.rewards)
    evaluations = _by_iteration(content.evaluations)
    kept = dict(content.decisions.filter(rule="kept").select("iteration", "count").rows())
    seconds = dict(content.seconds.group_by("iteration").agg(pl.col("seconds").sum()).rows())
    rows = []
    for iteration in content.iterations:
        made, judged = rollouts.get(iteration, {}), evaluations.get(iteration, {})
        rows.append(
            {
                "iteration": iteration,
                "score": judged,
                "pass_at_1": finite(judged.get("pass_at_1")),
                "reward": finite(rewards.get(iteration, {}).get("reward_mean")),
                "rollouts": finite(made.get("rollouts")),
                "kept": kept.get(iteration),
                "length": finite(made.get("length_mean")),
                "truncated": finite(made.get("truncated_fraction")),
                "tokens_per_s": finite(made.get("tokens_per_s")),
                "seconds": seconds.get(iteration),
            }
        )
    return rows


def embedded_json(value: Any) -> Markup:
    """JSON that can stand in a script element whatever text it holds."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def number(value: float | None, digits: int = 3) -> str:
    """A number for reading; a dash for None."""
    return "–" if finite(value) is None else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """A share of one as a percentage; a dash for None."""
    return "–" if finite(share) is None else f"{100 * (share or 0):.1f} %"


def interval(row: Mapping[str, Any], name: str = "mean_score") -> str:
    """The interval of a metric, in brackets; nothing when it has none."""
    low, high = finite(row.get(f"{name}_low")), finite(row.get(f"{name}_high"))
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def duration(seconds: float | None) -> str:
    """Seconds for reading."""
    if seconds is None:
        return "–"
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / MINUTE_S), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _by_iteration(rows: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {row["iteration"]: row for row in rows}


def _trusted(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "interval": interval, "duration": duration}
    return environment
