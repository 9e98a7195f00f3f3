"""What `curate` compares prompts with besides each other's words, and what it reports of the pool."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed

NGRAM_WORDS = 13


class EvaluationSetConfig(StrictConfig):
    """A set of texts that no prompt may repeat: a benchmark that the policy will be measured on."""

    name: str = Field(min_length=1, description="shown with each prompt that repeats a text of the set")
    path: str = unhashed(..., "file, folder or glob, local or s3://; its content is hashed")
    format: Literal["auto", "parquet", "jsonl", "arrow", "csv", "text"] = Field(
        "auto", description="auto: by the file's ending"
    )
    field: str = Field(min_length=1, description="column of the texts: strings, or chats of {role, content}")
    n: int = Field(NGRAM_WORDS, ge=1, description="words in a row that count as repeated; shorter texts: all of them")


class EmbeddingConfig(StrictConfig):
    """Near duplicates by meaning: the cosine of two prompts' vectors."""

    method: Literal["hashed", "model"] = Field(
        "hashed", description="hashed: TF-IDF of words hashed to `dimensions`; model: mean of the last hidden states"
    )
    model: str | None = unhashed(
        None, "folder of safetensors, .gguf or package:NAME for method model; its weights are hashed"
    )
    threshold: float = Field(0.95, gt=0, le=1, description="cosine from which two prompts share a cluster")
    dimensions: int = Field(512, ge=16, le=8192, description="of hashed vectors")
    max_tokens: int = Field(256, ge=8, description="of a prompt that a model reads; the rest is cut off")
    max_prompts: int = unhashed(
        200_000, "more are refused: every vector is compared with every other, which takes the square of them", ge=1
    )

    @model_validator(mode="after")
    def _model_for_its_method(self) -> Self:
        if (self.method == "model") != (self.model is not None):
            raise ValueError("embeddings: `model` belongs to method model, and method model needs it")
        return self


class CoverageConfig(StrictConfig):
    """The report of what the pool covers."""

    topics: int = Field(12, ge=0, le=100, description="clusters of prompts that are shown; 0: none")
    topic_sample: int = Field(10_000, ge=1, le=100_000, description="prompts that topics are found among, at most")
    vendi_sample: int = Field(1_000, ge=0, le=2_000, description="prompts that the Vendi score is of, at most; 0: none")
