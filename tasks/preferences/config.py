"""Which answers become pairs, from where else pairs come, and how many are held out. Light."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed
from tasks.preferences.files_config import PreferenceFilesConfig, PreferenceSource
from tasks.preferences.ranking_config import RankingConfig

Made = Literal["padded", "repeated", "foreign", "truncated"]


class CounterexamplesConfig(StrictConfig):
    """Pairs against length as a sign of quality: chosen among the graded ones, or made on purpose."""

    share: float = Field(0.1, gt=0, lt=1, description="of this iteration's pairs, at most")
    length_matched: float | None = Field(
        0.1, ge=0, lt=1, description="pairs whose lengths differ by this share of the rejected one at most; null: none"
    )
    short_over_long: float | None = Field(
        0.7, gt=0, lt=1, description="good answers at most this share as long as a bad one, over it; null: none"
    )
    good_quantile: float = Field(
        0.75, gt=0.5, lt=1, description="of this iteration's scores: good from here on; bad up to 1 - it"
    )
    made: list[Made] = Field(
        ["padded", "repeated", "foreign", "truncated"],
        description="a good answer spoiled: empty phrases, itself again, or another prompt's answer after it; cut off",
    )


class HeldOutConfig(StrictConfig):
    """Annotators or policies whose pairs never train."""

    fraction: float = Field(0.2, ge=0, lt=1, description="share of them, by a seeded hash of each name; 0: none")
    minimum: int = Field(5, ge=2, description="with fewer of them, none is held out")


class PreferencesConfig(RankingConfig):
    """This iteration's pairs: graded ones, those of files, labels and earlier iterations, and how all are split."""

    grader: str | None = Field(
        None, min_length=1, description="whose scores are compared, by its name; none: the composite reward"
    )
    eval_fraction: float = Field(0.2, ge=0, lt=1, description="share of the prompt clusters held out")
    near_duplicate_threshold: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of word 3-grams from which two prompts share a cluster"
    )
    held_out_annotators: HeldOutConfig = Field(HeldOutConfig(), description="people whose pairs never train")
    held_out_policies: HeldOutConfig = Field(
        HeldOutConfig(fraction=0.1, minimum=10),
        description="policies whose answers never train; this iteration's own always do",
    )
    counterexamples: CounterexamplesConfig | None = Field(None, description="pairs against length; none: no such pairs")
    history_iterations: int = Field(0, ge=0, description="earlier iterations whose graded pairs are taken too")
    history_share: float = Field(
        0.5, ge=0, lt=1, description="of the graded pairs, at most: the newest first, then the widest margins"
    )
    sources: list[PreferenceSource] = unhashed([], "files of pairs and logs of clicks, thumbs and edits")
    max_rejected_fraction: float = unhashed(0.1, "reading sources fails above this share of bad rows", ge=0, le=1)

    @model_validator(mode="after")
    def _sources_can_be_read(self) -> Self:
        _ = self.files
        return self

    @property
    def files(self) -> PreferenceFilesConfig | None:
        """What the stage that reads the sources takes; None where there are none."""
        if not self.sources:
            return None
        return PreferenceFilesConfig(
            sources=self.sources,
            max_rejected_fraction=self.max_rejected_fraction,
            eval_fraction=self.eval_fraction,
            near_duplicate_threshold=self.near_duplicate_threshold,
        )
