"""Files of preferences and logs of signals -> pairs and the rows set aside. Pure but for reading."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl

from storage.errors import InputError
from storage.fingerprints import derive_seed, digest
from tasks._sources.fields import UnusableField
from tasks._sources.files import file_digests, source_files
from tasks._sources.reading import check_columns, raise_together, read_file
from tasks._sources.rows import Rejection, limit_rejections
from tasks.preferences.files_config import (
    ClicksSource,
    PreferenceFilesConfig,
    PreferenceSource,
    RatedSource,
    ThumbsSource,
)
from tasks.preferences.frames import joined, pair_name, pairs_of_rows
from tasks.preferences.layouts import LAYOUTS, Answered, Compared
from tasks.preferences.ranking import rank_answers
from tasks.preferences.signals import by_votes, netted

ANSWER_SCHEMA = pl.Schema(
    {"group": pl.String, "answer_id": pl.String, "text": pl.String, "score": pl.Float64, "first": pl.Int64}
)


@dataclass
class Imported:
    """Unsplit `Preference` rows of all sources, what was set aside, and how many good rows made no pair."""

    pairs: pl.DataFrame
    rejected: list[Rejection] = field(default_factory=list)
    rows: int = 0
    rows_without_pair: int = 0


def check_preference_files(config: PreferenceFilesConfig | None) -> None:
    """Looks at every source without reading it whole. Raises one `InputError` that lists what is missing."""
    raise_together(partial(_check_source, source) for source in (config.sources if config else []))


def content_of_files(config: PreferenceFilesConfig) -> list[list[str]]:
    """What each source's files hold, wherever they lie: part of the stage's fingerprint."""
    return [file_digests(source.path, source.format) for source in config.sources]


def read_preferences(config: PreferenceFilesConfig, seed: int) -> Imported:
    """The pairs of all sources in their order, each once: a pair that stands there again is set aside.

    Raises `InputError` for a file that can't be read, too many bad rows, or no pair at all.
    """
    frames, rejected, rows, idle = [], [], 0, 0
    for source in config.sources:
        reading = _Reading(source)
        for row in _rows(source):
            reading.take(row)
        frames.append(reading.pairs(seed))
        rejected += reading.rejected
        rows += reading.good
        idle += reading.good - reading.used
    limit_rejections(rows, rejected, config.max_rejected_fraction, "preferences")
    pairs, repeated = _distinct(joined(frames))
    if pairs.is_empty():
        where = ", ".join(source.path for source in config.sources)
        raise InputError(f"no pairs: {where} hold no usable pair; add rows or correct preferences.sources")
    return Imported(pairs, [*rejected, *repeated], rows, idle)


class _Reading:
    """The rows of one source: pairs as they come, answers until all are there."""

    def __init__(self, source: PreferenceSource) -> None:
        self._source = source
        self._read = LAYOUTS[source.kind]
        self._pairs: list[Compared] = []
        self._answers: list[Answered] = []
        self.rejected: list[Rejection] = []
        self.good = self.used = 0

    def take(self, row: Any) -> None:
        """One row, or why there is none."""
        try:
            said = self._read(row, self._source) if not isinstance(row, Rejection) else []
        except UnusableField as wrong:
            row = wrong.at(row)
        if isinstance(row, Rejection):
            self.rejected.append(row)
            return
        self.good += 1
        self.used += bool(said)
        for each in said:
            if isinstance(each, Compared):
                self._pairs.append(each)
            else:
                self._answers.append(each)

    def pairs(self, seed: int) -> pl.DataFrame:
        """All pairs of the source, unsplit."""
        source = self._source
        if isinstance(source, ThumbsSource):
            return pairs_of_rows(list(_ranked(by_votes(self._answers, source.min_votes), source, seed)))
        if isinstance(source, RatedSource):
            groups = [f"{answer.row.source}:{answer.row.row}" for answer in self._answers]
            return pairs_of_rows(list(_ranked(zip(groups, self._answers, strict=True), source, seed)))
        pairs = netted(self._pairs) if isinstance(source, ClicksSource) else self._pairs
        return pairs_of_rows([_row_of(pair, source) for pair in pairs])


def _ranked(
    answers: Iterable[tuple[str, Answered]], source: RatedSource | ThumbsSource, seed: int
) -> Iterator[dict[str, Any]]:
    """The pairs among the answers of each group, by the source's own rules."""
    listed = list(answers)
    frame = pl.DataFrame(
        [(group, f"{at:012d}", answer.text, answer.score, at) for at, (group, answer) in enumerate(listed)],
        schema=ANSWER_SCHEMA,
        orient="row",
    )
    ranked = rank_answers(frame, source.ranking, derive_seed(seed, "files"))
    scale = 1.0 if source.strength is None else source.strength
    signal = "thumbs" if isinstance(source, ThumbsSource) else None
    for pair in ranked.iter_rows(named=True):
        better, worse = listed[pair["better"]][1], listed[pair["worse"]][1]
        annotator = better.annotator if better.annotator == worse.annotator else None
        yield _row_of(
            Compared(
                row=better.row,
                messages=better.messages,
                chosen=better.text,
                rejected=worse.text,
                tie=pair["tie"],
                strength=pair["strength"] * scale,
                annotator=annotator or source.annotator or signal,
                scores=(better.score, worse.score),
                policies=(better.policy, worse.policy),
            ),
            source,
            shown_scores="share_up" if signal else "scores",
        )


def _row_of(pair: Compared, source: PreferenceSource, shown_scores: str = "scores") -> dict[str, Any]:
    """The pair as a row of the unsplit frame; scores are a person's where the source is."""
    prompt_id = digest(pair.messages)
    by_people = source.source == "human" and shown_scores == "scores"
    detail: dict[str, Any] = {"from": f"{pair.row.source}:{pair.row.row}", **pair.detail}
    if not by_people and pair.scores != (None, None):
        detail[shown_scores] = list(pair.scores)
    if source.split is not None:
        detail["split"] = source.split
    return {
        "pair_id": pair_name(prompt_id, pair.chosen, pair.rejected, source.source, pair.annotator),
        "prompt_id": prompt_id,
        "cluster_id": prompt_id,
        "messages": pair.messages,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "source": source.source,
        "strength": pair.strength,
        "annotator": pair.annotator,
        "human_score_chosen": pair.scores[0] if by_people else None,
        "human_score_rejected": pair.scores[1] if by_people else None,
        "tie": pair.tie,
        "chosen_policy_id": pair.policies[0],
        "rejected_policy_id": pair.policies[1],
        "detail": json.dumps(detail),
    }


def _distinct(pairs: pl.DataFrame) -> tuple[pl.DataFrame, list[Rejection]]:
    """Each pair once, the first of equal ones; the others as rejections."""
    first = pairs.select(pl.col("pair_id").is_first_distinct())["pair_id"]
    origins = pairs.filter(~first).select(pl.col("detail").str.json_path_match("$.from"))["detail"]
    again = []
    for origin in origins.to_list():
        path, _, row = origin.rpartition(":")
        again.append(Rejection(path, int(row), "exact_duplicate", expected="each pair of an annotator once"))
    return pairs.filter(first), again


def _rows(source: PreferenceSource) -> Iterator[Any]:
    for file in source_files(source.path, source.format):
        yield from read_file(file, source.columns, source.csv)


def _check_source(source: PreferenceSource) -> None:
    for file in source_files(source.path, source.format):
        check_columns(file, source.columns, source.csv)
