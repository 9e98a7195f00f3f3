"""Ensembles, ties, rankings, absolute scores and ODIN's two heads: gradients exactly, learning on the tiny model."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from tiny_preferences import CONFIG, preferences, train

from storage.errors import InputError
from tasks._engines.chat import load_tokenizer
from tasks._training.heads import HeadDescription, fresh_scoring_model, load_scoring_model
from tasks._training.lora import LoraSpec, trainable_parameters
from tasks._training.reward_models import kind_of, score
from tasks._training.scalar_heads import HeadSpec
from tasks.reward_model.loss import LossNumbers, pair_loss
from tasks.reward_model.pairs import group_pairs, plan_steps, tokenize_pairs
from tasks.reward_model.terms import with_terms
from tasks.reward_model.weights import weighed

CPU = torch.device("cpu")
WIDE, NARROW = 4000, 60


def configured(**changes):
    return CONFIG.model_copy(update=changes)


def model_and_numbers(folder, config, seed=3):
    spec = LoraSpec(config.lora_rank, config.lora_alpha)
    heads = HeadSpec(config.members, config.head, config.head_width, config.length_head)
    model = fresh_scoring_model(folder, spec, HeadDescription(2, "float32", None), seed=seed, device=CPU, heads=heads)
    with torch.no_grad():  # adapters that do something: B is zero at first, and so is A's gradient
        for parameter in trainable_parameters(model.backbone).values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    return model, LossNumbers(config, 0.2)


def gradients(model, numbers, config, frame, folder, budget=WIDE, weights=None):
    """Loss and gradients of one optimizer step over all pairs of a frame, in micro-batches of `budget` tokens."""
    tokenizer = load_tokenizer(folder)
    pairs = tokenize_pairs(with_terms(frame, None, config), tokenizer, tokenizer.eos_token_id, 500)
    pairs = weights(pairs) if weights else weighed(pairs, config.members, bootstrap=config.bootstrap, seed=0)
    (step,) = plan_steps(
        group_pairs(pairs, WIDE),
        batch_pairs=1000,
        epochs=1,
        tokens_per_microbatch=budget,
        seed=0,
        as_rankings=config.loss == "plackett_luce",
    )
    parameters = trainable_parameters(model) | trainable_parameters(numbers)
    for parameter in parameters.values():
        parameter.grad = None
    loss, value = pair_loss(model, numbers, config), 0.0
    for batch in step:
        part = loss(batch).loss_sum
        part.backward()
        value += float(part.detach())
    return value, {name: parameter.grad.clone() for name, parameter in parameters.items()}, len(step)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"members": 3, "head": "mlp", "head_width": 5},
        {"length_head": True, "members": 2},
        {"loss": "rao_kupper"},
        {"loss": "davidson", "members": 2},
        {"loss": "plackett_luce"},
        {"regression_weight": 0.5, "margin": 1.0, "smoothing": 0.1},
    ],
    ids=str,
)
def test_how_a_step_is_cut_changes_nothing(tiny_model, changes):
    config = configured(**changes)
    frame = preferences(16, human_score_chosen=pl.Series(np.linspace(1, 5, 16))).filter(pl.col("split") == "train")
    frame = frame.with_columns(tie=pl.Series([index % 5 == 0 for index in range(len(frame))]))
    model, numbers = model_and_numbers(tiny_model, config)
    value, whole, parts = gradients(model, numbers, config, frame, tiny_model)
    cut_value, cut, cut_parts = gradients(model, numbers, config, frame, tiny_model, budget=NARROW)
    assert parts == 1
    assert cut_parts > 3
    assert cut_value == pytest.approx(value, rel=1e-4)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_an_ensemble_is_its_members_side_by_side_on_the_mean_of_their_gradients(tiny_model):
    config = configured(members=3)
    frame = preferences(12)
    model, numbers = model_and_numbers(tiny_model, config)
    _, together, _ = gradients(model, numbers, config, frame, tiny_model)
    drawn = weighed(
        tokenize_pairs(frame, load_tokenizer(tiny_model), load_tokenizer(tiny_model).eos_token_id, 500),
        3,
        bootstrap=True,
        seed=0,
    )
    by_id = {pair.pair_id: pair.weights for pair in drawn}
    alone = []
    for member in range(3):
        single, nothing = model_and_numbers(tiny_model, configured(members=1))
        single.head.weight.data.copy_(model.head.weight.data[member])

        def own_weights(pairs, member=member):
            return [replace(pair, weights=(by_id[pair.pair_id][member],)) for pair in pairs]

        _, found, _ = gradients(single, nothing, configured(members=1), frame, tiny_model, weights=own_weights)
        torch.testing.assert_close(together["head.weight"][member], found["head.weight"][0] / 3, rtol=1e-4, atol=1e-7)
        alone.append(found)
    for name in together:
        if name.startswith("backbone"):
            mean = torch.stack([each[name] for each in alone]).mean(dim=0)
            torch.testing.assert_close(together[name], mean, rtol=1e-3, atol=1e-7)


def test_a_ranking_of_two_is_a_pair(tiny_model):
    frame = preferences(12, per_prompt=1)
    found = []
    for loss in ("bradley_terry", "plackett_luce"):
        config = configured(loss=loss)
        model, numbers = model_and_numbers(tiny_model, config)
        found.append(gradients(model, numbers, config, frame, tiny_model))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-7)


def test_five_members_learn_differ_and_are_saved(tiny_model, tmp_path):
    found = train(preferences(), tiny_model, tmp_path, configured(members=5))
    metrics = found.metrics
    own = [metrics[f"heldout_accuracy_member/{member}"] for member in range(5)]
    assert metrics["heldout_accuracy"] > 0.9
    assert metrics["heldout_accuracy_members_mean"] == pytest.approx(np.mean(own))
    assert metrics["member_uncertainty"] > 0
    assert 0 <= metrics["member_disagreement"] < 0.5
    assert metrics["member_correlation"] < 1
    scores = score(tiny_model, found.folder, [[5, 6, 7]] * 4, [[8], [9], [10], [11, 12]], device="cpu")
    assert scores.raw.shape == (4, 5)
    assert len(scores.mean) == len(scores.std) == 5
    assert (scores.standardised.std(axis=1) > 0).all()
    model, description = load_scoring_model(tiny_model, found.folder, device=CPU)
    assert (description.kind, description.members) == ("lora", 5)
    assert torch.linalg.matrix_rank(model.head.weight.data) == 5


def test_mlp_heads_score_after_loading_as_before(tiny_model, tmp_path):
    frame = preferences(32)
    found = train(frame, tiny_model, tmp_path, configured(members=2, head="mlp", head_width=8, epochs=1))
    heldout = frame.filter(pl.col("split") == "eval").join(found.scored_pairs, on="pair_id", maintain_order="left")
    tokenizer = load_tokenizer(tiny_model)
    pairs = tokenize_pairs(heldout, tokenizer, tokenizer.eos_token_id, 500)
    scores = score(tiny_model, found.folder, [p.prompt for p in pairs], [p.chosen for p in pairs], device="cpu")
    np.testing.assert_allclose(scores.standardised.mean(axis=1), heldout["chosen_score"], atol=1e-4)


def length_biased(pairs=96):
    """The longer answer is preferred, whatever it says: what a length head is for."""
    frame = preferences(pairs)
    longer = pl.col("chosen").str.len_chars() >= pl.col("rejected").str.len_chars()
    return frame.with_columns(
        pl.when(longer).then("chosen").otherwise("rejected").alias("chosen"),
        pl.when(longer).then("rejected").otherwise("chosen").alias("rejected"),
    )


def length_correlation(folder, found, frame):
    tokenizer = load_tokenizer(folder)
    pairs = tokenize_pairs(frame.filter(pl.col("split") == "eval"), tokenizer, tokenizer.eos_token_id, 500)
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    scores = score(folder, found.folder, prompts, answers, device="cpu").raw[:, 0]
    return np.corrcoef(scores, [len(answer) for answer in answers])[0, 1]


def test_a_length_head_takes_the_length_out_of_the_quality(tiny_model, tmp_path):
    frame = length_biased()
    plain = train(frame, tiny_model, tmp_path / "plain", configured(epochs=2))
    odin = train(frame, tiny_model, tmp_path / "odin", configured(epochs=2, length_head=True))
    with_length = length_correlation(tiny_model, plain, frame)
    without = length_correlation(tiny_model, odin, frame)
    assert with_length > 0.5
    assert abs(without) < with_length / 2


def test_ties_are_learned_and_left_out_of_the_accuracy(tiny_model, tmp_path):
    frame = preferences(tie=pl.Series([number % 4 == 1 for number in range(64)]))
    for loss in ("rao_kupper", "davidson"):
        found = train(frame, tiny_model, tmp_path / loss, configured(loss=loss, epochs=4))
        assert found.metrics["heldout_accuracy"] > 0.9
        assert 0 < found.metrics["tie_probability"] < 1
        assert found.metrics["heldout_pairs"] == 16
    none = train(frame.with_columns(tie=False), tiny_model, tmp_path / "none", configured(loss="davidson"))
    assert none.metrics["tie_probability"] < found.metrics["tie_probability"]


def test_absolute_scores_bring_the_scale_along(tiny_model, tmp_path):
    frame = preferences().with_columns(human_score_chosen=pl.lit(8.0), human_score_rejected=pl.lit(3.0))
    found = train(frame, tiny_model, tmp_path, configured(regression_weight=1.0))
    assert found.metrics["heldout_accuracy"] > 0.9
    _, description = load_scoring_model(tiny_model, found.folder, device=CPU)
    tokenizer = load_tokenizer(tiny_model)
    pairs = tokenize_pairs(frame.filter(pl.col("split") == "eval"), tokenizer, tokenizer.eos_token_id, 500)
    estimates = [
        description.human_scale[0] * score(tiny_model, found.folder, [p.prompt for p in pairs], side, device="cpu").raw
        + description.human_shift[0]
        for side in ([p.chosen for p in pairs], [p.rejected for p in pairs])
    ]
    assert np.mean(estimates[0]) == pytest.approx(8, abs=2)
    assert np.mean(estimates[1]) == pytest.approx(3, abs=2)
    with pytest.raises(InputError, match="hold 0 absolute scores of"):
        train(preferences(), tiny_model, tmp_path / "none", configured(regression_weight=1.0))


def test_a_killed_ensemble_ends_with_the_same_bytes(tiny_model, tmp_path):
    config = configured(members=2, loss="rao_kupper", length_head=True, checkpoint_every_steps=2, epochs=1)

    def kill(done, total, label):
        if done == 3:
            raise InterruptedError

    expected = train(preferences(), tiny_model, tmp_path / "undisturbed", config)
    with pytest.raises(InterruptedError):
        train(preferences(), tiny_model, tmp_path / "killed", config, kill)
    resumed = train(preferences(), tiny_model, tmp_path / "killed", config)
    for path in expected.folder.iterdir():
        assert (resumed.folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert kind_of(resumed.folder) == "lora"
