"""vLLM serving adapters beside their base: each policy's log-probabilities are its own, swapped without a restart."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from storage.errors import InputError
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import SamplingParams, ServedModel
from tasks._engines.vllm_engine import VllmEngine

CONFIG = EngineConfig(max_model_len=128, kv_cache_gib=1, adapter="lora", max_lora_rank=8)
PROMPT = [1, 280, 262, 201, 74, 130]


def save_adapter(base: Path, folder: Path, seed: int, rank: int = 4) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = get_peft_model(model, LoraConfig(r=rank, lora_alpha=8, target_modules=layers, init_lora_weights=False))
    lora.save_pretrained(folder)
    return folder


def mean_difference(base: Path, adapter: Path | None, engine: VllmEngine) -> float:
    """Mean |engine's - a float32 forward's| log-probability over 30 samples, with the adapter given."""
    [drawn] = engine.generate([PROMPT], [30], SamplingParams(16), 1, lambda done, total: None)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    differences = []
    for one in drawn:
        with torch.inference_mode():
            logits = model(torch.tensor([[*PROMPT, *one.token_ids]])).logits[0, len(PROMPT) - 1 : -1]
        ours = logits.log_softmax(-1).gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
        differences.append((ours - torch.tensor(one.logprobs)).abs())
    return torch.cat(differences).mean().item()


@pytest.mark.servers
def test_adapters_are_served_and_swapped_in_one_engine(tiny_model: Path, tmp_path: Path) -> None:
    first, second = (save_adapter(tiny_model, tmp_path / f"adapter-{seed}", seed) for seed in (1, 2))
    engine = VllmEngine(CONFIG, ServedModel(tiny_model, first, "first", tiny_model))
    try:
        child = engine._child.pid
        assert mean_difference(tiny_model, first, engine) < 0.05
        assert mean_difference(tiny_model, None, engine) > 0.2, "the base was served, not the adapter"
        for adapter in (second, first):
            engine.load(ServedModel(tiny_model, adapter, "first", tiny_model))
            assert mean_difference(tiny_model, adapter, engine) < 0.05
        assert engine._child.pid == child, "the child was started again instead of swapped"
    finally:
        engine.close()


def test_a_rank_above_the_limit_is_refused_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", 1, rank=16)
    with pytest.raises(InputError, match="LoRA rank 16 exceeds max_lora_rank 8"):
        VllmEngine(CONFIG, ServedModel(tiny_model, adapter, "wide", tiny_model))
