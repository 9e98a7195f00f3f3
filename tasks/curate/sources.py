"""The rows of a curate source, whether of files or of a generator."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from tasks._sources.files import file_digests, source_files
from tasks._sources.reading import check_columns, raise_together, read_file
from tasks._sources.rows import Rejection, Row
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.generators import resolve_generator


def read_source(source: SourceConfig, seed: int) -> Iterator[Row | Rejection]:
    """Every row of a source in a fixed order. Raises `InputError` for what is wrong with a whole file."""
    if source.generator is not None:
        yield from resolve_generator(source.generator).rows(source.params, seed)
        return
    for file in source_files(source.path or "", source.format):
        yield from read_file(file, wanted_columns(source))


def wanted_columns(source: SourceConfig) -> list[str]:
    """The columns that a source's configuration names."""
    params = source.verifier.param_fields.values() if source.verifier else ()
    named = (source.messages_field, source.prompt_field, source.answer_field, *params)
    return list(dict.fromkeys(name for name in named if name))


def check_sources(config: CurateConfig) -> None:
    """Looks at every source without reading it whole.

    Raises one `InputError` that lists each missing file and column.
    """
    raise_together(partial(_check_source, source) for source in config.sources)


def source_content(source: SourceConfig) -> dict[str, Any]:
    """What decides a source's rows besides its hashed fields: its files' digests in order, without their paths.

    For a generator also its version and its other parameters. It is part of the stage's fingerprint.
    """
    if source.generator is None:
        return {"files": file_digests(source.path or "", source.format)}
    generator = resolve_generator(source.generator)
    params = source.model_dump(mode="json")["params"]
    return {
        "files": list(generator.digests(source.params).values()),
        "paths": sorted(params.keys() & set(generator.PATHS)),
        "params": {name: value for name, value in params.items() if name not in generator.PATHS},
        "version": generator.VERSION,
    }


def _check_source(source: SourceConfig) -> None:
    if source.generator is not None:
        resolve_generator(source.generator).digests(source.params)
        return
    for file in source_files(source.path or "", source.format):
        check_columns(file, wanted_columns(source))
