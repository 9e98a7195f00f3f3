"""What `curate` reads and how it cleans and splits it."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed
from tasks.curate.dedup_config import CoverageConfig, EmbeddingConfig, EvaluationSetConfig


class VerifierConfig(StrictConfig):
    """How answers to a source's prompts are verified; `tasks.grading` has the names."""

    name: str = Field(min_length=1, description="a registered verifier or package.module:function")
    params: dict[str, Any] = Field(default_factory=dict, description="passed to the verifier")
    param_fields: dict[str, str] = Field(
        default_factory=dict, description="params that each row has its own of -> their columns, such as tests: test"
    )


class SourceConfig(StrictConfig):
    """One source of prompts: either files (`path`) or a procedure (`generator`)."""

    path: str | None = unhashed(None, "file, folder or glob, local or s3://; relative to the current folder")
    format: Literal["auto", "parquet", "jsonl", "arrow"] = Field("auto", description="auto: by the file's ending")
    messages_field: str | None = Field(None, description="column of a chat: list of {role, content}")
    prompt_field: str | None = Field(None, description="column of a string that becomes one user turn")
    answer_field: str | None = Field(None, description="column of the reference answer")
    system: str | None = Field(None, description="system message for chats that have none")
    domain: str | None = Field(None, description="kept with each prompt; default: the generator's or 'general'")
    tags: list[str] = Field(default_factory=list, description="kept with each prompt")
    verifier: VerifierConfig | None = Field(None, description="needed for files; a generator brings its own")
    generator: str | None = Field(None, description="a registered generator or package.module:object")
    params: dict[str, Any] = unhashed({}, "passed to the generator; hashed with the sources, less its paths")

    @model_validator(mode="after")
    def _files_or_generator(self) -> Self:
        if (self.path is None) == (self.generator is None):
            raise ValueError("a source has either a path or a generator")
        if self.path is None:
            return self
        if (self.messages_field is None) == (self.prompt_field is None):
            raise ValueError("a source with a path has either messages_field or prompt_field")
        if self.verifier is None:
            raise ValueError("a source with a path needs a verifier: {name, params}")
        if self.params:
            raise ValueError("params belong to a generator; a source with a path takes none")
        return self


class CurateConfig(StrictConfig):
    """The pool of prompts: its sources, its held-out part and what counts as a duplicate."""

    sources: list[SourceConfig] = Field(min_length=1)
    eval_fraction: float = Field(0.1, ge=0, lt=1, description="held-out share; ignored when eval_prompts is set")
    eval_prompts: int | None = Field(None, ge=0, description="held-out prompts, at most")
    near_duplicate_threshold: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of word 3-grams from which two prompts share a cluster"
    )
    max_rejected_fraction: float = Field(
        0.1, ge=0, le=1, description="the stage fails above this share of bad rows (duplicates don't count)"
    )
    embeddings: EmbeddingConfig | None = Field(None, description="near duplicates by meaning too; none: by words alone")
    decontaminate: list[EvaluationSetConfig] = Field([], description="sets whose texts no prompt may repeat")
    coverage: CoverageConfig = Field(CoverageConfig(), description="the report of what the pool covers")
