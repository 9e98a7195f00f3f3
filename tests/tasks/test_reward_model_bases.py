"""Reward models on top of a policy, and judges that are asked by the base's own words."""

import logging
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from tiny_preferences import CONFIG, preferences, train

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.policies import base_of, register_base, resolve_policy
from tasks._engines.chat import load_tokenizer
from tasks._stage import StageContext
from tasks._training.batching import group_rows
from tasks._training.heads import load_scoring_model
from tasks._training.judge_question import ask_in, load_judge
from tasks._training.logprobs import hidden_states
from tasks._training.lora import LoraSpec, attach_lora, load_causal_model, load_headless_model, load_lora, save_lora
from tasks._training.merging import merge_adapter
from tasks._training.packing import pack
from tasks._training.reward_models import kind_of, score
from tasks.reward_model import stage
from tasks.reward_model.pairs import tokenize_pairs

CPU = torch.device("cpu")
ROWS = [[5, 6, 7, 8]], [[9, 10, 11]]
JUDGE = CONFIG.model_copy(update={"kind": "generative", "question": "?", "epochs": 4})


def states(decoder):
    batch = pack(
        group_rows(*([np.array(ids) for ids in side] for side in ROWS), max_tokens=99), pad_token_id=0, device=CPU
    )
    with torch.no_grad():
        return hidden_states(decoder, batch)


