"""The whole of `curate`, pure: sources in, the pool of prompts and the rejected rows out, in bounded memory.

Prompts go to files as they are read; only numbers stay in memory (`spool`, `near_duplicates`: about 350 bytes of each).
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from storage.errors import InputError
from tasks._maths.near_duplicates import Clusters, Labels, ShingleIndex
from tasks._maths.words import hashed_words
from tasks._sources.rows import Rejection, Row, limit_bad_rows
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.decontaminate import EvaluationSet, Overlap, read_set
from tasks.curate.duplicates import TEXTS_AT_A_TIME, chat_text, first_of_each, id_names, smallest_of_cluster
from tasks.curate.embeddings import embedder, join_by_cosine, refuse_too_many
from tasks.curate.filters import TokenCounter, open_filters
from tasks.curate.held_out import hold_out
from tasks.curate.mixing import limit_domains, mix
from tasks.curate.normalise import prompt_of_row
from tasks.curate.sources import Expanded, read_source
from tasks.curate.spool import BadRows, Marks, Pool, PoolIndex, Progress, Spool, chat_texts

Prompts = list[dict[str, Any]]
Screen = Callable[[Prompts], Sequence[Rejection | None]]
Choose = Callable[[pl.DataFrame], Sequence[int]]


@dataclass(frozen=True)
class Choices:
    """What else decides which prompts stay.

    `screen`: of some prompts as they are read, why each isn't wanted, or None. `weights`, of the distinct prompts
    before the split, and `quotas`, of its training part: the rows that stay, ascending, of a frame with prompt_id,
    cluster_id, domain and source_index.
    """

    screen: Screen | None = None
    weights: Choose | None = None
    quotas: Choose | None = None


def choices_of(config: CurateConfig, seed: int, count_tokens: TokenCounter | None = None) -> Choices:
    """The configured filters, weights and quotas. `count_tokens` is asked where a filter bounds tokens."""
    weighs = config.max_prompts is not None or any(source.weight is not None for source in config.sources)
    return Choices(
        screen=open_filters(config.filters, count_tokens),
        weights=partial(mix, config=config, seed=seed) if weighs else None,
        quotas=partial(limit_domains, quota=config.quota, seed=seed) if config.quota else None,
    )


def build_pool(
    config: CurateConfig,
    seed: int,
    progress: Progress | None = None,
    *,
    expansions: Mapping[int, Expanded] | None = None,
    choices: Choices | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The `Prompt` and the `RejectedRow` frame of the configured sources, whole in memory. Raises as `spool_pool`."""
    with tempfile.TemporaryDirectory() as folder:
        pool = spool_pool(config, seed, Path(folder), progress, expansions=expansions, choices=choices)
        return pl.concat(pool.prompts()), pl.concat(pool.rejected())


def spool_pool(
    config: CurateConfig,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
    *,
    expansions: Mapping[int, Expanded] | None = None,
    model: Path | None = None,
    choices: Choices | None = None,
) -> Pool:
    """The pool of the configured sources, its rows below `folder`.

    `expansions`: what a model wrote, by the source's position. `model` is the folder that embeddings may need.
    `choices` are by default those of the configuration.

    Raises `InputError` for an unreadable source, too many bad rows, an empty pool, or a split that can't be made.
    """
    choices = choices or choices_of(config, seed)
    spool, shingles = Spool(folder), ShingleIndex(config.near_duplicate_threshold, folder)
    reader = _Reader(config, [read_set(each) for each in config.decontaminate], spool, shingles, choices.screen)
    for done, source in enumerate(config.sources, start=1):
        reader.read(read_source(source, seed, (expansions or {}).get(done - 1)), source, done - 1)
        if progress is not None:
            progress(done, len(config.sources), "sources")
    limit_bad_rows(reader.good, reader.bad.reasons, reader.bad.examples, config.max_rejected_fraction, "curate")
    index = spool.index()
    if not len(index):
        raise InputError(_empty(config, spool))
    first = first_of_each(index.ids)
    distinct = first == np.arange(len(index))
    clusters = Clusters(shingles.clusters(distinct))
    if config.embeddings is not None:
        refuse_too_many(int(distinct.sum()), config.embeddings)
        vectors = embedder(config.embeddings, model)(texts for _, texts in chat_texts(spool, distinct))
        join_by_cosine(clusters, np.flatnonzero(distinct), vectors, config.embeddings.threshold)
    cluster = smallest_of_cluster(index.ids, clusters.labels, distinct)
    return _shared_out(Pool(spool, index, first, distinct, distinct & False, cluster), config, seed, choices)


