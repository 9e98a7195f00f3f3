"""`posttrain status`, `show`, `lineage` and `gc`: what they print, and JSON that parses."""

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from flows.inspect_commands import register
from flows.tables import iteration_table
from storage.artifacts import Artifact, Outputs
from storage.campaigns import Campaign, Launch, State
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.fingerprints import digest
from storage.lineage import read_manifests


def commit(root: str, folder: Path, iteration: int, step: str, outputs: Outputs, *inputs: Artifact) -> Artifact:
    artifact = Artifact(root=root, stage=step, fingerprint=digest([step, iteration]))
    named = {each.stage: each.id for each in inputs}
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    recipe = Recipe(artifact, step, 1, {"rate": 0.1}, named, 3, "nightly", iteration, "mlflow-run")
    commit_outputs(recipe, Attempt(datetime.now(UTC), scratch, "flow-run"), outputs)
    return artifact


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A campaign with iterations 0 and 1 committed and iteration 2 under way."""
    root = str(tmp_path / "root")
    campaign = Campaign(root, "nightly")
    started = datetime(2026, 5, 1, 22, 0, tzinfo=UTC)
    campaign.record_launch(Launch(launch_id="20260501T220000-aa", campaign="nightly", started_at=started, config={}))
    score = {"mean_score": 0.25, "mean_score_low": 0.2, "mean_score_high": 0.3, "promoted": 1.0}
    first = {"evaluation": commit(root, tmp_path, 0, "evaluation", Outputs(metrics=score))}
    steps = pl.DataFrame([{"step": i, "metric": "loss", "value": float("nan") if i == 1 else 0.5} for i in range(7)])
    rollouts = commit(root, tmp_path, 1, "rollouts", Outputs(metrics={"rollouts": 256.0}))
    grading = commit(root, tmp_path, 1, "grading", Outputs(metrics={"reward_mean": 0.31}), rollouts)
    filtering = commit(root, tmp_path, 1, "filtering", Outputs(metrics={"kept": 168.0}), rollouts, grading)
    update = commit(root, tmp_path, 1, "policy_update", Outputs(steps=steps), filtering)
    better = score | {"mean_score": 0.375, "mean_score_low": 0.325, "mean_score_high": 0.425, "promoted": 0.0}
    second = {each.stage: each for each in (rollouts, grading, filtering, update)}
    second["evaluation"] = commit(root, tmp_path, 1, "evaluation", Outputs(metrics=better), update)
    for iteration, made in enumerate((first, second)):
        campaign.commit(
            State(
                campaign="nightly",
                iteration=iteration,
                policy=update.id,
                champion=update.id,
                champion_evaluation=made["evaluation"].id,
                steps={step: each.id for step, each in made.items()},
            )
        )
    commit(root, tmp_path, 2, "rollouts", Outputs(metrics={"rollouts": 8.0}))
    begun = Path(root, "artifacts", "grading", digest("begun"))
    begun.mkdir()
    (begun / "grades-00000-dead.parquet").write_bytes(b"cut off")
    return root


def invoke(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Standard output of a command; what it raised is raised."""
    app = typer.Typer(pretty_exceptions_enable=False)
    register(app)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb", **(env or {})})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_status_has_the_iterations_and_what_is_under_way(root):
    text = invoke("status", "--root", root)
    assert "0.250 [0.200, 0.300]" in text and "0.375 [0.325, 0.425]" in text
    assert "168 of 256" in text and "0.310" in text
    assert "20260501T220000-aa, begun 2026-05-01 22:00:00" in text
    assert "iteration 2, not committed yet: rollouts" in text
    assert f"begun, not committed: grading/{digest('begun')}" in text


def test_status_as_json(root):
    found = json.loads(invoke("status", "nightly", "--root", root, "--json"))
    last = found["iterations"][-1]
    assert (last["reward"], last["score"], last["score_low"], last["score_high"]) == (0.31, 0.375, 0.325, 0.425)
    assert (last["kept"], last["rollouts"], last["promoted"]) == (168, 256, False)
    assert set(last["seconds"]) == {"rollouts", "grading", "filtering", "policy_update", "evaluation"}
    assert found["in_flight"]["uncommitted"] == [f"grading/{digest('begun')}"]
    assert [each["step"] for each in found["in_flight"]["steps_done"]] == ["rollouts"]


def test_status_without_a_name_lists_several(root):
    Campaign(root, "other").record_launch(
        Launch(launch_id="x", campaign="other", started_at=datetime.now(UTC), config={})
    )
    found = json.loads(invoke("status", "--root", root, "--json"))
    assert [each["campaign"] for each in found["campaigns"]] == ["nightly", "other"]
    assert "other" in invoke("status", "--root", root)
    alone = json.loads(invoke("status", "other", "--root", root, "--json"))
    assert alone["iterations"] == [] and alone["in_flight"]["launch"]["launch_id"] == "x"


