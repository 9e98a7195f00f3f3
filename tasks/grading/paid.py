"""Answers that cost something: found where they were paid for before, else asked for and kept chunk by chunk."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import polars as pl

from tasks.grading.config import GraderConfig
from tasks.grading.graders import Grader, Progress
from tasks.grading.keys import grader_key, row_keys
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Verdict

KEPT_SCHEMA = {
    "row_key": pl.String,
    "status": pl.String,
    "score": pl.Float64,
    "passed": pl.Boolean,
    "uncertainty": pl.Float64,
    "detail": pl.String,
    "cost": pl.Float64,
    "ticket": pl.String,
}
Places = list[int]
Accepts = Callable[[Answer], bool]


class Memory(Protocol):
    """Where answers are kept, by grader and content (`storage.grade_cache.GradeCache`)."""

    def find(self, grader_key: str, row_keys: list[str]) -> pl.DataFrame:
        """The kept rows of these keys, at most one each."""
        ...

    def add(self, grader_key: str, rows: pl.DataFrame) -> str:
        """Keep rows in the columns of `KEPT_SCHEMA`; gives the name of the segment."""
        ...

    def join(self, grader_key: str, segments: list[str]) -> None:
        """Make one segment of several."""
        ...

    def spent(self, grader_key: str) -> pl.DataFrame:
        """Cost and detail of every answer so far."""
        ...


@dataclass
class Spending:
    """What a slice of rollouts cost and what the memory saved, in the graders' own currency."""

    cache_hits: int = 0
    cost_paid: float = 0.0
    cost_saved: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Sums that add up over shards."""
        return {
            "cache_hits": float(self.cache_hits),
            "cost_paid": self.cost_paid,
            "cost_saved": self.cost_saved,
        }


@dataclass
class Purse:
    """The memory that a slice's grader uses, and what it spent. Only answers that `accepts` takes are kept."""

    memory: Memory
    accepts: Accepts
    spending: Spending = field(default_factory=Spending)


def is_cached(config: GraderConfig, grader: Grader) -> bool:
    """Whether answers are kept: as the configuration says, else as the grader declares (`paid`)."""
    return bool(getattr(grader, "paid", False)) if config.cached is None else config.cached


def answers_of(
    samples: Sequence[Sample], grader: Grader, config: GraderConfig, progress: Progress, purse: Purse | None
) -> list[Answer]:
    """One answer a sample. With a purse, those that were paid for before are found; new ones are kept at once.

    A process that is killed loses at most one chunk of `config.chunk` samples (whole groups, where they are compared).
    """
    if purse is None or not is_cached(config, grader):
        return grader.grade_batch(samples, progress)
    answers: dict[int, Answer] = {}
    for version, places in _by_version(samples, grader).items():
        chosen = [samples[place] for place in places]
        known = _answer_version(chosen, grader_key(config, version), grader, config, progress, purse)
        answers |= dict(zip(places, known, strict=True))
    return [answers[place] for place in range(len(samples))]


def kept_row(key: str, answer: Verdict) -> tuple[Any, ...]:
    """A verdict in the columns of `KEPT_SCHEMA`."""
    detail = json.dumps(answer.detail)
    return (key, "ok", float(answer.score), answer.passed, answer.uncertainty, detail, answer.cost, None)


def kept_verdict(row: dict[str, Any]) -> Verdict:
    """The verdict of a kept ok row."""
    return Verdict(row["score"], row["passed"], json.loads(row["detail"]), row["uncertainty"], row["cost"])


def kept_frame(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    """Rows in the columns of `KEPT_SCHEMA`."""
    return pl.DataFrame(rows, schema=KEPT_SCHEMA, orient="row")


def _by_version(samples: Sequence[Sample], grader: Grader) -> dict[str, Places]:
    places: dict[str, Places] = {}
    for place, sample in enumerate(samples):
        places.setdefault(grader.version_of(sample), []).append(place)
    return places


def _answer_version(
    samples: Sequence[Sample], key: str, grader: Grader, config: GraderConfig, progress: Progress, purse: Purse
) -> list[Answer]:
    keys = row_keys(samples, compares_group=grader.compares_group)
    found = purse.memory.find(key, keys).filter(pl.col("status") == "ok")
    kept = {row["row_key"]: kept_verdict(row) for row in found.iter_rows(named=True)}
    known = {row: replace(answer, cost=0.0) for row, answer in kept.items()}  # it was paid for before
    missing = _missing(samples, [one in known for one in keys], compares_group=grader.compares_group)
    answers: dict[int, Answer] = {place: known[keys[place]] for place in set(range(len(samples))) - set(missing)}
    purse.spending.cache_hits += len(answers)
    purse.spending.cost_saved += sum(kept[keys[place]].cost for place in answers)
    segments = []
    for chunk in _chunks(samples, missing, config.chunk, compares_group=grader.compares_group):
        given = grader.grade_batch([samples[place] for place in chunk], progress)
        if len(given) != len(chunk):
            raise ValueError(f"grader {config.label} gave {len(given)} answers to {len(chunk)} samples")
        paid = [
            kept_row(keys[place], answer)
            for place, answer in zip(chunk, given, strict=True)
            if isinstance(answer, Verdict) and purse.accepts(answer)
        ]
        if paid:
            segments.append(purse.memory.add(key, kept_frame(paid)))
        purse.spending.cost_paid += sum(answer.cost for answer in given)
        answers |= dict(zip(chunk, given, strict=True))
        progress(len(answers), len(samples), "rollouts")
    purse.memory.join(key, segments)
    return [answers[place] for place in range(len(samples))]


def _missing(samples: Sequence[Sample], known: Sequence[bool], *, compares_group: bool) -> Places:
    """The places without an answer; where a prompt's samples are compared, all of a prompt that lacks one."""
    missing = [place for place, found in enumerate(known) if not found]
    if not compares_group:
        return missing
    prompts = {samples[place].prompt_id for place in missing}
    return [place for place, sample in enumerate(samples) if sample.prompt_id in prompts]


def _chunks(samples: Sequence[Sample], places: Places, size: int, *, compares_group: bool) -> Iterator[Places]:
    """The places in runs of `size`; of about that, where a prompt's samples are compared and stay together."""
    groups: dict[str | int, Places] = {}
    for place in places:
        groups.setdefault(samples[place].prompt_id if compares_group else place, []).append(place)
    chunk: Places = []
    for members in groups.values():
        if chunk and len(chunk) + len(members) > size:
            yield chunk
            chunk = []
        chunk = chunk + members
    if chunk:
        yield chunk
