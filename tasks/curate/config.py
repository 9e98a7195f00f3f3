"""What `curate` reads and how it cleans, mixes and splits it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed
from tasks._sources.config import CsvConfig
from tasks.curate.dedup_config import CoverageConfig, EmbeddingConfig, EvaluationSetConfig
from tasks.curate.expand_config import ExpandConfig
from tasks.curate.filters_config import FiltersConfig

NEED_VERIFIER = ("template",)
OTHER_DOMAINS = "*"
Most = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]


class VerifierConfig(StrictConfig):
    """How answers to a source's prompts are verified; `tasks.grading` has the names."""

    name: str = Field(min_length=1, description="a registered verifier or package.module:function")
    params: dict[str, Any] = Field(default_factory=dict, description="passed to the verifier")
    param_fields: dict[str, str] = Field(
        default_factory=dict, description="params that each row has its own of -> their columns, such as tests: test"
    )


class SourceConfig(StrictConfig):
    """One source of prompts: files (`path`), a procedure (`generator`), or what a model writes (`expand`)."""

    path: str | None = unhashed(None, "file, folder or glob, local or s3://; relative to the current folder")
    format: Literal["auto", "parquet", "jsonl", "arrow", "csv", "text"] = Field(
        "auto", description="auto: by the file's ending; text: every file of a folder is one prompt"
    )
    csv: CsvConfig = Field(CsvConfig(), description="how a CSV file is laid out")
    messages_field: str | None = Field(None, description="column of a chat: list of {role, content}")
    prompt_field: str | None = Field(None, description="column of a string that becomes one user turn")
    answer_field: str | None = Field(None, description="column of the reference answer")
    domain_field: str | None = Field(None, description="column of the domain, instead of domain")
    system: str | None = Field(None, description="system message for chats that have none")
    domain: str | None = Field(None, description="kept with each prompt; default: the generator's or 'general'")
    tags: list[str] = Field(default_factory=list, description="kept with each prompt")
    verifier: VerifierConfig | None = Field(None, description="needed for files; most generators bring their own")
    generator: str | None = Field(None, description="a registered generator or package.module:object")
    params: dict[str, Any] = unhashed({}, "passed to the generator; hashed with the sources, less its paths")
    expand: ExpandConfig | None = Field(None, description="new prompts that a model writes after those of others")
    weight: float | None = Field(None, gt=0, description="its share of the pool, relative to the other sources'")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if [self.path, self.generator, self.expand].count(None) != 2:
            raise ValueError("a source has exactly one of path, generator and expand")
        if self.params and self.generator is None:
            raise ValueError("params belong to a generator; other sources take none")
        if self.verifier is None and (self.generator is None or self.generator in NEED_VERIFIER):
            raise ValueError(f"a source with {self.kind} needs a verifier: {{name, params}}")
        if self.path is not None and (self.messages_field is None) == (self.prompt_field is None):
            raise ValueError("a source with a path has either messages_field or prompt_field")
        return self

    @property
    def kind(self) -> str:
        """What it is, for a message."""
        if self.expand is not None:
            return "expand"
        return f"generator {self.generator!r}" if self.generator else "a path"

    @property
    def place(self) -> str:
        """Where it is, for a message."""
        return self.path or self.generator or "an expansion"


class ExpansionConfig(StrictConfig):
    """What the stage `expand` reads: how to expand, and the sources whose prompts are the seeds."""

    expand: ExpandConfig
    sources: list[SourceConfig]


class CurateConfig(StrictConfig):
    """The pool of prompts: its sources and their shares, what is left out, its held-out part, what is a duplicate."""

    sources: list[SourceConfig] = Field(min_length=1)
    filters: FiltersConfig = Field(FiltersConfig(), description="prompts that are not wanted")
    max_prompts: int | None = Field(None, ge=1, description="prompts of the pool at most, drawn by the seed")
    scarce_sources: Literal["limit", "fill"] = Field(
        "limit",
        description="a source with fewer prompts than its weight asks for limits the pool, so that the shares hold; "
        "or the others fill up to max_prompts. No prompt is ever repeated",
    )
    quota: dict[str, Most | Share] = Field(
        default_factory=dict,
        description="domain -> prompts at most (300) or share at most (0.3) of the training part; '*': every other one",
    )
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

    @model_validator(mode="after")
    def _shares(self) -> Self:
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError(f"sources.{weighted.index(False)} has no weight and others have; weigh all or none")
        if self.scarce_sources == "fill" and not (all(weighted) and self.max_prompts):
            raise ValueError("scarce_sources: fill needs a weight for each source and max_prompts to fill up to")
        return self

    @model_validator(mode="after")
    def _seeds(self) -> Self:
        plain = [position for position, source in enumerate(self.sources) if source.expand is None]
        for position, source in enumerate(self.sources):
            seeds = plain if source.expand is None or source.expand.seeds is None else source.expand.seeds
            if source.expand is not None and (not seeds or not set(seeds) <= set(plain)):
                raise ValueError(f"sources.{position}.expand.seeds is {seeds}; expected some of {plain}, no expansion")
        return self

    def expansions(self) -> dict[int, ExpansionConfig]:
        """What has to be expanded before the pool is made, by the source's position."""
        found = {}
        for position, source in enumerate(self.sources):
            if source.expand is None:
                continue
            seeds = source.expand.seeds
            learnt = [
                one for at, one in enumerate(self.sources) if one.expand is None and (seeds is None or at in seeds)
            ]
            unweighted = [one.model_copy(update={"weight": None}) for one in learnt]
            found[position] = ExpansionConfig(expand=source.expand, sources=unweighted)
        return found
