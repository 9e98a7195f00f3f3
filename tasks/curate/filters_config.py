"""Which prompts are wanted: by language, by length, by what they may not hold."""

from typing import Literal, Self

import regex
from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed

Preset = Literal["personal_data", "secrets", "injection"]


class LanguageFilter(StrictConfig):
    """Keeps prompts whose likeliest language is one of `languages`."""

    languages: list[str] = Field(min_length=1, description="ISO 639-1 codes, such as [en, de]")
    min_share: float = Field(0.0, ge=0, le=1, description="probability that they have to hold together")
    min_letters: int = Field(12, ge=1, description="a prompt of fewer letters is in no language that can be told")
    undecided: Literal["keep", "drop"] = Field("keep", description="what becomes of prompts with fewer letters")


class LengthFilter(StrictConfig):
    """Keeps prompts within bounds, all of them inclusive; what isn't set doesn't bound.

    Characters and words are those of all turns but the system's. Tokens are those of the whole chat as the run's
    model reads it, chat template and system message among them.
    """

    min_characters: int | None = Field(None, ge=1)
    max_characters: int | None = Field(None, ge=1)
    min_words: int | None = Field(None, ge=1)
    max_words: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, description="what leaves an answer room in the engine's max_model_len")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        for unit in ("characters", "words", "tokens"):
            low, high = self.bounds(unit)
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{unit} is {low} and max_{unit} is {high}: no prompt is between them")
        return self

    def bounds(self, unit: str) -> tuple[int | None, int | None]:
        """The least and the most of a unit: characters, words or tokens."""
        return getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")

    @property
    def counts_tokens(self) -> bool:
        """Whether the model's tokenizer is needed."""
        return self.bounds("tokens") != (None, None)


class SafetyFilter(StrictConfig):
    """Drops prompts in which a pattern is found; the pattern's name is the reason."""

    presets: list[Preset] = Field(default_factory=list, description="lists that come along; none by default")
    patterns: dict[str, str] = Field(default_factory=dict, description="name -> regular expression (regex package)")
    file: str | None = unhashed(None, "more of them, a line each: name: expression; hashed by its content")

    @model_validator(mode="after")
    def _expressions(self) -> Self:
        if not (self.presets or self.patterns or self.file):
            raise ValueError("a safety filter needs presets, patterns or a file of patterns")
        for name, pattern in self.patterns.items():
            try:
                regex.compile(pattern)
            except regex.error as error:
                raise ValueError(f"pattern {name!r} is no regular expression: {error}") from None
        return self


class FiltersConfig(StrictConfig):
    """Prompts that are good rows and not wanted: set aside with the filter's reason, never counted as bad rows."""

    length: LengthFilter | None = Field(None, description="characters, words or tokens")
    language: LanguageFilter | None = Field(None, description="the likeliest language")
    safety: SafetyFilter | None = Field(None, description="patterns that no prompt may hold")

    @property
    def counts_tokens(self) -> bool:
        """Whether the model's tokenizer is needed."""
        return self.length is not None and self.length.counts_tokens
