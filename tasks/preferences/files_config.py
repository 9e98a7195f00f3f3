"""Files of preferences that somebody has: their layouts, and which of their fields means what. Light."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed
from tasks._sources.config import CsvConfig
from tasks.preferences.ranking_config import RankingConfig

Origin = Literal["human", "ai", "grader", "click", "counterexample"]
Side = Literal["first", "second", "tie", "none"]


class _Files(StrictConfig):
    """What every source of pairs has. Fields of a row may be paths into it: `annotations.helpfulness.Rating`."""

    path: str = unhashed(..., "file, folder or glob, local or s3://; relative to the current folder")
    format: Literal["auto", "parquet", "jsonl", "arrow", "csv"] = Field(
        "auto", description="auto: by the file's ending"
    )
    csv: CsvConfig = Field(CsvConfig(), description="how a CSV file is laid out")
    source: Origin = Field("human", description="who prefers: people, a language model, a verifier, clicks")
    annotator: str | None = Field(None, min_length=1, description="the name of whoever prefers, for all rows")
    annotator_field: str | None = Field(None, description="column of it, instead; null: the name for all rows")
    strength: float | None = Field(None, ge=0, allow_inf_nan=False, description="of every pair; of signals: 1")
    system: str | None = Field(None, description="system message for chats that have none")
    split: Literal["train", "eval"] | None = Field(
        None, description="all of it into this part, such as a test set; none: by the clusters of the prompts"
    )

    @property
    def kind(self) -> str:
        """The source's entry in `tasks.preferences.layouts.LAYOUTS`."""
        return str(getattr(self, "layout"))  # noqa: B009 every source class has its own literal

    @property
    def named(self) -> list[str | None]:
        """The fields that it names."""
        return [self.annotator_field]

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once."""
        return list(dict.fromkeys(name.partition(".")[0] for name in self.named if name is not None))


class _Compared(_Files):
    """What files of finished comparisons have: how strong, by whom, of whose answers."""

    chosen_field: str = Field("chosen", description="column of the better answer; with choice_field of the first")
    rejected_field: str = Field("rejected", description="column of the worse answer; with choice_field of the second")
    choice_field: str | None = Field(None, description="column that says which of the two is better")
    choices: dict[str, Side] = Field(
        {"0": "first", "1": "second", "first": "first", "second": "second", "tie": "tie"},
        description="what its values mean, as they are printed; none: the row is no pair",
    )
    tie_field: str | None = Field(None, description="column, true: neither is better")
    strength_field: str | None = Field(None, description="column of the strength: a number, or a word of `strengths`")
    strengths: dict[str, float] = Field(
        {}, description="what its words are worth, such as {significantly: 3, slightly: 1}"
    )
    chosen_score_field: str | None = Field(None, description="column of the better answer's absolute score")
    rejected_score_field: str | None = Field(None, description="column of the worse answer's")
    chosen_policy_field: str | None = Field(None, description="column of the model that wrote the better answer")
    rejected_policy_field: str | None = Field(None, description="column of the model that wrote the worse one")

    @property
    def named(self) -> list[str | None]:
        own = (self.choice_field, self.tie_field, self.strength_field, self.chosen_score_field)
        return [
            *super().named,
            self.chosen_field,
            self.rejected_field,
            *own,
            self.rejected_score_field,
            self.chosen_policy_field,
            self.rejected_policy_field,
        ]


class DialoguesSource(_Compared):
    """HH-RLHF: two whole dialogues `\\n\\nHuman: ...\\n\\nAssistant: ...`; what both begin with is the prompt."""

    layout: Literal["dialogues"]


class PairsSource(_Compared):
    """A row is a pair: texts beside their prompt, or two chats. Without a prompt, what both chats begin with is it."""

    layout: Literal["pairs"]
    prompt_field: str | None = Field(None, description="column of a string that becomes one user turn, or of a chat")

    @property
    def named(self) -> list[str | None]:
        return [self.prompt_field, *super().named]


class _Prompted(_Files):
    """What files of prompts with answers have."""

    prompt_field: str = Field("prompt", description="column of a string that becomes one user turn, or of a chat")

    @property
    def named(self) -> list[str | None]:
        return [self.prompt_field, *super().named]


class RatedSource(_Prompted):
    """UltraFeedback's form: a row is a prompt with several answers, each with a rating."""

    layout: Literal["rated"]
    source: Origin = Field("ai", description="who rates")
    answers_field: str = Field("completions", description="column of the list of answers")
    text_key: str = Field("response", description="within an answer: its text")
    rating_key: str = Field("overall_score", description="within an answer: its rating, a number")
    policy_key: str | None = Field("model", description="within an answer: the model that wrote it")
    ranking: RankingConfig = Field(RankingConfig(min_margin=1.0), description="which answers are compared")

    @property
    def named(self) -> list[str | None]:
        return [*super().named, self.answers_field]


