"""`posttrain grade` as a process: what it prints, its JSON, and one clear line for what is wrong."""

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import typer
from judge_server import judge_server
from pipeline import REPOSITORY, environment, posttrain
from typer.testing import CliRunner

from flows.grade_command import histogram, register
from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.fingerprints import digest
from storage.records import RECORDS

ROWS = [
    {"prompt": "What is 2 + 2?", "completion": "It is 4.", "answer": "4", "finish_reason": "stop"},
    {"prompt": "What is 2 + 2?", "completion": "five [red]", "answer": "4", "finish_reason": "stop"},
    {"prompt": [{"role": "user", "content": "3 + 3?"}], "completion": "6", "answer": 6, "finish_reason": "length"},
    {"prompt": "What is 5 + 5?", "completion": "10", "answer": "ten", "finish_reason": "stop"},
]


HAIKU = "An old silent pond\nA frog jumps into the pond\nSplash! Silence again."


def committed(root: str, folder: Path, stage: str, inputs: dict[str, str], **tables: pl.DataFrame) -> Artifact:
    artifact = Artifact(root=root, stage=stage, fingerprint=digest(stage))
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    recipe = Recipe(artifact, stage, 1, {}, inputs, 3, "nightly", 1, None)
    commit_outputs(recipe, Attempt(datetime.now(UTC), scratch, None), Outputs(**tables))
    return artifact


def entries(**verifiers: tuple[str, str | None]) -> pl.DataFrame:
    rows = [
        dict(prompt_id=prompt_id, position=index, samples=1, answer=answer, domain="", rubric=None, split="train")
        | dict(
            cluster_id=prompt_id, messages=[{"role": "user", "content": "hi"}], verifier={"name": name, "params": "{}"}
        )
        for index, (prompt_id, (name, answer)) in enumerate(verifiers.items())
    ]
    return pl.DataFrame(rows, schema=RECORDS["batch"].create_empty().schema)


def rollouts(*texts: tuple[str, str]) -> pl.DataFrame:
    rows = [
        dict(
            rollout_id=f"r{index}", prompt_id=prompt_id, sample_index=index, iteration=1, policy_id="policy", text=text
        )
        | dict(prompt_token_ids=[1, 2], token_ids=[3], logprobs=[-0.5], finish_reason="stop", engine="transformers")
        | dict(sampling="{}", created_at=datetime(2026, 1, 1, tzinfo=UTC))
        for index, (prompt_id, text) in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema=RECORDS["rollouts"].create_empty().schema)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    frame = pl.DataFrame([{"q": row["completion"], "a": row["completion"], "gold": str(row["answer"])} for row in ROWS])
    frame.write_parquet(tmp_path / "rows.parquet")
    return tmp_path


def grade(folder: Path, *arguments: str, code: int = 0) -> str:
    env = environment(folder / "home", PYTHONPATH=str(REPOSITORY), TERM="dumb")
    return posttrain("grade", *arguments, env=env, code=code, folder=folder)


