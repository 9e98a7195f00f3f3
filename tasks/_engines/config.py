"""How completions are generated: which engine serves the policy, in what precision, on how many devices."""

from typing import Literal

from pydantic import Field, field_validator

from storage.config_base import StrictConfig, unhashed

KNOWN_ENGINES = ("auto", "vllm", "transformers")


class EngineConfig(StrictConfig):
    """The engine of a stage that generates. What only decides speed or memory is no part of the fingerprint."""

    name: str = Field(
        "auto",
        description="auto (vLLM where it is installed, else transformers), vllm, transformers, or the dotted path "
        "`package.module:Class` of an engine of your own.",
    )
    max_model_len: int = Field(2048, ge=8, description="Longest prompt plus completion, in tokens.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Precision of the weights served. auto: bfloat16 where the device multiplies in it, else float32.",
    )
    adapter: Literal["auto", "merged", "lora"] = Field(
        "auto",
        description="How a LoRA policy is served: merged into the base's weights, or as an adapter beside them. auto: "
        "merged on a CPU, where the adapter path is four times slower, lora on a GPU.",
    )
    max_lora_rank: int = Field(64, ge=1, description="Largest LoRA rank that the engine makes room for.")
    tensor_parallel: int = Field(1, ge=1, description="Devices that share one engine's weights.")
    data_parallel: int = unhashed(1, "Engines that serve side by side, each with its own shards.", ge=1)
    kv_cache_gib: int = unhashed(2, "Memory for keys and values on a CPU, in GiB.", ge=1)
    gpu_memory_utilization: float = unhashed(0.9, "Fraction of a GPU's memory that vLLM takes.", gt=0, le=1)
    start_timeout_s: float = unhashed(600.0, "How long an engine may take to load, in seconds.", gt=0)
    keep_alive: bool = unhashed(True, "Keep the engine between stages of this process; false frees its memory at once.")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in KNOWN_ENGINES and ":" not in name:
            raise ValueError(
                f"unknown engine {name!r}: expected one of {', '.join(KNOWN_ENGINES)}, or `package.module:Class`"
            )
        return name