class ThumbsSource(_Prompted):
    """A log of votes, a row each. Answers to one prompt are compared by the share of their votes that are up."""

    layout: Literal["thumbs"]
    source: Origin = "click"
    answer_field: str = Field("answer", description="column of the answer that was voted on")
    vote_field: str = Field("vote", description="column of the vote")
    up: list[str] = Field(["up", "1", "true"], description="values that are a vote for it, in any case")
    down: list[str] = Field(["down", "-1", "0", "false"], description="values that are a vote against it")
    min_votes: int = Field(1, ge=1, description="votes that an answer needs")
    policy_field: str | None = Field(None, description="column of the model that wrote the answer")
    ranking: RankingConfig = Field(RankingConfig(min_margin=0.5), description="which answers are compared")

    @property
    def named(self) -> list[str | None]:
        return [*super().named, self.answer_field, self.vote_field, self.policy_field]


class ClicksSource(_Prompted):
    """A log of answers that were shown, and which was clicked: it beats the others."""

    layout: Literal["clicks"]
    source: Origin = "click"
    answers_field: str = Field("answers", description="column of the shown answers in their order, a list")
    text_key: str | None = Field(None, description="within an answer: its text, where answers are objects")
    clicked_field: str = Field("clicked", description="column of the clicked ones: a place from 0, or a list of them")
    over: Literal["all", "above"] = Field(
        "all",
        description="what a click beats: every answer that wasn't clicked, or only those shown above it, which were "
        "seen (Joachims 2002)",
    )

    @property
    def named(self) -> list[str | None]:
        return [*super().named, self.answers_field, self.clicked_field]


class EditsSource(_Prompted):
    """A log of answers that people rewrote: the rewritten text beats the original. One left as it was is no pair."""

    layout: Literal["edits"]
    source: Origin = "click"
    answer_field: str = Field("answer", description="column of the answer as it was written")
    edited_field: str = Field("edited", description="column of the text that people made of it; null: left as it was")
    policy_field: str | None = Field(None, description="column of the model that wrote the answer")

    @property
    def named(self) -> list[str | None]:
        return [*super().named, self.answer_field, self.edited_field, self.policy_field]


PreferenceSource = Annotated[
    DialoguesSource | PairsSource | RatedSource | ThumbsSource | ClicksSource | EditsSource,
    Field(discriminator="layout"),
]


class PreferenceFilesConfig(StrictConfig):
    """What the stage `preference_files` reads: somebody's pairs, and how many of them are held out."""

    sources: list[PreferenceSource] = Field(min_length=1)
    max_rejected_fraction: float = Field(0.1, ge=0, le=1, description="the stage fails above this share of bad rows")
    eval_fraction: float = Field(0.2, ge=0, lt=1, description="share of the prompt clusters held out")
    near_duplicate_threshold: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of word 3-grams from which two prompts share a cluster"
    )

    @model_validator(mode="after")
    def _choices_named(self) -> Self:
        for position, source in enumerate(self.sources):
            if isinstance(source, _Compared) and source.strengths and source.strength_field is None:
                raise ValueError(f"sources.{position}.strengths belongs to a strength_field, and there is none")
        return self
