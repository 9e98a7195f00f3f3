"""Prompts of reasoning-gym's datasets: each carries the entry that its scorer needs."""

import json
import zlib
from collections.abc import Iterator
from typing import Any

from storage.errors import InputError
from tasks._sources.procedures import open_dataset, restored
from tasks._sources.rows import Rejection, Row, excerpt

DOMAIN = "reasoning"
VERIFIER = "reasoning_gym"
VERSION = "1"
PATHS: tuple[str, ...] = ()
FORMAT = "\n\nGive your final answer between <answer> and </answer>."
KNOWN_PARAMS = ("datasets", "size", "seed", "tags_required")
LARGEST_SEED = 2**31


def rows(params: dict[str, Any], seed: int) -> Iterator[Row | Rejection]:
    """`params['size']` prompts of every dataset in `params['datasets']`: names, or a mapping of names to options.

    The entries follow from the dataset's options and `params['seed']` (default: the stage's seed).
    """
    datasets, size, own_seed = _checked(params)
    for name, config in datasets.items():
        first = (seed if own_seed is None else own_seed) + zlib.crc32(name.encode())
        dataset = open_dataset(name, {**config, "size": size, "seed": first % LARGEST_SEED})
        for index in range(size):
            yield _row(name, index, dataset, config, params)


def digests(params: dict[str, Any]) -> dict[str, str]:
    """Nothing is read. Raises `InputError` for wrong parameters, datasets and options."""
    datasets, _, _ = _checked(params)
    for name, config in datasets.items():
        open_dataset(name, {**config, "size": 1, "seed": 0})
    return {}


def _row(name: str, index: int, dataset: Any, config: dict[str, Any], params: dict[str, Any]) -> Row | Rejection:
    """A prompt, or why its entry can't be one: it has to be graded as right after it was written as JSON."""
    entry = dataset[index]
    source = f"reasoning_gym:{name}"
    try:
        kept = json.loads(json.dumps(entry))
    except TypeError as error:
        return Rejection(source, index + 1, "not_json", field="metadata", found=excerpt(str(error)), expected="JSON")
    answer = kept["answer"]
    if answer is not None and dataset.score_answer(answer, restored(name, kept)) != 1.0:
        return Rejection(
            source, index + 1, "answer_not_right", field="answer", found=excerpt(answer), expected="score 1"
        )
    verifier_params = {"dataset": name, "entry": kept, "config": config}
    if params.get("tags_required", False):
        verifier_params["tags_required"] = True
    fields = {
        "messages": [{"role": "user", "content": kept["question"] + FORMAT}],
        "answer": answer,
        "tags": [name],
        "verifier_params": verifier_params,
    }
    return Row(source, index + 1, fields)


def _checked(params: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], int, int | None]:
    unknown = sorted(set(params) - set(KNOWN_PARAMS))
    if unknown:
        raise InputError(f"generator reasoning_gym: unknown params {unknown}; there are {list(KNOWN_PARAMS)}")
    datasets, size, seed = params.get("datasets"), params.get("size", 100), params.get("seed")
    listed = isinstance(datasets, list) and all(isinstance(name, str) for name in datasets)
    named = dict.fromkeys(datasets or []) if listed else datasets
    if not isinstance(named, dict) or not named or not all(isinstance(config or {}, dict) for config in named.values()):
        raise InputError(
            f"generator reasoning_gym: params.datasets is {datasets!r}; expected names such as [sudoku, countdown], "
            "or names with their options such as {sudoku: {max_empty: 20}}"
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"generator reasoning_gym: params.size is {size!r}; expected prompts per dataset, from 1")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InputError(f"generator reasoning_gym: params.seed is {seed!r}; expected a whole number or nothing")
    return {str(name): dict(config or {}) for name, config in named.items()}, size, seed