def _shared_out(pool: Pool, config: CurateConfig, seed: int, choices: Choices) -> Pool:
    """The pool by its sources' weights, split, its training part within the quotas.

    Weights come before the split, so that the held-out part has the same mixture; quotas limit what is trained on.
    """
    index, cluster = pool.index, pool.cluster
    kept = _chosen(index, cluster, pool.kept, choices.weights)
    left_out = {"over_weight": pool.kept & ~kept}
    held_out = np.zeros(len(index), bool)
    held_out[kept] = hold_out(cluster[kept], index.ids, config, seed)
    within = _chosen(index, cluster, kept & ~held_out, choices.quotas) | held_out
    left_out["over_quota"] = kept & ~within
    return Pool(pool.spool, index, pool.first, within, held_out, cluster, left_out)


def _chosen(index: PoolIndex, cluster: Labels, among: Marks, choose: Choose | None) -> Marks:
    if choose is None:
        return among
    places = np.flatnonzero(among)
    frame = pl.DataFrame(
        {
            "prompt_id": id_names(index.ids[places]),
            "cluster_id": id_names(index.ids[cluster[places]]),
            "domain": pl.Series(index.domain_names)[index.domains[places]],
            "source_index": index.sources[places],
        }
    )
    marks = np.zeros(len(index), bool)
    marks[places[np.asarray(choose(frame), np.int64)]] = True
    return marks


def _empty(config: CurateConfig, spool: Spool) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in spool.rejections.most_common())
    where = ", ".join(source.place for source in config.sources)
    if reasons:
        return (
            f"the prompt set is empty: every row of {where} was set aside ({reasons}); add rows or loosen those rules"
        )
    return f"the prompt set is empty: {where} hold no row; add rows or correct the sources' paths"


@dataclass
class _Reader:
    """Reads sources into the spool and the shingles: what each prompt alone decides is decided here."""

    config: CurateConfig
    sets: Sequence[EvaluationSet]
    spool: Spool
    shingles: ShingleIndex
    screen: Screen | None
    bad: BadRows = field(default_factory=BadRows)
    good: int = 0

    def read(self, rows: Iterator[Row | Rejection], source: SourceConfig, number: int) -> None:
        """Every row of a source."""
        while chunk := list(islice(rows, TEXTS_AT_A_TIME)):
            prompts, bad = _parsed(chunk, source)
            self.bad.count(bad)
            self.good += len(prompts)
            self.spool.reject(bad)
            self._take(self._wanted(prompts), number)

    def _wanted(self, prompts: Prompts) -> Prompts:
        if self.screen is None:
            return prompts
        reasons = self.screen(prompts)
        self.spool.reject([reason for reason in reasons if reason is not None])
        return [prompt for prompt, reason in zip(prompts, reasons, strict=True) if reason is None]

    def _take(self, prompts: Prompts, source: int) -> None:
        texts = [chat_text(prompt["messages"]) for prompt in prompts]
        words = hashed_words(texts)
        repeated = {overlap.text: overlap for each in reversed(self.sets) for overlap in each.overlaps(texts, words)}
        if repeated:
            self.spool.reject([_contaminated(prompts[text], repeated[text]) for text in sorted(repeated)])
            kept = [text for text in range(len(prompts)) if text not in repeated]
            prompts, words = [prompts[text] for text in kept], words.take(np.array(kept, np.int64))
        self.spool.add(prompts, words.sizes, source)
        self.shingles.add(words)


def _parsed(rows: list[Row | Rejection], source: SourceConfig) -> tuple[Prompts, list[Rejection]]:
    """The prompts of some rows, and the bad rows."""
    prompts: Prompts = []
    bad: list[Rejection] = []
    for row in rows:
        prompt = row if isinstance(row, Rejection) else prompt_of_row(row, source)
        if isinstance(prompt, Rejection):
            bad.append(prompt)
        else:
            prompts.append(prompt)
    return prompts, bad


def _contaminated(prompt: dict[str, Any], overlap: Overlap) -> Rejection:
    path, _, row = prompt["source"].rpartition(":")
    return Rejection(path, int(row), "contaminated", found=overlap.found, expected=overlap.expected)
