"""The command `posttrain`. Heavy packages are imported by the commands that need them."""

import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows import (
    budget_command,
    grade_command,
    inspect_commands,
    label_command,
    ledger_command,
    reward_model_command,
)
from flows.config import CAMPAIGN_PATTERN, RunConfig, default_root, load_config
from flows.environment import embedded
from flows.steps import committed_state
from storage.campaigns import Campaign
from storage.disk import check_room, is_full
from storage.errors import CampaignConflict, InputError, PosttrainError, StageFailed
from storage.home import home
from storage.store import check_reachable

DONE, BAD_INPUT, STAGE_FAILED, CONFLICT = 0, 2, 3, 4
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
inspect_commands.register(app)
grade_command.register(app)
budget_command.register(app)
ledger_command.register(app)
reward_model_command.register(app)
label_command.register(app)
console = Console()
errors = Console(stderr=True)

ConfigFile = Annotated[Path, typer.Argument(help="run file in YAML, such as deployments/quickstart.yaml")]
Root = Annotated[str | None, typer.Option(help="folder or s3://bucket/prefix of the artifacts")]
Iterations = Annotated[int | None, typer.Option(help="iterations to have in the end")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value, over the run file; may be repeated")]
Seed = Annotated[int | None, typer.Option(help="seed of everything that is drawn")]


@app.callback()
def describe() -> None:
    """Post-training that gets better every night: curate, roll out, grade, filter, train, evaluate, in a loop."""


@app.command()
def check(
    config: ConfigFile,
    root: Root = None,
    iterations: Iterations = None,
    settings: Settings = None,
    seed: Seed = None,
) -> None:
    """Validate a run file, resolve it and print the plan. Nothing is run."""
    checked = _configured(config, root, iterations, settings, seed)
    embedded(home())
    from flows.plan import print_plan

    print_plan(checked, console)


@app.command()
def schema() -> None:
    """Print the JSON schema of a run file, for editors."""
    import json

    console.print_json(json.dumps(RunConfig.model_json_schema()))


@app.command()
def algorithms() -> None:
    """List the algorithms that a run file can name."""
    from rich.table import Table

    from flows.algorithms import ALGORITHMS

    table = Table("algorithm", "what it does", "source")
    for name, algorithm in ALGORITHMS.items():
        table.add_row(name, algorithm.summary, algorithm.source)
    console.print(table)


@app.command()
def run(
    config: ConfigFile,
    root: Root = None,
    iterations: Iterations = None,
    settings: Settings = None,
    seed: Seed = None,
) -> None:
    """Run a campaign to its number of iterations, from wherever it was left."""
    checked = _configured(config, root, iterations, settings, seed)
    check_room(home())
    embedded(home())
    from flows.plan import check_inputs
    from flows.summary import print_summary

    check_inputs(checked)
    from flows.post_training import post_training

    state = post_training(checked)
    print_summary(checked, state, console)


@app.command()
def rerun(
    campaign: Annotated[str, typer.Argument(help="name of the campaign")],
    iteration: Annotated[int, typer.Argument(help="the iteration, from 1; 0 is the base model's evaluation")],
    stage: Annotated[str, typer.Argument(help="the stage, such as grading or evaluation-rollouts")],
    force: Annotated[bool, typer.Option("--force", help="make it again though it exists")] = False,
    root: Root = None,
) -> None:
    """Run a single stage of an iteration again, and nothing else."""
    embedded(home())
    place = Campaign(root or default_root(), campaign)
    check_reachable(place.root)
    committed_state(place, iteration, stage)
    from flows.rerun_stage import rerun_stage

    console.print(rerun_stage(campaign, iteration, stage, force, place.root))


@app.command()
def fork(
    campaign: Annotated[str, typer.Argument(help="the campaign to go on from")],
    iteration: Annotated[int, typer.Argument(help="the last iteration that both have in common; 0: the base")],
    name: Annotated[str, typer.Argument(help="the new campaign")],
    root: Root = None,
) -> None:
    """Begin a campaign with another's first iterations, to go on from there in another way.

    With another algorithm, the next iteration finds the rollouts and grades of the first campaign's.
    """
    if not re.fullmatch(CAMPAIGN_PATTERN, name):
        raise InputError(f"campaign {name!r}: expected lower-case letters, digits, - and _")
    place = Campaign(root or default_root(), campaign)
    check_reachable(place.root)
    place.fork(name, iteration)
    console.print(
        f"campaign {name} has {campaign}'s iterations up to {iteration}. Go on, for example:\n"
        f"posttrain run FILE --set campaign={name} --set algorithm=dapo --iterations {iteration + 1}",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def up(
    prefect_port: Annotated[int, typer.Option(help="0 takes any free one")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="0 takes any free one")] = 5000,
    s3_port: Annotated[int, typer.Option(help="0 takes any free one")] = 8333,
    deployments: Annotated[Path, typer.Option(help="folder with prefect.yaml")] = Path("deployments"),
) -> None:
    """Start the Prefect server, MLflow, SeaweedFS and a worker on loopback; register the deployments."""
    from flows.services.lifecycle import up as start
    from flows.services.running import Ports

    ports = Ports(prefect=prefect_port, mlflow=mlflow_port, s3=s3_port)
    running = start(home=home(), ports=ports, echo=console.print, deployments=deployments)
    for name, address in [("Prefect", running.prefect_url), ("MLflow", running.mlflow_url), ("S3", running.url("s3"))]:
        console.print(f"{name:<9} {address}", soft_wrap=True)
    if running.s3:
        console.print(f"root      s3://{running.s3.bucket}/runs (--root; its credentials are found by themselves)")


@app.command()
def down() -> None:
    """End what `up` started, and nothing else."""
    from flows.services.lifecycle import down as end

    for line in end(home()) or ["nothing was up"]:
        console.print(line)


def _configured(
    path: Path, root: str | None, iterations: int | None, settings: list[str] | None, seed: int | None
) -> RunConfig:
    options: dict[str, Any] = {"root": root, "iterations": iterations, "seed": seed}
    given = {key: value for key, value in options.items() if value is not None}
    if iterations is not None:
        given["iterations_per_run"] = None
    return load_config(path, settings, given)


def guarded(command: Callable[[], None]) -> int:
    """Run the command line; each kind of failure gets one clear line and its exit code."""
    try:
        command()
    except InputError as error:
        return _say(error, BAD_INPUT)
    except CampaignConflict as error:
        return _say(error, CONFLICT)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        errors.print("stopped; what was committed stays, run again to continue")
        return 130
    except Exception as error:  # noqa: BLE001 - the outermost boundary: anything else is a stage's failure
        return _say_failure(error)
    return DONE


def _say_failure(error: Exception) -> int:
    if is_full(error, home()):
        line = f"no space left on the disk of {home()} or of the root ({_first_line(error)})"
        return _say(StageFailed(f"{line}. What was committed stays: free some, then run again"), STAGE_FAILED)
    if not isinstance(error, PosttrainError):
        traceback.print_exc()
    return _say(error, STAGE_FAILED)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _say(error: BaseException, code: int) -> int:
    where = "".join(f" ({note})" for note in getattr(error, "__notes__", [])[:1])
    errors.print(f"posttrain: {error}{where}", style="bold red", highlight=False, markup=False, soft_wrap=True)
    return code


def main() -> None:
    """The entry point of the command `posttrain`."""
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
