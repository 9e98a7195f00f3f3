"""`posttrain plan`: what a budget buys, before it is spent."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from flows.budget import Budget, Request, plan_budget
from flows.config import ROOT_VARIABLE, RunConfig, default_root, load_config, parse_config
from flows.environment import embedded
from flows.measured import (
    Throughput,
    campaign_runs,
    newest_advice,
    pass_rates,
    pool_size,
    throughput,
    tracked_rows,
)
from storage import campaigns
from storage.campaigns import Campaign
from storage.errors import InputError
from storage.home import home
from tasks._maths.compute_optimal import BANDS, band_of
from tasks._maths.frontier import FEWEST_RECORDS, FEWEST_SIZES, Frontier, enough, record_points, refit

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bBmM])")


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(plan)


def plan(
    source: Annotated[str | None, typer.Argument(help="A run file or a campaign, for what it measured.")] = None,
    rollouts: Annotated[int | None, typer.Option(min=1, help="The budget in rollouts.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(min=0.001, help="The budget in hours of the machine.")] = None,
    usd: Annotated[float | None, typer.Option(min=0.01, help="The budget in dollars.")] = None,
    difficulty: Annotated[
        Literal["easy", "hard"] | None,
        typer.Option(help="easy: passes at 0.3 to 0.6; hard: at up to 1/16. By default as measured, else easy."),
    ] = None,
    model_size: Annotated[str | None, typer.Option(help="Such as 7B or 135M.")] = None,
    prompts_per_batch: Annotated[int | None, typer.Option(min=1, help="Instead of the advised batch.")] = None,
    tokens_per_rollout: Annotated[float | None, typer.Option(min=1, help="Instead of what was measured.")] = None,
    rollouts_per_second: Annotated[float | None, typer.Option(min=1e-6, help="Instead of what was measured.")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(min=0, help="Price of the machine.")] = None,
    own_fit: Annotated[bool, typer.Option("--refit", help="Fit n to your own runs in MLflow instead.")] = False,
    root: Annotated[str | None, typer.Option(help=f"Of the campaign; ${ROOT_VARIABLE} by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")] = False,
) -> None:
    """How to spend a budget: samples per prompt, prompts per batch, updates, learning rate, time and cost."""
    embedded(home())
    campaign, config = _subject(source, root)
    request = Request(
        rollouts=rollouts,
        gpu_hours=gpu_hours,
        usd=usd,
        difficulty=difficulty,
        size_b=_billions(model_size),
        prompts_per_batch=prompts_per_batch,
        pool=pool_size(campaign) if campaign else None,
        usd_per_hour=usd_per_hour,
    )
    speed = given_speed(throughput(campaign) if campaign else None, rollouts_per_second, tokens_per_rollout)
    rates = pass_rates(campaign) if campaign else None
    answer = plan_budget(request, speed, rates, _own_frontier(campaign, config) if own_fit else None)
    advice = newest_advice(campaign) if campaign else []
    if as_json:
        typer.echo(json.dumps(answer.document() | {"advice": advice}, indent=1))
        return
    console = Console()
    print_budget(answer, console)
    for each in advice:
        line = f"advice: {each['rule']}: {each['found']}; {each['do']}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def print_budget(budget: Budget, console: Console) -> None:
    """The answer for people."""

    def say(line: str, style: str | None = None) -> None:
        console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)

    cut, band = budget.allocation, band_of(budget.rollouts)
    say(f"budget {budget.rollouts:,.0f} rollouts, {budget.difficulty} prompts: {band.name}, {_range(band)}")
    say(f"  good for        {band.good_for}")
    say(f"  take            {cut.samples} samples per prompt (the fit says {cut.best_samples:.1f})")
    say(f"                  x {cut.prompts} prompts per batch x {cut.updates:,} updates")
    say(
        f"  learning rate   {budget.rates['full']:.2g} for all weights, {budget.rates['lora']:.2g} with LoRA: "
        f"1e-6 sqrt({cut.rollouts_per_update:,} / 1024), of a 7B model; small ones take more"
    )
    if budget.pass_rate is None:
        say(f"  informative     {budget.pass_rate_source}")
    else:
        say(f"  informative     mean pass rate {budget.pass_rate:.2f}, by {budget.pass_rate_source}")
    spent = [f"{budget.tokens:,.0f} tokens" if budget.tokens else "tokens unknown"]
    spent.append(f"{_hours(budget.hours)}" if budget.hours is not None else "time unknown")
    spent.append(f"{budget.usd:,.2f} dollars" if budget.usd is not None else "cost unknown: give --usd-per-hour")
    say(f"  takes           {', '.join(spent)} (speed: {budget.speed_source})")
    console.print(_fits_table(budget))
    if budget.informative:
        console.print(_informative_table(budget))
    for note in budget.notes:
        say(f"note: {note}")
    for warning in budget.warnings:
        say(f"warning: {warning}", "yellow")


def given_speed(measured: Throughput | None, per_s: float | None, tokens: float | None) -> Throughput | None:
    """What was measured, less what was given instead."""
    if per_s is None and tokens is None:
        return measured
    known = measured or Throughput(None, None, "")
    changed = replace(
        known, rollouts_per_s=per_s or known.rollouts_per_s, tokens_per_rollout=tokens or known.tokens_per_rollout
    )
    given = " and ".join(name for name, value in (("speed", per_s), ("length", tokens)) if value is not None)
    return replace(changed, source=f"{given} as given" + (f", the rest from {known.source}" if known.source else ""))


def _subject(source: str | None, root: str | None) -> tuple[Campaign | None, RunConfig | None]:
    """The campaign that a run file or a name means, and the file's configuration."""
    if source is None:
        return None, None
    if Path(source).suffix in (".yaml", ".yml"):
        config = load_config(Path(source), changes={"root": root} if root else None)
        return Campaign(config.resolved_root(), config.campaign), config
    where = root or default_root()
    known = campaigns.names(where)
    if source not in known:
        raise InputError(
            f"campaign {source!r}: unknown below {where}; there are {', '.join(known) or 'none'}. Or name a run file "
            "(.yaml)"
        )
    return Campaign(where, source), None


