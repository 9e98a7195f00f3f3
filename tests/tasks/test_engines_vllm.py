"""vLLM: it samples what it says, from the policy that was asked for, full weights too, all in one started engine."""

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_samples import CONFIG, SAMPLING, forward_differences, questions, quiet, sample, served
from tiny_model import build_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError, TransientError
from storage.models import PolicyFiles
from storage.policies import register_base, resolve_policy
from tasks._devices import choose_dtype
from tasks._engines.chat import load_tokenizer, render, stop_token_ids
from tasks._engines.protocol import Engine, SamplingParams
from tasks._engines.transformers_engine import TransformersEngine
from tasks._engines.vllm_engine import VllmEngine
from tasks._serving import served_model
from tasks._training.batching import group_rows
from tasks._training.logprobs import token_logprobs
from tasks._training.lora import load_causal_model
from tasks._training.packing import pack
from tasks.policy_update.parity import MAX_MEAN_DIFFERENCE

# bf16 keeps 8 bits: two engines that add in another order differ by a few hundredths of a nat.
MEAN_NATS, MAX_NATS = 0.03, 0.25
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


@pytest.fixture(scope="module")
def vllm(tiny_model: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(CONFIG, served(tiny_model))
    yield engine
    engine.close()


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=pytest.mark.servers)])
def engine(request: pytest.FixtureRequest, policies: list[PolicyFiles]) -> Iterator[Engine]:
    """An engine to be handed policies."""
    if request.param == "vllm":
        yield request.getfixturevalue("vllm")
        return
    started = TransformersEngine(CONFIG, served_model(policies[-1], CONFIG))
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


@pytest.mark.servers
def test_vllm_logprobs_are_the_model_s(vllm: VllmEngine, tiny_model: Path) -> None:
    completions = sample(vllm, tiny_model)
    assert [len(drawn) for drawn in completions] == [4, 3, 2]
    for dtype in (torch.bfloat16, torch.float32):
        differences = forward_differences(tiny_model, completions, dtype)
        assert differences.mean() < MEAN_NATS and differences.max() < MAX_NATS


@pytest.mark.servers
def test_vllm_ends_at_the_end_of_turn_and_reports_progress(vllm: VllmEngine, tiny_model: Path) -> None:
    stops = stop_token_ids(tiny_model, load_tokenizer(tiny_model))
    seen: list[tuple[int, int]] = []
    [drawn] = vllm.generate(
        questions(tiny_model)[:1], [200], SAMPLING, 2, lambda done, total: seen.append((done, total))
    )
    stopped = [one for one in drawn if one.finish_reason == "stop"]
    assert stopped and all(one.token_ids[-1] in stops and "<|im_end|>" not in one.text for one in stopped)
    assert seen[-1] == (200, 200) and len(seen) > 3


@pytest.mark.servers
def test_vllm_s_nucleus_is_the_transformers_engine_s(vllm: VllmEngine, tiny_model: Path) -> None:
    """The same truncated distribution: each token's reported log-probability agrees between the engines."""
    sampling = SamplingParams(max_tokens=1, temperature=0.8, top_p=0.6, top_k=20)
    prompts = questions(tiny_model)[:1]
    ours = TransformersEngine(CONFIG, served(tiny_model))
    [there] = vllm.generate(prompts, [300], sampling, 1, quiet)
    [here] = ours.generate(prompts, [300], sampling, 1, quiet)
    there_by_token = {one.token_ids[0]: one.logprobs[0] for one in there}
    here_by_token = {one.token_ids[0]: one.logprobs[0] for one in here}
    common = there_by_token.keys() & here_by_token.keys()
    assert len(common) >= 3
    for token in common:
        assert there_by_token[token] == pytest.approx(here_by_token[token], abs=0.1)


@pytest.mark.servers
def test_vllm_aborts_a_prompt_without_room(vllm: VllmEngine) -> None:
    long, short = vllm.generate([[5] * 200, [5] * 120], [2, 1], SAMPLING, 1, quiet)
    assert [one.finish_reason for one in long] == ["abort", "abort"]
    assert 1 <= len(short[0].token_ids) <= 8


@pytest.mark.servers
def test_a_job_that_vllm_refuses_leaves_nothing_queued(vllm: VllmEngine, tiny_model: Path) -> None:
    before = sample(vllm, tiny_model)
    with pytest.raises(InputError, match="cannot be empty"):
        vllm.generate([*questions(tiny_model), []], [4, 3, 2, 1], SAMPLING, 5, quiet)
    seen: list[int] = []
    after = vllm.generate(questions(tiny_model), [4, 3, 2], SAMPLING, 3, lambda done, total: seen.append(done))
    assert after == before and seen[-1] == 9


@pytest.mark.servers
def test_vllm_swapped_in_place_or_started_again_after_an_interruption_serves_the_policy_asked_for(
    vllm: VllmEngine, tiny_model: Path, other_model: Path
) -> None:
    first = sample(vllm, tiny_model)
    assert first == sample(vllm, tiny_model)
    assert first != sample(vllm, tiny_model, seed=4)
    child = vllm._child.pid
    vllm.load(served(other_model))
    swapped = sample(vllm, other_model)
    vllm.load(served(tiny_model))
    assert vllm._child.pid == child, "the child was started again instead of swapped"
    assert sample(vllm, tiny_model) == first

    def fail(done: int, total: int) -> None:
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        vllm.generate(questions(tiny_model), [8, 8, 8], SAMPLING, 1, fail)
    assert not vllm.alive, "a pool would hand it out with the answer still in its pipe"
    vllm.load(served(other_model))
    assert sample(vllm, other_model) == swapped


def test_full_weights_are_served_swapped_and_agree_with_the_trainer(engine: Engine, policies: list[PolicyFiles]):
    limit = MAX_MEAN_DIFFERENCE[choose_dtype("auto", "cpu")]
    child = engine._child.pid if isinstance(engine, VllmEngine) else None
    for policy in (policies[0], policies[1], policies[2], policies[0]):
        engine.load(served_model(policy, CONFIG))
        assert mean_difference(engine, policy) < limit
    assert mean_difference(engine, policies[1]) > 0.5, "the other policy's weights answer too"
    if isinstance(engine, VllmEngine):
        assert engine._child.pid == child, "the child was started again instead of swapped"


@pytest.mark.servers
def test_weights_that_vllm_cannot_serve_are_an_input_error(tiny_model: Path, tmp_path: Path) -> None:
    described = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(InputError, match="NoSuchModel"):
        VllmEngine(CONFIG, served(tmp_path))


@pytest.mark.servers
def test_a_child_killed_mid_work_is_a_transient_error_with_its_log(tiny_model: Path, vllm: VllmEngine) -> None:
    """Last of the module's: it takes the shared engine's child away, and the pool's rule replaces such an engine."""

    def kill(done: int, total: int) -> None:
        os.kill(vllm._child.pid, signal.SIGKILL)

    with pytest.raises(TransientError, match=r"exit code -9; the end of .*vllm-.*\.log"):
        vllm.generate(questions(tiny_model), [8, 8, 8], SamplingParams(100), 1, kill)
    assert not vllm.alive
