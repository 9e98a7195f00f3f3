"""`posttrain reward-model`: refit heads from stored states, and say how good they are. Nothing is written."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import polars as pl
import typer
from rich.console import Console

from flows.config import ROOT_VARIABLE, RunConfig, default_root, load_config, parse_config
from flows.environment import embedded
from flows.tables import rows_table
from storage.artifacts import Artifact
from storage.campaigns import Campaign
from storage.errors import InputError
from storage.fingerprints import derive_seed
from storage.home import home
from tasks.frozen_heads.config import FrozenHeadsConfig
from tasks.pair_quality.config import PairQualityConfig

if TYPE_CHECKING:
    from tasks.frozen_heads.fitting import Fitted
    from tasks.pair_quality.quality import JudgedPairs

RUN_FILES = (".yaml", ".yml")
STATES = "states"
SEED = "rm"  # as the iteration seeds it: the same settings give the same heads again


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command("reward-model")(reward_model)


def reward_model(
    campaign: Annotated[str, typer.Argument(help="Name of a campaign, or a run file: its campaign, its settings.")],
    iteration: Annotated[int | None, typer.Option(min=1, help="The newest with stored states by default.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, over a run file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw the learning curve in.")] = None,
    root: Annotated[str | None, typer.Option(help=f"Of the campaign; ${ROOT_VARIABLE} by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")] = False,
) -> None:
    """Refit heads, ensemble, label quality and learning curve from stored states, in seconds. Nothing is written."""
    asked = _asked(campaign, settings, root)
    if asked.root.startswith("s3://"):
        embedded(home())
    found, states = _states(asked, iteration)
    started = time.perf_counter()
    fitted, judged = refitted(states, asked.heads, asked.quality, derive_seed(asked.seed, found, SEED))
    seconds = time.perf_counter() - started
    if picture is not None and fitted.curve is not None:
        from tasks.frozen_heads.picture import draw_curve

        draw_curve(fitted.learning_curve, fitted.curve, picture)
    tables = _tables(fitted, judged)
    verdict = fitted.curve.verdict if fitted.curve is not None else None
    if as_json:
        document = {"campaign": asked.campaign, "iteration": found, "states": states.id, "seconds": seconds}
        document |= {"metrics": fitted.metrics, "verdict": verdict}
        typer.echo(json.dumps(document | {name: rows.to_dicts() for name, rows in tables.items()}, indent=1))
        return
    _print(Console(), f"{asked.campaign}, iteration {found}: {states.id}, {seconds:.1f} s", fitted, tables, verdict)


class _Asked(NamedTuple):
    campaign: str
    root: str
    seed: int
    heads: FrozenHeadsConfig
    quality: PairQualityConfig | None


def refitted(
    states: Artifact, heads: FrozenHeadsConfig, quality: PairQualityConfig | None, seed: int
) -> tuple["Fitted", "JudgedPairs"]:
    """The heads and the quality of the labels, from an artifact of states and the preferences that it was read of.

    The labels are judged in any case; the heads follow that where `quality` is configured, as in a run.
    """
    from tasks._training.stored_pairs import read_stored
    from tasks.frozen_heads.fitting import fit_heads
    from tasks.pair_quality.quality import judge_pairs

    preferences = Artifact.at(states.root, states.manifest.inputs["preferences"])
    judged = judge_pairs(
        read_stored(preferences, states), quality or PairQualityConfig(), seed=derive_seed(seed, "quality")
    )
    stored = read_stored(preferences, states, smoothing=heads.smoothing)
    return fit_heads(stored, heads, seed=seed, quality=judged.quality if quality else None), judged


def _asked(name: str, settings: list[str] | None, root: str | None) -> _Asked:
    if name.endswith(RUN_FILES):
        config = load_config(Path(name), settings)
        return _of(config, root or config.resolved_root())
    if settings:
        raise InputError("--set changes a run file: name the file instead of the campaign")
    where = root or default_root()
    if where.startswith("s3://"):
        embedded(home())
    launched = Campaign(where, name).launch()
    return _of(parse_config(launched.config, f"the newest launch of {name}"), where)


def _of(config: RunConfig, root: str) -> _Asked:
    return _Asked(config.campaign, root, config.seed, config.frozen_heads or FrozenHeadsConfig(), config.pair_quality)


def _states(asked: _Asked, iteration: int | None) -> tuple[int, Artifact]:
    place = Campaign(asked.root, asked.campaign)
    with_states = {k: state.steps[STATES] for k in place.iterations() if STATES in (state := place.state(k)).steps}
    chosen = iteration if iteration is not None else max(with_states, default=None)
    if chosen is None or chosen not in with_states:
        raise InputError(
            f"campaign {asked.campaign!r} below {asked.root}: no stored states of "
            f"{'any iteration' if iteration is None else f'iteration {iteration}'}, there are those of "
            f"{sorted(with_states) or 'none'}; frozen_heads or pair_quality in the run file makes them"
        )
    return chosen, Artifact.at(asked.root, with_states[chosen])


def _tables(fitted: "Fitted", judged: "JudgedPairs") -> dict[str, pl.DataFrame]:
    curve = fitted.learning_curve.group_by("size").agg(
        pl.col("pairs").mean(), pl.col("accuracy").mean(), deviation=pl.col("accuracy").std(), runs=pl.len()
    )
    actions = judged.quality.group_by("action").agg(
        pairs=pl.len(), strength=pl.col("strength").mean(), deviation=pl.col("deviation").mean()
    )
    return {
        "cross_validation": fitted.cross_validation,
        "learning_curve": curve.sort("size").drop("size"),
        "label_quality": actions.sort("action").cast({"action": pl.String}),
        "strength_deciles": judged.deciles.cast({"ordered_by": pl.String}),
    }


def _print(
    console: Console, title: str, fitted: "Fitted", tables: dict[str, pl.DataFrame], verdict: str | None
) -> None:
    metrics: dict[str, Any] = {name: value for name, value in fitted.metrics.items() if not name.startswith("cv_by")}
    console.print(rows_table([metrics], title=title))
    for name, rows in tables.items():
        if len(rows):
            console.print(rows_table(rows.to_dicts(), title=name.replace("_", " ")))
    if verdict is not None:
        console.print(verdict, highlight=False, soft_wrap=True)
