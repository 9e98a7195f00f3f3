"""Configuration of frozen states."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed

Pooling = Annotated[str, Field(pattern=r"^(last|answer|question|mean-[1-9]\d*)$")]
Layer = Annotated[int, Field(ge=1)]


class StatesConfig(StrictConfig):
    """Which hidden states of the base stand for an answer."""

    layers: list[Layer] | None = Field(
        None,
        min_length=1,
        description="outputs of these layers, counted from 1; none: about six between 0.3 and 0.8 of the depth",
    )
    poolings: list[Pooling] = Field(
        ["last", "mean-48", "answer"],
        min_length=1,
        description="last: the answer's last token; answer: mean over the answer; mean-48: mean of the dialogue's last "
        "48 tokens; question: the last token of the question",
    )
    question: str | None = Field(
        None, min_length=1, description="text after the answer, such as a question about it; its last token is a state"
    )
    max_tokens: int = Field(320, ge=8, description="a dialogue is cut to its last so many tokens, question excluded")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="of the base. auto: bfloat16 where the device has it"
    )
    device: str = unhashed("auto", "auto, cpu or cuda")
    tokens_per_microbatch: int | None = unhashed(
        None, "packed tokens computed at once, which bounds memory; none: 1,024 on a CPU, 16,384 on a GPU", ge=8
    )

    @model_validator(mode="after")
    def _asked_where_read(self) -> "StatesConfig":
        if ("question" in self.poolings) != (self.question is not None):
            raise ValueError("question and the pooling of that name belong together: give both or neither")
        if len(set(self.poolings)) < len(self.poolings) or len(set(self.layers or [])) < len(self.layers or []):
            raise ValueError("a layer or a pooling is named twice")
        return self


class DrawnStatesConfig(StatesConfig):
    """And of which pairs: what the section of the reward model says, the flow fills in."""

    sources: tuple[str, ...] | None = Field(None, description="read pairs of these sources alone; none: all")
    max_pairs: int | None = Field(None, ge=2, description="more pairs to train on are sampled down, by seed; none: all")
    max_heldout_pairs: int | None = Field(
        None, ge=1, description="more held-out pairs are sampled down, by seed; none: all"
    )
