"""Policies with full weights: each engine samples from them, with the log-probabilities that a trainer computes."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import build_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.models import PolicyFiles
from storage.policies import register_base, resolve_policy
from tasks._devices import choose_dtype
from tasks._engines.chat import load_tokenizer, render
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import Engine, SamplingParams
from tasks._engines.transformers_engine import TransformersEngine
from tasks._engines.vllm_engine import VllmEngine
from tasks._serving import served_model
from tasks._training.batching import group_rows
from tasks._training.logprobs import token_logprobs
from tasks._training.lora import load_causal_model
from tasks._training.packing import pack
from tasks.policy_update.parity import MAX_MEAN_DIFFERENCE
from tasks.rollouts.config import RolloutsConfig

CONFIG = RolloutsConfig(sampling={"max_tokens": 16}, engine=EngineConfig(max_model_len=128, kv_cache_gib=1))
CPU = torch.device("cpu")


def save_trained(base: Path, folder: Path, seed: int) -> Path:
    """Other weights of the base's architecture as a trainer saves them: float32, its own config, no tokenizer."""
    config = AutoConfig.from_pretrained(base)
    config.use_cache = False
    weights = build_tiny_model(folder / "weights", seed=seed)
    model = AutoModelForCausalLM.from_pretrained(weights, config=config, dtype=torch.float32)
    model.save_pretrained(folder / "trained", max_shard_size="60KB")
    (folder / "trained" / "generation_config.json").unlink()
    return folder / "trained"


def full_policy(base: Artifact, tiny_model: Path, folder: Path, seed: int) -> PolicyFiles:
    trained = save_trained(tiny_model, folder, seed)
    policy = Artifact(root=base.root, stage="policy_update", fingerprint=f"{seed:032x}")
    recipe = Recipe(policy, step="policy_update", version=1, config={}, inputs={}, seed=None)
    outputs = Outputs(files={path.name: path for path in trained.iterdir()}, facts={"base": base.id, "weights": "full"})
    commit_outputs(recipe, Attempt(datetime.now(UTC), folder), outputs)
    return resolve_policy(policy)


@pytest.fixture(scope="module")
def base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return register_base(str(tmp_path_factory.mktemp("root")), str(tiny_model))


@pytest.fixture(scope="module")
def policies(base: Artifact, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[PolicyFiles]:
    """Two policies with full weights, and the base that they began as."""
    trained = [full_policy(base, tiny_model, tmp_path_factory.mktemp("policy"), seed) for seed in (1, 2)]
    return [*trained, resolve_policy(base)]


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=pytest.mark.servers)])
def engine(request: pytest.FixtureRequest, policies: list[PolicyFiles]) -> Iterator[Engine]:
    """An engine that serves the base."""
    kind = {"transformers": TransformersEngine, "vllm": VllmEngine}[request.param]
    started = kind(CONFIG.engine, served_model(policies[-1], CONFIG.engine))
    yield started
    started.close()


def mean_difference(engine: Engine, policy: PolicyFiles) -> float:
    """Mean |engine's - trainer's| log-probability, nats per token, over 20 samples."""
    prompt = render(load_tokenizer(policy.base), [{"role": "user", "content": "What is 12 plus 30?"}])
    [drawn] = engine.generate([prompt], [20], SamplingParams(16), 1, lambda done, total: None)
    prompts = [np.array(prompt, dtype=np.int32)] * len(drawn)
    responses = [np.array(one.token_ids, dtype=np.int32) for one in drawn]
    batch = pack(group_rows(prompts, responses, max_tokens=4096), pad_token_id=0, device=CPU)
    model = load_causal_model(policy.weights, "auto", CPU)
    with torch.no_grad():
        ours = token_logprobs(model, batch, torch.ones(len(drawn))).logprobs
    theirs = torch.tensor(np.concatenate([drawn[row].logprobs for row in batch.rows]), dtype=torch.float32)
    return float((ours[batch.mask] - theirs).abs().mean())


def test_full_weights_are_served_swapped_and_agree_with_the_trainer(engine: Engine, policies: list[PolicyFiles]):
    limit = MAX_MEAN_DIFFERENCE[choose_dtype("auto", "cpu")]
    child = engine._child.pid if isinstance(engine, VllmEngine) else None
    for policy in (policies[0], policies[1], policies[2], policies[0]):
        engine.load(served_model(policy, CONFIG.engine))
        assert mean_difference(engine, policy) < limit
    assert mean_difference(engine, policies[1]) > 0.5, "the other policy's weights answer too"
    if isinstance(engine, VllmEngine):
        assert engine._child.pid == child, "the child was started again instead of swapped"
