"""Tasks of reasoning-gym: the generator's prompts graded by the verifier, and answers that would run as code."""

import json
from pathlib import Path

import polars as pl
import pytest
from verifying import verify

from storage.errors import InputError
from storage.records import BatchEntry
from tasks._sources.rows import Rejection
from tasks.curate.config import SourceConfig
from tasks.curate.normalise import prompt_of_row
from tasks.curate.sources import check_sources, read_source, source_content
from tasks.grading.verifiers.expressions import is_arithmetic, is_literal
from tasks.grading.verifiers.registry import resolve_verifier


def prompts(**params) -> list[dict]:
    source = SourceConfig(generator="reasoning_gym", params=params)
    made = [prompt_of_row(row, source) for row in read_source(source, seed=3)]
    assert not [each for each in made if isinstance(each, Rejection)]
    return made


def grade(prompt: dict, text: str):
    return verify(prompt["verifier"]["name"], text, prompt["answer"], **json.loads(prompt["verifier"]["params"]))


@pytest.fixture(scope="module")
def sudoku() -> dict:
    return prompts(datasets=["sudoku"], size=1)[0]


def test_a_sudoku_is_right_when_solved_and_wrong_when_two_cells_are_swapped(sudoku):
    solution = json.loads(sudoku["verifier"]["params"])["entry"]["metadata"]["solution"]
    rows = [" ".join(map(str, row)) for row in solution]
    right = grade(sudoku, "I fill it in.\n<answer>" + "\n".join(rows) + "</answer>")
    assert (right.score, right.passed) == (1.0, True)
    assert grade(sudoku, "\n".join(rows)).passed, "without tags the whole text is the answer"
    swapped = [" ".join(map(str, [solution[0][1], solution[0][0], *solution[0][2:]])), *rows[1:]]
    wrong = grade(sudoku, "<answer>" + "\n".join(swapped) + "</answer>")
    assert wrong.passed is False
    assert wrong.score == pytest.approx(0.9 * 79 / 81), "the dataset's own partial credit"
    assert grade(sudoku, "<answer></answer>").score == 0
    assert grade(sudoku, "I don't know.").score == 0
    twice = "<answer>" + "\n".join(rows) + "</answer> no: <answer>1</answer>"
    assert not grade(sudoku, twice).passed, "the last answer counts"


def test_countdown_takes_any_expression_that_reaches_the_target():
    entry = {"question": "", "answer": "3*5+1", "metadata": {"numbers": [3, 5, 1], "target": 16}}
    for text, passed in [
        ("3*5 + 1", True),
        ("<answer>1 + 5*3</answer>", True),
        ("(1 + 3*5)", True),
        ("3*5*1", False),
        ("16", False),
        ("3*5+1+1", False),
        ("3 times 5 plus 1", False),
        ("", False),
    ]:
        assert verify("reasoning_gym", text, dataset="countdown", entry=entry).passed is passed, text


def test_every_prompt_of_a_mixture_accepts_its_own_answer_and_no_other():
    made = prompts(datasets={"chain_sum": {"max_terms": 3}, "maze": {}, "n_queens": {}, "rearc": {}}, size=2)
    assert [prompt["tags"][0] for prompt in made] == ["chain_sum"] * 2 + ["maze"] * 2 + ["n_queens"] * 2 + ["rearc"] * 2
    for prompt in made:
        assert grade(prompt, f"<answer>{prompt['answer']}</answer>").passed, prompt["tags"]
        assert not grade(prompt, "<answer>-12345</answer>").passed, prompt["tags"]
        assert "<answer>" in prompt["messages"][0]["content"]


def test_a_dataset_without_a_reference_is_checked_by_its_rules():
    (prompt,) = prompts(datasets=["graph_color"], size=1)
    assert prompt["answer"] is None
    puzzle = json.loads(prompt["verifier"]["params"])["entry"]["metadata"]["puzzle"]
    colours = json.loads(prompt["verifier"]["params"])["entry"]["metadata"]["possible_answer"]
    assert grade(prompt, json.dumps(colours)).passed
    first, second = puzzle["edges"][0]
    clash = {**colours, str(first): colours[str(second)]}
    assert not grade(prompt, json.dumps(clash)).passed


def test_without_tags_there_is_no_answer_where_they_are_required():
    (prompt,) = prompts(datasets=["chain_sum"], size=1, tags_required=True)
    assert not grade(prompt, prompt["answer"]).passed
    assert grade(prompt, f"<answer>{prompt['answer']}</answer>").passed