@pytest.fixture
def here(folder, monkeypatch):
    """In this process, where a command takes no second to start: standard output and error, or what it raised."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    app = typer.Typer(pretty_exceptions_enable=False)
    register(app)

    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})
        if result.exception is not None:
            raise result.exception
        return result.output

    return invoke


def parsed(output: str) -> dict:
    return json.loads(output[output.index("{\n") :])


def files_below(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if "home" not in path.parts}


def test_a_jsonl_file_as_a_person_reads_it(folder):
    before = files_below(folder)
    text = grade(folder, "rows.jsonl", "--grader", "number")
    assert "number/1: 3 of 4 rows graded" in text
    assert "mean 0.500" in text and "passed 33.3%" in text and "rows/s" in text and "cost 0" in text
    assert "0.90 to 1.00         1 █" in text
    assert "best  1.000  It is 4." in text and "five [red]" in text
    assert (
        "1 failed" in text and "1  ValueError: verifier number: the answer 'ten' holds no number  (first: rows" in text
    )
    assert files_below(folder) == before


def test_a_parquet_file_with_other_columns_as_json(folder):
    columns = ["--prompt-column", "q", "--completion-column", "a", "--answer-column", "gold"]
    found = parsed(grade(folder, "rows.parquet", "--grader", "number", *columns, "--rows", "3", "--json"))
    assert (found["rows"], found["ok"], found["failed"], found["cost"]) == (3, 3, 0, 0)
    assert found["mean"] == pytest.approx(2 / 3) and found["rows_per_s"] > 0
    assert [row["text"] for row in found["best"]] == ["It is 4.", "6", "five [red]"]
    assert sum(bin_["rows"] for bin_ in found["histogram"]) == 3


def test_a_function_of_ones_own_with_params(folder):
    (folder / "local_graders.py").write_text("def score(prompt, completion, params):\n    return params['by'][0] * 3\n")
    arguments = ["--grader", "local_graders:score", "--param", "by=[2]", "--score-range", "0", "10", "--json"]
    found = parsed(grade(folder, "rows.jsonl", *arguments))
    # The third row was cut by the length limit: half.
    assert (found["mean"], found["worst"][0]["score"], found["histogram"][-1]["to"]) == (5.25, 3.0, 6.0)
    assert found["best"][-1]["score"] == 6.0 and found["ok"] == 4


def test_an_artifact_of_rollouts_by_id_and_by_its_file(folder, here):
    root = str(folder / "root")
    selected = committed(root, folder, "select", {}, batch=entries(p=("haiku", None), q=("number", "12")))
    sampled = rollouts(("p", HAIKU), ("q", "It is 12."), ("q", "13"))
    made = committed(root, folder, "rollouts", {"batch": selected.id}, rollouts=sampled)
    by_id = parsed(here(made.id[:20], "--grader", "verifier", "--root", root, "--json"))
    assert by_id["graders"] == ["haiku/1", "number/1"] and by_id["mean"] == pytest.approx(2 / 3)
    file = next(Path(root, made.folder).glob("*.parquet"))
    assert parsed(here(str(file), "--grader", "verifier", "--json"))["mean"] == by_id["mean"]
    file.rename(folder / "moved.parquet")
    text = here("moved.parquet", "--grader", "haiku")
    assert "note: rollouts without their prompts" in text and "haiku/1: 3 of 3 rows graded" in text
    with pytest.raises(InputError, match="have no verifiers"):
        here("moved.parquet", "--grader", "verifier")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jsonl", "--grader", "number"], "no.jsonl: no such file"),
        (["rows.jsonl", "--grader", "nope"], "no verifier 'nope'; there are"),
        (["rows.jsonl", "--grader", "number", "--param", "tolerence=1"], "unknown params ['tolerence']"),
        (["rows.jsonl", "--grader", "number", "--param", "tolerance"], "--param 'tolerance': expected key=value"),
        (["rows.jsonl", "--grader", "number", "--param", "x=[1"], "the value is no YAML"),
        (
            ["rows.jsonl", "--grader", "number", "--timeout-s", "0"],
            "timeout_s: Input should be greater than 0, found 0",
        ),
        (
            ["rows.jsonl", "--grader", "number", "--completion-column", "text"],
            "no column 'text'; it has prompt, completion",
        ),
        (
            ["rows.parquet", "--grader", "number"],
            "has none of the columns prompt, completion, answer; it has q, a, gold",
        ),
        (["rows.jsonl", "--grader", "verifier"], "has no column `verifier`"),
        (["rows.jsonl", "--grader", "reward_model"], "a reward model grades in a run"),
        (["rows.jsonl", "--grader", "broken:f"], "SyntaxError"),
        (["empty.jsonl", "--grader", "number"], "empty.jsonl: holds no rows"),
        (["bad.jsonl", "--grader", "number"], "bad.jsonl:1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, here, arguments, message):
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "bad.jsonl").write_text("{\n")
    with pytest.raises(InputError) as raised:
        here(*arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_input_has_exit_code_2_and_one_line(folder):
    output = grade(folder, "rows.jsonl", "--grader", "number", "--param", "tolerence=1", code=2)
    assert "posttrain: verifier number: unknown params ['tolerence']" in output
    assert len([line for line in output.splitlines() if line.strip()]) == 1, output


def test_the_histogram_covers_its_scores():
    assert [bin_["rows"] for bin_ in histogram([0.0, 0.05, 0.1, 1.0, 1.0])] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    wide = histogram([-1.0, 3.0])
    assert (wide[0]["from"], wide[-1]["to"], wide[0]["rows"], wide[-1]["rows"]) == (-1.0, 3.0, 1, 1)
    assert histogram([]) == []


def test_a_judge_is_tried_by_its_settings(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS[:2]))
    with judge_server(lambda asked: "I would say fine.") as server:
        judging = f"{{endpoint: {{base_url: '{server.url}', model: judge-1}}}}"
        arguments = ["grade", str(path), "--grader", "reference_judge", "--judging", judging, "--json"]
        output = posttrain(*arguments, env=environment(tmp_path / "home"))
    summary = json.loads(output[output.index("{") :])
    assert (summary["rows"], summary["failed"], len(server.asked)) == (2, 2, 2)
    assert "unparsable verdict" in json.dumps(summary)
    wrong = posttrain(*arguments[:5], "{endpoint: [", env=environment(tmp_path / "home"), code=2)
    assert "--judging: the value is no YAML" in wrong
