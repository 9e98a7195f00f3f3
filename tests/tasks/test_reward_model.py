"""The reward model on the tiny model: it learns a real preference, resumes, and measures only on held-out pairs."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file
from tiny_preferences import CONFIG, preferences, train

from storage.errors import InputError, TooFew
from storage.records import RECORDS
from tasks._engines.chat import load_tokenizer, render
from tasks._training.heads import DESCRIPTION, HEAD_WEIGHTS
from tasks._training.reward_models import score
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.pairs import group_pairs, plan_steps, tokenize_pairs


def test_it_learns_what_is_preferred(tiny_model, tmp_path):
    frame = preferences()
    found = train(frame, tiny_model, tmp_path)
    assert found.metrics["heldout_accuracy"] > 0.9
    assert found.metrics["heldout_accuracy_low"] <= found.metrics["heldout_accuracy"]
    assert (found.metrics["training_pairs"], found.metrics["heldout_pairs"]) == (48, 16)
    assert set(found.scored_pairs["pair_id"]) == set(frame.filter(pl.col("split") == "eval")["pair_id"])
    RECORDS["scored_pairs"].validate(found.scored_pairs)
    RECORDS["steps"].validate(found.steps)
    losses = found.steps.filter(pl.col("metric") == "loss")["value"]
    assert losses[-1] < losses[0]


def test_the_saved_model_scores_as_the_trained_one(tiny_model, tmp_path):
    """Scores by the saved folder equal those of the held-out pairs; training answers are centred around 0."""
    frame = preferences()
    found = train(frame, tiny_model, tmp_path)
    tokenizer = load_tokenizer(tiny_model)
    heldout = frame.join(found.scored_pairs, on="pair_id", maintain_order="right")
    prompts = [render(tokenizer, messages) for messages in heldout["messages"].to_list()]
    answers = tokenizer(heldout["chosen"].to_list(), add_special_tokens=False)["input_ids"]
    scores = score(tiny_model, found.folder, prompts, answers, device="cpu")
    np.testing.assert_allclose(scores.standardised[:, 0], heldout["chosen_score"].to_numpy(), atol=1e-4)
    training = frame.filter(pl.col("split") == "train")
    prompts = [render(tokenizer, messages) for messages in training["messages"].to_list()] * 2
    texts = training["chosen"].to_list() + training["rejected"].to_list()
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"]
    standardised = score(tiny_model, found.folder, prompts, answers, device="cpu").standardised
    assert abs(standardised.mean()) < 0.01
    assert standardised.std() == pytest.approx(1, abs=0.01)


def test_held_out_pairs_do_not_train(tiny_model, tmp_path):
    """Held-out pairs with the opposite preference change the accuracy and nothing else."""
    frame = preferences()
    opposite = pl.concat(
        [frame.filter(pl.col("split") == "train"), preferences(flip=True).filter(pl.col("split") == "eval")]
    )
    straight, flipped = train(frame, tiny_model, tmp_path / "a"), train(opposite, tiny_model, tmp_path / "b")
    assert contents(straight.folder) == contents(flipped.folder)
    assert flipped.metrics["heldout_accuracy"] == pytest.approx(1 - straight.metrics["heldout_accuracy"])


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_killed_training_ends_with_the_same_bytes(tiny_model, tmp_path):
    config = CONFIG.model_copy(update={"dtype": "bfloat16", "checkpoint_every_steps": 2})

    def kill(done, total, label):
        if done == 7:
            raise InterruptedError

    expected = train(preferences(), tiny_model, tmp_path / "undisturbed", config)
    with pytest.raises(InterruptedError):
        train(preferences(), tiny_model, tmp_path / "killed", config, kill)
    resumed = train(preferences(), tiny_model, tmp_path / "killed", config)
    assert contents(resumed.folder) == contents(expected.folder)
    assert resumed.scored_pairs.equals(expected.scored_pairs)


def test_the_order_of_the_rows_changes_nothing(tiny_model, tmp_path):
    frame = preferences()
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=4)
    config = CONFIG.model_copy(update={"epochs": 1})
    a, b = train(frame, tiny_model, tmp_path / "a", config), train(shuffled, tiny_model, tmp_path / "b", config)
    assert contents(a.folder) == contents(b.folder)


def test_too_few_pairs_are_an_error_that_says_how_many(tiny_model, tmp_path):
    with pytest.raises(TooFew, match=r"12 preference pairs.*at least 16 \(min_pairs\)"):
        train(preferences(16), tiny_model, tmp_path)


def test_without_held_out_pairs_there_is_no_accuracy(tiny_model, tmp_path):
    frame = preferences().filter(pl.col("split") == "train")
    found = train(frame, tiny_model, tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    assert "heldout_accuracy" not in found.metrics
    assert len(found.scored_pairs) == 0


def test_all_pairs_of_a_prompt_share_a_step_and_answers_are_computed_once(tiny_model):
    frame = preferences(24, per_prompt=4)
    same = frame.with_columns(pl.col("chosen").first().over("prompt_id"))
    tokenizer = load_tokenizer(tiny_model)
    pairs = tokenize_pairs(same, tokenizer, tokenizer.eos_token_id, max_tokens=500)
    units = group_pairs(pairs, 500)
    assert [len(unit.pairs) for unit in units] == [4] * 6
    assert all(len(unit.group.responses) == 5 for unit in units)
    steps = plan_steps(units, batch_pairs=8, epochs=1, tokens_per_microbatch=300, seed=0)
    assert [step[0].pairs_in_step for step in steps] == [8, 8, 8]
    planned = [pair for step in steps for batch in step for pair in batch.pairs]
    assert sorted(planned) == sorted(pair for unit in units for pair in unit.pairs)
    for step in steps:
        for batch in step:
            present = {row for group in batch.groups for row in group.rows}
            assert {row for pair in batch.pairs for row in pair} == present


def test_a_pair_that_is_too_long_is_left_out(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    assert tokenize_pairs(preferences(8), tokenizer, tokenizer.eos_token_id, max_tokens=10) == []


@pytest.mark.parametrize(("iteration", "due"), [(1, True), (2, False), (3, False), (4, True)])
def test_when_it_is_trained(iteration, due):
    assert RewardModelConfig(train_every=3).due(iteration) is due
    assert RewardModelConfig(enabled=False).due(iteration) is False


def test_a_folder_of_the_time_with_one_head_scores_as_it_did(tiny_model, tmp_path):
    """Then `reward_model.json` had no kind and no members, and one number for the mean and the deviation."""
    found = train(preferences(), tiny_model, tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    prompts, answers = [[5, 6, 7]] * 2, [[8, 9], [10]]
    now = score(tiny_model, found.folder, prompts, answers, device="cpu")
    path = found.folder / DESCRIPTION
    description = json.loads(path.read_text())
    old = {name: description[name] for name in ("dtype", "end_token_id", "layers")}
    old |= {name: description[name][0] for name in ("score_mean", "score_std")}
    path.write_text(json.dumps(old))
    weights = load_file(found.folder / HEAD_WEIGHTS)
    save_file({"weight": weights["weight"].reshape(1, -1)}, found.folder / HEAD_WEIGHTS)
    then = score(tiny_model, found.folder, prompts, answers, device="cpu")
    np.testing.assert_array_equal(then.standardised, now.standardised)
    assert then.raw.shape == (2, 1)


def test_a_kind_that_there_is_not_is_an_error(tiny_model, tmp_path):
    (tmp_path / DESCRIPTION).write_text('{"kind": "oracle"}')
    with pytest.raises(InputError, match="kind is 'oracle', expected one of lora, generative, frozen"):
        score(tiny_model, tmp_path, [[1]], [[2]], device="cpu")
    with pytest.raises(InputError, match=r"no reward_model\.json"):
        score(tiny_model, tmp_path / "elsewhere", [[1]], [[2]], device="cpu")
