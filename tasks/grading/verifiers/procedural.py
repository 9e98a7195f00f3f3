"""Procedural tasks of reasoning-gym (Stojanovski 2025, arXiv:2505.24760), each graded by its dataset's own scorer."""

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from storage.errors import InputError
from tasks._sources.procedures import open_dataset, restored
from tasks.grading.verdict import Verdict, checked_flags, checked_param, read_once, with_defaults
from tasks.grading.verifiers.expressions import is_arithmetic, is_literal

REFUSED = "neither arithmetic nor a literal, and the dataset's scorer would run it as code"
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
FUNCTIONS = frozenset({"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "asin", "acos", "atan", "sinh", "cosh", "pi"})
# Datasets whose scorers compare by value alone.
SYMBOLIC = frozenset(
    {"countdown", "puzzle24", "polynomial_multiplication", "simple_integration", "intermediate_integration"}
)
# Datasets whose scorers run an answer as code, by `eval` or by sympy's `parse_expr`: what they are given is checked.
CHECKS: dict[str, Callable[[str], bool]] = {
    "countdown": is_arithmetic,
    "puzzle24": is_arithmetic,
    "coin_flip": is_arithmetic,  # a fraction with an exponent would be written out
    "polynomial_multiplication": functools.partial(is_arithmetic, names=FUNCTIONS),
    "simple_integration": functools.partial(is_arithmetic, names=FUNCTIONS),
    "intermediate_integration": functools.partial(is_arithmetic, names=FUNCTIONS),
    "string_insertion": is_literal,
    "spiral_matrix": is_literal,
    "binary_matrix": is_literal,
    "n_queens": is_literal,
}


class _Task(NamedTuple):
    """A dataset, one of its entries as the dataset made it, and whether the answer has to stand in tags."""

    name: str
    dataset: Any
    entry: dict[str, Any]
    tags_required: bool


def reasoning_gym(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:  # noqa: ARG001 the entry holds it
    """The dataset's `score_answer` of the answer, in [0, 1]; passes on 1. Many datasets give partial credit.

    The answer stands in the last <answer>..</answer>; a text without the tags is one whole.
    Params: dataset (its name), entry (question, answer and metadata as the generator `reasoning_gym` made them),
    config (what the dataset was made with; {}), tags_required (false; true: without tags there is no answer, 0).

    Some scorers run the answer as code. Theirs have to be arithmetic or literals of Python: others get 0, as from a
    scorer that can't read them, and the detail says so.
    """
    task = _task(params)
    found = ANSWER.findall(text)
    if not found and task.tags_required:
        return Verdict(0.0, passed=False, detail={"answer": None})
    given = found[-1].strip() if found else text.strip()
    check = CHECKS.get(task.name)
    if check is not None and given not in _expected(task) and not check(given):
        return Verdict(0.0, passed=False, detail={"refused": REFUSED})
    score = float(task.dataset.score_answer(given, task.entry))
    return Verdict(score, score >= 1.0)


def _expected(task: _Task) -> list[str]:
    """The answers that a scorer finds by comparing, before it would run anything."""
    listed = task.entry["metadata"].get("valid_answers", []) if task.name == "n_queens" else []
    return [*listed, task.entry["answer"].strip()] if task.name not in SYMBOLIC else []


@read_once
def _task(params: Mapping[str, Any]) -> _Task:
    defaults: dict[str, Any] = {"dataset": None, "entry": None, "config": {}, "tags_required": False}
    chosen = with_defaults("reasoning_gym", params, defaults)
    checked_flags("reasoning_gym", chosen, "tags_required")
    entry = chosen["entry"]
    fits = isinstance(entry, dict) and {"answer", "metadata"} <= entry.keys() and isinstance(entry["metadata"], dict)
    checked_param("reasoning_gym", "entry", entry, fits, "an entry of the dataset: {question, answer, metadata}")
    name, config = chosen["dataset"], chosen["config"]
    checked_param("reasoning_gym", "dataset", name, isinstance(name, str), "the name of a dataset")
    checked_param("reasoning_gym", "config", config, isinstance(config, dict), "options of the dataset")
    return _Task(
        name, _opened(name, json.dumps(config, sort_keys=True)), restored(name, entry), chosen["tags_required"]
    )


@functools.lru_cache(maxsize=64)
def _opened(name: str, config: str) -> Any:
    try:
        return open_dataset(name, {**json.loads(config), "size": 1, "seed": 0})
    except InputError as error:
        raise InputError(f"verifier reasoning_gym: {error}") from error