@pytest.fixture(scope="module")
def policy(tiny_model, tmp_path_factory):
    """A policy's adapter that does something."""
    model = attach_lora(load_causal_model(tiny_model, "float32", CPU), LoraSpec(4, 12), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("policy")
    save_lora(model, folder)
    return folder


def test_a_merged_policy_computes_what_the_policy_computes(tiny_model, policy):
    adapted = load_lora(load_causal_model(tiny_model, "float32", CPU), policy, trainable=False)
    merged = load_headless_model(tiny_model, "float32", CPU)
    before = states(merged)
    merge_adapter(merged, policy)
    expected = states(adapted.get_base_model().get_decoder())
    torch.testing.assert_close(states(merged), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)


def test_the_first_layers_take_their_part_of_a_policy(tiny_model, policy):
    one = load_headless_model(tiny_model, "float32", CPU, layers=1)
    merge_adapter(one, policy)
    whole = load_headless_model(tiny_model, "float32", CPU)
    merge_adapter(whole, policy)
    torch.testing.assert_close(one.layers[0].mlp.up_proj.weight, whole.layers[0].mlp.up_proj.weight)


def test_what_is_no_plain_adapter_is_refused(tiny_model, policy, tmp_path):
    decoder = load_headless_model(tiny_model, "float32", CPU)
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        merge_adapter(decoder, tmp_path)
    for path in policy.iterdir():
        text = path.read_bytes().replace(b'"use_dora": false', b'"use_dora": true')
        (tmp_path / path.name).write_bytes(text)
    with pytest.raises(InputError, match="use_dora is set"):
        merge_adapter(decoder, tmp_path)


def test_a_reward_model_on_a_policy_needs_the_base_alone_to_score(tiny_model, policy, tmp_path):
    frame = preferences(32)
    found = train(frame, tiny_model, tmp_path, CONFIG.model_copy(update={"epochs": 1}), policy=policy)
    tokenizer = load_tokenizer(tiny_model)
    heldout = frame.join(found.scored_pairs, on="pair_id", maintain_order="right")
    pairs = tokenize_pairs(heldout, tokenizer, tokenizer.eos_token_id, 500)
    scores = score(tiny_model, found.folder, [p.prompt for p in pairs], [p.chosen for p in pairs], device="cpu")
    np.testing.assert_allclose(scores.standardised[:, 0], heldout["chosen_score"], atol=1e-4)
    for path in found.folder.glob("policy_*"):
        path.unlink()
    without = score(tiny_model, found.folder, [p.prompt for p in pairs], [p.chosen for p in pairs], device="cpu")
    assert np.abs(without.standardised - scores.standardised).max() > 1e-2


def test_a_judges_question_goes_on_where_an_answer_ended(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    question = ask_in(tokenizer, "Good?")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    whole = tokenizer.apply_chat_template(
        [*chat, {"role": "user", "content": "Good?"}], add_generation_prompt=True, tokenize=False
    )
    start = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    ids = [*tokenizer(start)["input_ids"], *tokenizer("Ho")["input_ids"], tokenizer.eos_token_id, *question.token_ids]
    assert tokenizer.decode(ids) == whole
    assert question.yes != question.no


def test_an_untrained_judges_score_is_the_difference_of_two_logits(tiny_model):
    question = ask_in(load_tokenizer(tiny_model), "Good?")
    decoder, direction = load_judge(tiny_model, "float32", CPU, question)
    causal = load_causal_model(tiny_model, "float32", CPU)
    ids = torch.tensor([[5, 6, 7, *question.token_ids]])
    with torch.no_grad():
        logits = causal(input_ids=ids).logits[0, -1]
        hidden = decoder(input_ids=ids).last_hidden_state[0, -1]
    difference = (logits[question.yes] - logits[question.no]).item()
    assert (direction @ hidden.float()).item() == pytest.approx(difference, abs=1e-4)


def test_a_judge_learns_from_labels_and_keeps_the_bases_words(tiny_model, tmp_path):
    frame = preferences(96)
    found = train(frame, tiny_model, tmp_path, JUDGE)
    assert found.metrics["heldout_accuracy"] > 0.75
    assert kind_of(found.folder) == "generative"
    model, description = load_scoring_model(tiny_model, found.folder, device=CPU)
    question = ask_in(load_tokenizer(tiny_model), JUDGE.question)
    assert description.suffix_token_ids == question.token_ids
    _, direction = load_judge(tiny_model, "float32", CPU, question)
    torch.testing.assert_close(model.head.weight.data, direction)
    heldout = frame.join(found.scored_pairs, on="pair_id", maintain_order="right")
    tokenizer = load_tokenizer(tiny_model)
    answers = tokenizer(heldout["chosen"].to_list(), add_special_tokens=False)["input_ids"]
    prompts = [
        tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False)
        for m in heldout["messages"].to_list()
    ]
    scores = score(tiny_model, found.folder, prompts, answers, device="cpu")
    np.testing.assert_allclose(scores.standardised[:, 0], heldout["chosen_score"], atol=1e-4)


def committed(tmp_path, name, fingerprint="0", **outputs):
    artifact = Artifact(root=str(tmp_path / "root"), stage=name, fingerprint=f"{name}{fingerprint}")
    recipe = Recipe(artifact, step=name, version=1, config={}, inputs={}, seed=None)
    commit_outputs(recipe, Attempt(datetime.now(UTC), tmp_path), Outputs(**outputs))
    return artifact


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_the_stage_says_what_to_score_on_top_of(tiny_model, policy, tmp_path, weights):
    base = register_base(str(tmp_path / "root"), str(tiny_model))
    folder = policy if weights == "lora" else tiny_model
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    trained = committed(tmp_path, "policy_update", files=files, facts={"base": base.id, "weights": weights})
    pairs = committed(tmp_path, "preferences", preferences=preferences(32))
    context = StageContext(tmp_path / "scratch", logging.getLogger(__name__), lambda *_: None, iteration=1)
    config = CONFIG.model_copy(update={"epochs": 1, "base": "policy"})
    made = stage.train.function(preferences=pairs, base=trained, config=config, seed=1, context=context)
    assert made.facts["base"] == (base.id if weights == "lora" else trained.id)
    assert ("policy_adapter_model.safetensors" in made.files) is (weights == "lora")
    model = committed(tmp_path, "reward_model", files=made.files, facts=made.facts)
    on_top_of = resolve_policy(base_of(model)).weights
    scores = score(on_top_of, model.files_folder(), [[5, 6, 7]], [[8, 9]], device="cpu")
    assert np.isfinite(scores.raw).all()
