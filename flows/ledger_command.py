"""`posttrain ledger`: which rollouts fell to which rule, with their text."""

import json
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console

from flows.config import ROOT_VARIABLE, default_root
from flows.environment import embedded
from flows.tables import cell, number, rows_table
from storage import campaigns
from storage.artifacts import Artifact
from storage.campaigns import Campaign
from storage.errors import InputError
from storage.home import home

EXAMPLES, TEXT_CHARS = 2, 400
KEPT = "kept"


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(ledger)


def ledger(
    campaign: Annotated[str, typer.Argument(help="Name of the campaign.")],
    iteration: Annotated[int | None, typer.Option(min=1, help="The newest by default.")] = None,
    rule: Annotated[str | None, typer.Option(help="Only what fell to this rule; kept: what none dropped.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rollouts to show of the rule.")] = 20,
    root: Annotated[str | None, typer.Option(help=f"Of the campaign; ${ROOT_VARIABLE} by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")] = False,
) -> None:
    """Which rollouts of an iteration were dropped, by which rule, at what value, with their text."""
    where = root or default_root()
    if where.startswith("s3://"):
        embedded(home())
    known, made = _filtering(where, campaign, iteration)
    counts = rule_counts(made)
    if rule is not None and rule not in counts["rule"]:
        raise InputError(
            f"iteration {known} of {campaign}: no rollout fell to the rule {rule!r}; there are "
            + ", ".join(f"{row['rule']} ({row['rollouts']})" for row in counts.to_dicts())
        )
    shown = [rule] if rule else counts["rule"].to_list()
    found = {name: examples(made, name, limit if rule else EXAMPLES) for name in shown}
    if as_json:
        document = {"campaign": campaign, "iteration": known, "artifact": made.id, "rules": counts.to_dicts()}
        typer.echo(json.dumps(document | {"rollouts": found}, indent=1, ensure_ascii=False))
        return
    console = Console()
    console.print(rows_table(_counted(counts), title=f"{campaign}, iteration {known}: {made.id}"))
    for name, rows in found.items():
        _print_rollouts(console, name, rows, counts)


def rule_counts(filtering: Artifact) -> pl.DataFrame:
    """`rule, rollouts, lowest, highest, threshold` of a ledger: the kept ones first, then by number.

    `lowest` and `highest` are of the values that the rule measured on what fell to it.
    """
    return (
        filtering.scan("ledger")
        .group_by("rule")
        .agg(
            rollouts=pl.len(),
            lowest=pl.col("value").min(),
            highest=pl.col("value").max(),
            threshold=pl.col("threshold").first(),
        )
        .collect(engine="streaming")
        .sort(pl.col("rule") != KEPT, -pl.col("rollouts").cast(pl.Int64), "rule")
    )


def examples(filtering: Artifact, rule: str, limit: int) -> list[dict[str, Any]]:
    """The ledger's first rows of a rule with prompt, text and reward. Text is null where its rollout isn't stored."""
    rows = filtering.scan("ledger").filter(pl.col("rule") == rule).head(limit).collect()
    wanted = rows["rollout_id"].implode()
    columns = {"rollouts": ["rollout_id", "prompt_id", "text", "finish_reason"], "rewards": ["rollout_id", "reward"]}
    for table, names in columns.items():
        scans = [source.scan(table).select(names) for source in _inputs(filtering, table)]
        if scans:
            known = pl.concat(scans).filter(pl.col("rollout_id").is_in(wanted)).collect(engine="streaming")
            rows = rows.join(known.unique("rollout_id"), on="rollout_id", how="left", maintain_order="left")
    prompts = _prompts(filtering, rows)
    return [{**row, "prompt": prompts.get(row.get("prompt_id") or "")} for row in rows.to_dicts()]


def _filtering(root: str, campaign: str, iteration: int | None) -> tuple[int, Artifact]:
    """The iteration and what its filter made. Raises `InputError` naming the campaigns or iterations that exist."""
    names = campaigns.names(root)
    if campaign not in names:
        raise InputError(f"campaign {campaign!r}: unknown below {root}; there are {', '.join(names) or 'none'}")
    place = Campaign(root, campaign)
    filtered = [k for k in place.iterations() if k > 0]
    chosen = iteration if iteration is not None else max(filtered, default=None)
    if chosen not in filtered:
        asked = "no iteration is" if chosen is None else f"iteration {chosen} isn't"
        raise InputError(f"campaign {campaign!r}: {asked} committed below {root}; there are {filtered or 'none'}")
    step = place.state(chosen).steps.get("filtering")
    if step is None:
        raise InputError(f"campaign {campaign!r}: iteration {chosen} filtered nothing")
    return chosen, Artifact.at(root, step)


def _inputs(filtering: Artifact, table: str) -> list[Artifact]:
    """The artifacts that the filter read and that hold the table."""
    found = [Artifact.at(filtering.root, made) for made in dict.fromkeys(filtering.manifest.inputs.values())]
    return [each for each in found if table in each.manifest.tables]


def _prompts(filtering: Artifact, rows: pl.DataFrame) -> dict[str, str]:
    """The last turn of the rows' prompts, from the batches that were sampled."""
    if "prompt_id" not in rows.columns:
        return {}
    batches = [
        Artifact.at(filtering.root, each.manifest.inputs["batch"])
        for each in _inputs(filtering, "rollouts")
        if "batch" in each.manifest.inputs
    ]
    found: dict[str, str] = {}
    for batch in batches:
        last = pl.col("messages").list.last().struct.field("content").alias("prompt")
        known = batch.scan("batch").filter(pl.col("prompt_id").is_in(rows["prompt_id"].implode()))
        found |= dict(known.select("prompt_id", last).collect().iter_rows())
    return found


def _counted(counts: pl.DataFrame) -> list[dict[str, Any]]:
    total = counts["rollouts"].sum()
    return [
        {
            "rule": row["rule"],
            "rollouts": row["rollouts"],
            "share": f"{row['rollouts'] / total:.1%}",
            "value": _values(row),
            "threshold": "" if row["threshold"] is None else f"{row['threshold']:g}",
        }
        for row in counts.to_dicts()
    ]


def _values(row: dict[str, Any]) -> str:
    if row["lowest"] is None:
        return ""
    low, high = f"{row['lowest']:.4g}", f"{row['highest']:.4g}"
    return low if low == high else f"{low} to {high}"


def _print_rollouts(console: Console, rule: str, rows: list[dict[str, Any]], counts: pl.DataFrame) -> None:
    total = counts.filter(rule=rule)["rollouts"].item()
    console.print(f"\n[bold]{rule}[/], {len(rows)} of {total} rollouts", highlight=False)
    for row in rows:
        measured = "" if row["value"] is None else f", value {row['value']:.4g}"
        measured += "" if row["threshold"] is None else f", threshold {row['threshold']:g}"
        reward = "" if row.get("reward") is None else f", reward {number(row['reward'])}"
        console.print(f"  {row['rollout_id']}{reward}{measured}", highlight=False, soft_wrap=True, markup=False)
        if row.get("prompt"):
            console.print(f"    [dim]{cell(row['prompt'], TEXT_CHARS)}[/]", highlight=False, soft_wrap=True)
        console.print(
            f"    {cell(row.get('text'), TEXT_CHARS) or '(its text is gone)'}", highlight=False, soft_wrap=True
        )