def test_status_of_nothing_says_so(root, tmp_path):
    with pytest.raises(InputError, match="nightly"):
        invoke("status", "missing", "--root", root)
    with pytest.raises(InputError, match="no campaign below"):
        invoke("status", "--root", str(tmp_path / "empty"))


def test_root_comes_from_the_environment(root):
    assert "168 of 256" in invoke("status", env={"POSTTRAIN_ROOT": root})


def test_show_takes_a_beginning_and_prints_manifest_and_rows(root):
    fingerprint = digest(["policy_update", 1])
    text = invoke("show", fingerprint[:8], "--root", root)
    assert f"policy_update/{fingerprint}" in text
    assert "nightly, iteration 1" in text and "mlflow-run" in text and f"filtering/{digest(['filtering', 1])}" in text
    assert "steps: 5 of 7 rows" in text
    found = json.loads(invoke("show", fingerprint, "--rows", "7", "--table", "steps", "--root", root, "--json"))
    assert found["manifest"]["config"] == {"rate": 0.1}
    assert [row["value"] for row in found["rows"]] == [0.5, None, 0.5, 0.5, 0.5, 0.5, 0.5]
    with pytest.raises(InputError, match="no table 'rollouts'"):
        invoke("show", fingerprint, "--table", "rollouts", "--root", root)


def test_show_of_an_artifact_without_tables(root):
    assert "reward_mean 0.31" in invoke("show", f"grading/{digest(['grading', 1])}", "--root", root)


def test_show_of_grades_tells_of_the_graders(root, tmp_path):
    summary = {
        "grader": "haiku",
        "rollouts": 8,
        "ok": 6,
        "failed": 2,
        "pending": 0,
        "skipped": 0,
        "score_mean": 0.41,
        "score_std": 0.2,
    }
    summary |= {"passed_fraction": 0.25, "quantiles": [0.0, 0.1, 0.2, 0.4, 0.6, 0.9, 1.0], "low": 0.0, "high": 1.0}
    summary |= {"histogram": [4, 0, 1, 1], "latency_p50_s": 0.002, "latency_p95_s": 0.0045, "cost": 1.5}
    agreement = {"grader": "haiku", "other": "judge", "rollouts": 6, "spearman": 0.622, "kappa": 0.5}
    tables = {"grader_summary": pl.DataFrame([summary]), "grader_agreement": pl.DataFrame([agreement])}
    made = commit(root, tmp_path, 4, "grading", Outputs(**tables))
    text = " ".join(invoke("show", made.id, "--root", root).replace("│", " ").split())
    assert "haiku 6 2 0 0 0.410 0.200 0.100 0.400 0.900 0.250 0 █ ▂▂ 1 2 4.5 1.5" in text
    assert "haiku, judge 6 0.622 0.500" in text
    found = json.loads(invoke("show", made.id, "--root", root, "--json"))
    assert found["grader_summary"][0]["histogram"] == [4, 0, 1, 1]
    assert found["grader_agreement"][0]["spearman"] == 0.622


def test_lineage_as_a_tree_and_as_json(root):
    update = f"policy_update/{digest(['policy_update', 1])}"
    text = invoke("lineage", update, "--root", root)
    up, down = text.split("was made into")
    short = {step: f"{step}/{digest([step, 1])[:8]}" for step in ("rollouts", "grading", "filtering", "evaluation")}
    assert all(short[step] in up for step in ("rollouts", "grading", "filtering"))
    assert short["evaluation"] in down and short["evaluation"] not in up
    assert "MLflow run mlflow-run" in up and "Prefect flow run flow-run" in up
    found = json.loads(invoke("lineage", update, "--root", root, "--json"))
    assert found["downstream"] == [f"evaluation/{digest(['evaluation', 1])}"]
    assert found["upstream"][0] == f"filtering/{digest(['filtering', 1])}"
    assert "nightly" in invoke("lineage", "nightly/1", "--root", root)


def test_gc_removes_only_on_demand_and_only_the_old(root):
    orphan = Path(root, "artifacts", "grading", digest("begun"), "grades-00000-dead.parquet")
    assert "0 files removed" in invoke("gc", "--root", root)
    assert "1 files would be removed" in invoke("gc", "--dry-run", "--older-than", "0", "--root", root)
    assert orphan.exists()
    assert "1 files removed" in invoke("gc", "--older-than", "0", "--root", root)
    assert not orphan.exists()
    assert "168 of 256" in invoke("status", "--root", root)


def test_markup_in_stored_text_is_harmless(root, tmp_path):
    commit(root, tmp_path, 3, "note", Outputs(metrics={"[red]x[/red]": 1.0}, facts={}))
    assert "[red]x[/red] 1.0000" in invoke("show", f"note/{digest(['note', 3])}", "--root", root)


def test_iteration_table_of_a_state_without_steps_or_manifests(root):
    campaign = Campaign(root, "nightly")
    bare = campaign.state(1).model_copy(update={"steps": {"rollouts": "rollouts/gone"}})
    console = Console(width=120, record=True)
    console.print(iteration_table([bare, campaign.state(1)], read_manifests(root)))
    assert "168 of 256" in console.export_text()
