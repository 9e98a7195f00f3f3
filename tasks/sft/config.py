"""Configuration of the supervised start: which demonstrations there are, and how they are taught."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed


class DemonstrationSource(StrictConfig):
    """Files of demonstrations: chats, prompts with their answers, or plain text (mid-training)."""

    path: str = unhashed(..., "file, folder or glob, local or s3://; relative to the current folder")
    format: Literal["auto", "parquet", "jsonl", "arrow"] = Field("auto", description="auto: by the file's ending")
    messages_field: str | None = Field(
        None, description="column of a chat, list of {role, content}: every assistant turn is taught"
    )
    prompt_field: str | None = Field(None, description="column of a string that becomes one user turn")
    response_field: str | None = Field(None, description="column of the answer that is taught, with prompt_field")
    text_field: str | None = Field(None, description="column of plain text: all of it is taught, no chat template")
    system: str | None = Field(None, description="system message for chats that have none")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.prompt_field is None) != (self.response_field is None):
            raise ValueError("prompt_field and response_field belong together")
        given = [name for name in (self.messages_field, self.prompt_field, self.text_field) if name is not None]
        if len(given) != 1:
            raise ValueError("a source has one of messages_field, prompt_field with response_field, and text_field")
        if self.system is not None and self.text_field is not None:
            raise ValueError("system belongs to chats; plain text takes none")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        named = (self.messages_field, self.prompt_field, self.response_field, self.text_field)
        return [name for name in named if name is not None]


class SftLoraConfig(StrictConfig):
    """The adapter that demonstrations train, and that the policy updates then go on training."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1, description="the adapter is scaled by alpha / rank")
    targets: str | tuple[str, ...] = Field("all-linear", description="module names, or all-linear")


class SftConfig(StrictConfig):
    """How demonstrations change the base model, before the first iteration."""

    sources: list[DemonstrationSource] = Field(min_length=1)
    max_tokens: int = Field(2048, ge=8, description="a longer row is set aside: nothing is truncated")
    heldout_fraction: float = Field(
        0.05, ge=0, lt=1, description="share of the rows that only measure; rows of one prompt stay together"
    )
    max_rejected_fraction: float = Field(0.1, ge=0, le=1, description="the stage fails above this share of bad rows")
    learning_rate: float = Field(2e-4, gt=0, description="for LoRA: about ten times that of full fine-tuning")
    epochs: int = Field(1, ge=1)
    batch_rows: int = Field(32, ge=1, description="rows an optimizer step; the loss is the mean over all its tokens")
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    lora: SftLoraConfig = Field(default_factory=SftLoraConfig)
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="of the frozen base; LoRA is float32. auto: bfloat16 where the device has it"
    )
    device: str = unhashed("auto", "auto, cpu or cuda")
    tokens_per_microbatch: int | None = unhashed(
        None, "tokens computed at once, which bounds memory; none: 1,024 on a CPU, 16,384 on a GPU", ge=8
    )
    checkpoint_every_steps: int = unhashed(4, "a killed training goes on from its last checkpoint", ge=1)