def _own_frontier(campaign: Campaign | None, config: RunConfig | None) -> Frontier:
    """The frontier of the tracked campaigns of this model. Raises `InputError` where they are too few."""
    if campaign is None:
        raise InputError("--refit needs a run file or a campaign: its MLflow experiment holds the runs")
    if config is None:
        config = parse_config(campaign.launch().config, f"the newest launch of {campaign.name}")
    from storage.tracking import open_tracker

    runs = open_tracker(config.tracking_uri(), config.tracking.experiment).iteration_runs()
    points = record_points(campaign_runs(tracked_rows(runs, config.model.path)))
    if not enough(points):
        found = ", ".join(f"n={samples}: {len(reward)}" for samples, (_, reward) in points.items()) or "none"
        raise InputError(
            f"--refit needs {FEWEST_SIZES} values of select.samples_per_prompt with {FEWEST_RECORDS} record-breaking "
            f"iterations each, of model {config.model.path} in experiment {config.tracking.experiment!r}; found "
            f"{found}. `posttrain fork` begins campaigns that differ in it"
        )
    return refit(points)


def _billions(text: str | None) -> float | None:
    if text is None:
        return None
    found = SIZE.fullmatch(text.strip())
    if not found:
        raise InputError(f"--model-size {text!r}: expected a size such as 7B or 135M")
    return float(found[1]) * (1.0 if found[2] in "bB" else 1e-3)


def _fits_table(budget: Budget) -> Table:
    table = Table(title="samples per prompt by fit", title_justify="left", header_style="bold", show_edge=False)
    for name in ("fit", "n", "in its range"):
        table.add_column(name, justify="left" if name == "fit" else "right")
    for row in budget.fits:
        known = row["samples"] is not None
        inside = {True: "yes", False: "no", None: ""}[row["in_range"]]
        table.add_row(row["label"], f"{row['samples']:.1f}" if known else "tokens unknown", inside)
    return table


def _informative_table(budget: Budget) -> Table:
    table = Table(title="groups that teach", title_justify="left", header_style="bold", show_edge=False)
    for name in ("samples", "P(informative)", "rollouts per informative group"):
        table.add_column(name, justify="right")
    for row in budget.informative:
        table.add_row(str(int(row["samples"])), f"{row['probability']:.3f}", f"{row['rollouts_per_group']:.1f}")
    return table


def _range(band: Any) -> str:
    if band is BANDS[0]:
        return f"below {BANDS[1].low:,}"
    return f"above {band.low:,}" if band is BANDS[-1] else f"{band.low:,} to {band.high:,}"


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