@pytest.mark.parametrize(
    "dataset", ["countdown", "puzzle24", "spiral_matrix", "string_insertion", "polynomial_multiplication"]
)
def test_an_answer_never_runs_as_code(dataset, tmp_path: Path):
    """Without the check these files appear: the datasets' scorers call `eval` and sympy's `parse_expr`."""
    (prompt,) = prompts(datasets=[dataset], size=1)
    victim = tmp_path / "victim"
    for attack in (
        f"exec(\"open('{victim}', 'w')\")",
        f"open('{victim}', 'w')",
        f"[open('{victim}', 'w')]",
        f"__import__('pathlib').Path('{victim}').touch()",
        "9**9**9**9**9",
        "[0] * 10**12",
        "exit()",
    ):
        verdict = grade(prompt, f"<answer>{attack}</answer>")
        assert verdict.score == 0 and verdict.detail["refused"]
    assert not victim.exists()


def test_the_check_is_needed(tmp_path: Path):
    """The scorer itself, given the same answer, does run it; else the check could go."""
    from tasks._sources.procedures import open_dataset

    victim = tmp_path / "victim"
    dataset = open_dataset("spiral_matrix", {"size": 1, "seed": 0})
    dataset.score_answer(f"[open({str(victim)!r}, 'w').close()]", dataset[0])
    assert victim.exists()


@pytest.mark.parametrize(
    ("text", "names", "fits"),
    [
        ("(3 + 5) * 2 - 7 / 2", set(), True),
        ("-3 ** 2", set(), True),
        ("2 ** 200", set(), False),
        ("1e999999999", set(), False),
        ("9**9**9", set(), False),
        ("(((9**99)**99)**99)", set(), False),
        ("x + 1", set(), False),
        ("3*x**2 + sin(x)/2 + C", {"sin"}, True),
        ("exit()", {"sin"}, False),
        ("sin(x, 1)", {"sin"}, False),
        ("x.real", {"sin"}, False),
        ("True", set(), False),
        ("'a'*3", set(), False),
        ("[1]", set(), False),
        ("3 +", set(), False),
        ("(" * 300, set(), False),
        ("1+" * 249 + "1", set(), True),
    ],
)
def test_is_arithmetic(text, names, fits):
    assert is_arithmetic(text, names) is fits


def test_is_literal():
    assert is_literal("[['Q', '_'], ['_', 'Q']]") and is_literal(" (1, 2) ")
    assert not any(map(is_literal, ["a", "f(1)", "[0] * 9", "1 2", "", "(" * 500]))


def test_prompts_follow_from_options_and_seed():
    def made(stage_seed, **params):
        source = SourceConfig(generator="reasoning_gym", params={"datasets": ["gcd"], **params})
        return list(read_source(source, stage_seed))

    assert made(1, size=3) == made(1, size=3)
    assert made(1, size=3, seed=7) == made(2, size=3, seed=7)
    assert made(1, size=3) != made(2, size=3)
    content = source_content(SourceConfig(generator="reasoning_gym", params={"datasets": ["gcd"]}))
    assert content["params"] == {"datasets": ["gcd"]} and content["version"] == "1"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "params.datasets is None"),
        ({"datasets": []}, r"params.datasets is \[\]"),
        ({"datasets": ["sudokku"]}, "no dataset 'sudokku' in reasoning-gym; there are"),
        ({"datasets": ["composite"]}, "no dataset 'composite'"),
        ({"datasets": {"sudoku": {"empties": 3}}}, "reasoning-gym dataset sudoku"),
        ({"datasets": ["sudoku"], "size": 0}, "params.size is 0"),
        ({"datasets": ["sudoku"], "seed": "a"}, "params.seed is 'a'"),
        ({"datasets": ["sudoku"], "count": 3}, "unknown params"),
    ],
)
def test_a_wrong_generator_is_refused_before_it_runs(params, message):
    from tasks.curate.config import CurateConfig

    with pytest.raises(InputError, match=message):
        check_sources(CurateConfig(sources=[SourceConfig(generator="reasoning_gym", params=params)]))


ENTRY = {"question": "1 + 1?", "answer": "2", "metadata": {}}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dataset": "chain_sum"}, "params.entry is None"),
        ({"dataset": "chain_sum", "entry": {"answer": "2"}}, "params.entry"),
        ({"dataset": "chain_sums", "entry": ENTRY}, "verifier reasoning_gym: no dataset 'chain_sums'"),
        ({"entry": ENTRY}, "params.dataset is None"),
        ({"dataset": "chain_sum", "entry": ENTRY, "config": {"terms": 1}}, "verifier reasoning_gym: .*chain_sum"),
        ({"dataset": "chain_sum", "entry": ENTRY, "tags": True}, "unknown params"),
    ],
)
def test_wrong_params_are_refused(params, message):
    with pytest.raises(InputError, match=message):
        verify("reasoning_gym", "2", **params)


def test_the_parameters_fit_into_the_batch(sudoku):
    entry = {name: sudoku[name] for name in ("prompt_id", "messages", "answer", "verifier", "domain", "rubric")}
    rest = {"position": 0, "samples": 1, "cluster_id": "c", "split": "train"}
    assert BatchEntry.is_valid(pl.DataFrame([entry | rest], schema=BatchEntry.create_empty().schema))
    assert resolve_verifier(sudoku["verifier"]["name"]).version == "1"
