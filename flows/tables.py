"""Tables for the terminal: a campaign's iterations in numbers, an artifact's rows, a size in bytes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from storage.artifacts import Manifest
from storage.campaigns import State

CELL_CHARS = 60
SHORT_ID_CHARS = 8


def iteration_rows(states: Iterable[State], manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """A row of numbers per iteration; None where a step wasn't part of it. Seconds are those of the stages."""
    rows = []
    for state in states:
        steps = {step: manifests[made] for step, made in state.steps.items() if made in manifests}
        metrics = {step: manifest.metrics for step, manifest in steps.items()}
        evaluation = metrics.get("evaluation", {})
        promoted = evaluation.get("promoted")
        rows.append(
            {
                "iteration": state.iteration,
                "reward": metrics.get("grading", {}).get("reward_mean"),
                "score": evaluation.get("mean_score"),
                "score_low": evaluation.get("mean_score_low"),
                "score_high": evaluation.get("mean_score_high"),
                "rollouts": metrics.get("rollouts", {}).get("rollouts"),
                "kept": metrics.get("filtering", {}).get("kept"),
                "promoted": None if promoted is None else bool(promoted),
                "seconds": {
                    step: round(manifest.duration_s, 2)
                    for step, manifest in steps.items()
                    if manifest.iteration == state.iteration
                },
                "policy": state.policy,
                "champion": state.champion,
                "reward_model": state.reward_model,
            }
        )
    return rows


def iteration_table(states: Iterable[State], manifests: Mapping[str, Manifest], *, title: str | None = None) -> Table:
    """What each iteration came to: reward, held-out score with its interval, kept rollouts, seconds in its stages."""
    table = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    table.add_column("iteration", justify="right")
    for name in ("reward", "held-out score [95 %]", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("promoted")
    table.add_column("seconds", justify="right")
    for row in iteration_rows(states, manifests):
        table.add_row(
            str(row["iteration"]),
            number(row["reward"]),
            score_text(row),
            _kept(row),
            {None: "", True: "yes", False: "no"}[row["promoted"]],
            f"{sum(row['seconds'].values()):.0f}",
        )
    return table


def seconds_table(states: Iterable[State], manifests: Mapping[str, Manifest], *, newest: int = 8) -> Table:
    """Seconds per stage, a column for each of the newest iterations; a stage that was found cost none."""
    rows = iteration_rows(states, manifests)[-newest:]
    table = Table(title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    table.add_column("seconds per stage")
    for row in rows:
        table.add_column(str(row["iteration"]), justify="right")
    steps = list(dict.fromkeys(step for row in reversed(rows) for step in row["seconds"]))
    for step in steps:
        table.add_row(step, *(f"{row['seconds'][step]:.1f}" if step in row["seconds"] else "" for row in rows))
    return table


def rows_table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Table:
    """Rows as they are, long values cut short."""
    table = Table(title=title, title_justify="left", header_style="bold", show_lines=False)
    for name in rows[0] if rows else []:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    return table


def cell(value: Any, chars: int = CELL_CHARS) -> str:
    """A value on one line of at most `chars` characters, with rich's markup made harmless."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list) and len(value) > 4 and all(isinstance(item, int | float) for item in value):
        text = f"[{', '.join(number(item) if isinstance(item, float) else str(item) for item in value[:4])}, ... "
        text += f"{len(value)} in all]"
    else:
        text = "" if value is None else str(value)
    text = text.replace("\n", "⏎ ")
    shown = text if len(text) <= chars else f"{text[: chars - 1]}…"
    return shown.replace("[", r"\[")


def number(value: float | None, digits: int = 3) -> str:
    """A number in the fewest characters that say enough; nothing for None."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) >= 1000 else f"{value:.{digits}f}"


def size_text(size_bytes: float) -> str:
    """Bytes with a fitting unit."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.2f} GiB"


def short_id(artifact_id: str) -> str:
    """`stage/` and the first digits of the fingerprint: enough for `posttrain show` and `lineage`."""
    stage, _, fingerprint = artifact_id.partition("/")
    return f"{stage}/{fingerprint[:SHORT_ID_CHARS]}"


def scorer_text(states: Sequence[State]) -> str:
    """The reward model in charge after the last of these states, and the iteration that trained it."""
    present = states[-1].reward_model
    if present is None:
        return ""
    since = next(state.iteration for state in states if state.reward_model == present)
    return f", reward model {short_id(present)} (of iteration {since})"


def score_text(row: Mapping[str, Any]) -> str:
    """A held-out score and its interval."""
    if row["score"] is None:
        return ""
    low, high = row["score_low"], row["score_high"]
    interval = rf" \[{number(low)}, {number(high)}]" if low is not None and high is not None else ""
    return f"{number(row['score'])}{interval}"


def _kept(row: Mapping[str, Any]) -> str:
    if row["kept"] is None:
        return ""
    total = f" of {row['rollouts']:.0f}" if row["rollouts"] is not None else ""
    return f"{row['kept']:.0f}{total}"
