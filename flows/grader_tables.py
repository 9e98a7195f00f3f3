"""What a grading artifact says of its graders, for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flows.tables import number

BLOCKS = " ▁▂▃▄▅▆▇█"
Rows = Sequence[Mapping[str, Any]]


def grader_table(rows: Rows) -> Table:
    """A row per grader: its scores' mean, deviation and middle 90 %, their histogram, failures, latency and cost."""
    table = Table(title="graders", title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    table.add_column("grader")
    for name in ("ok", "failed", "pending", "skipped", "mean", "std", "5 %", "50 %", "95 %", "passed"):
        table.add_column(name, justify="right")
    table.add_column("histogram", no_wrap=True)
    for name in ("p50 ms", "p95 ms", "cost"):
        table.add_column(name, justify="right")
    for row in rows:
        _, low, _, middle, _, high, _ = row["quantiles"] or [None] * 7
        numbers = [row["score_mean"], row["score_std"], low, middle, high, row["passed_fraction"]]
        seconds = [row[f"latency_{name}_s"] for name in ("p50", "p95")]
        table.add_row(
            row["grader"],
            *(str(row[name]) for name in ("ok", "failed", "pending", "skipped")),
            *(number(value) for value in numbers),
            f"{row['low']:g} {bars(row['histogram'])} {row['high']:g}",
            *("–" if value is None else f"{1000 * value:.3g}" for value in seconds),
            f"{row['cost']:g}",
        )
    return table


def bars(counts: Sequence[int]) -> str:
    """Counts as a line of blocks; whatever isn't 0 shows."""
    most = max(counts, default=0) or 1
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // most)] for count in counts)


def agreement_rows(rows: Rows) -> list[dict[str, Any]]:
    """Each two graders, on how many rollouts, Spearman's correlation and Cohen's kappa."""
    return [
        {
            "graders": f"{row['grader']}, {row['other']}",
            "rollouts": row["rollouts"],
            "Spearman": number(row["spearman"]),
            "kappa": number(row["kappa"]),
        }
        for row in rows
    ]
