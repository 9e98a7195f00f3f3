"""The rows of a curate source: of files, of a generator, or of what a model wrote."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import polars as pl

from storage.errors import InputError
from tasks._sources.files import file_digests, source_files
from tasks._sources.reading import check_columns, raise_together, read_file
from tasks._sources.rows import Rejection, Row
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.filters import check_filters
from tasks.curate.generators import Generator, resolve_generator

EXPANDED = "expanded"


class Expanded(NamedTuple):
    """What a model wrote for a source: the artifact's id and its `ExpandedPrompt` frame."""

    artifact_id: str
    prompts: pl.DataFrame


def read_source(source: SourceConfig, seed: int, expanded: Expanded | None = None) -> Iterator[Row | Rejection]:
    """Every row of a source in a fixed order. Raises `InputError` for what is wrong with a whole file.

    `expanded` has the rows of a source with `expand`.
    """
    if source.expand is not None:
        if expanded is None:
            raise InputError("a source with expand is read from what the stage expand made, and none was given")
        yield from _expanded_rows(expanded)
    elif source.generator is not None:
        yield from resolve_generator(source.generator).rows(source.params, seed)
    else:
        for file in source_files(source.path or "", source.format):
            yield from read_file(file, wanted_columns(source), source.csv)


def wanted_columns(source: SourceConfig) -> list[str]:
    """The columns that a source's configuration names."""
    params = source.verifier.param_fields.values() if source.verifier else ()
    named = (source.messages_field, source.prompt_field, source.answer_field, source.domain_field, *params)
    return list(dict.fromkeys(name for name in named if name))


def check_sources(config: CurateConfig) -> None:
    """Looks at every source without reading it whole, and at the filters.

    Raises one `InputError` that lists each missing file and column.
    """
    checks = [partial(_check_source, source) for source in config.sources]
    raise_together([*checks, partial(check_filters, config.filters)])


def verifiers_of(config: CurateConfig) -> list[str]:
    """The verifiers that the pool's prompts bring: those of the configuration, and those of generators."""
    named = [source.verifier.name for source in config.sources if source.verifier is not None]
    own = [resolve_generator(source.generator).VERIFIER for source in config.sources if source.generator is not None]
    return list(dict.fromkeys([*named, *filter(None, own)]))


def source_content(source: SourceConfig) -> dict[str, Any]:
    """What decides a source's rows besides its hashed fields: its files' digests in order, without their paths.

    For a generator also its version and its other parameters; an expansion's artifact is an input of its own. It is
    part of the stage's fingerprint.
    """
    if source.expand is not None:
        return {}
    if source.generator is None:
        return {"files": file_digests(source.path or "", source.format)}
    generator = resolve_generator(source.generator)
    params = source.model_dump(mode="json")["params"]
    return {
        "files": list(generator.digests(source.params).values()),
        "paths": _named_paths(generator, params),
        "params": {name: value for name, value in params.items() if name not in generator.PATHS},
        "version": generator.VERSION,
    }


def _named_paths(generator: Generator, params: dict[str, Any]) -> list[str]:
    """The parameters that are paths, and the keys of those that map keys to paths."""
    given = [name for name in sorted(params) if name in generator.PATHS]
    keys = [f"{name}.{key}" for name in given if isinstance(params[name], dict) for key in sorted(params[name])]
    return [*given, *keys]


def _expanded_rows(expanded: Expanded) -> Iterator[Row]:
    for number, row in enumerate(expanded.prompts.sort("position").iter_rows(named=True), start=1):
        tags = [EXPANDED, f"model:{row['policy_id']}", *(f"seed:{seed}" for seed in row["seeds"])]
        messages = [{"role": "user", "content": row["text"]}]
        yield Row(expanded.artifact_id, number, {"messages": messages, "tags": tags})


def _check_source(source: SourceConfig) -> None:
    if source.expand is not None:
        return
    if source.generator is not None:
        resolve_generator(source.generator).digests(source.params)
        return
    for file in source_files(source.path or "", source.format):
        check_columns(file, wanted_columns(source), source.csv)
