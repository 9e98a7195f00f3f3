"""Heads over frozen states: what they learn, what they are measured on, and that the saved ones score the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from frozen_pairs import known_pairs
from graded_rollouts import committed, context

from storage.artifacts import Artifact
from storage.errors import InputError, TooFew
from storage.policies import register_base
from storage.records import RECORDS
from tasks._engines.chat import load_tokenizer, render
from tasks._training.frozen import load_frozen, save_frozen, score_frozen
from tasks._training.states import StatesSpec
from tasks._training.stored_pairs import StoredPairs, read_stored, stored_pairs, with_quality
from tasks.frozen_heads.config import FrozenHeadsConfig
from tasks.frozen_heads.fitting import fit_heads
from tasks.frozen_heads.stage import fit_frozen
from tasks.pair_quality.config import PairQualityConfig
from tasks.pair_quality.stage import judge_quality
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.train import draw_pairs
from tasks.states.config import DrawnStatesConfig
from tasks.states.stage import read_answers

SCHEMA = RECORDS["preferences"].create_empty().schema
WORDS = ("pond", "frog", "sea", "water", "still", "old", "lines", "three", "sound", "answer")
CONFIG = FrozenHeadsConfig(ridges=[0.1, 1.0], members=3, repeats=1, curve=[0.25, 0.5, 1.0])
FORMS = [CONFIG, CONFIG.model_copy(update={"form": "mlp", "repeats": 0})]
SPEC = StatesSpec((1,), ("last",), 24, (), 2, "float32")


def preferences(pairs=80) -> pl.DataFrame:
    """Answers that end in a full stop are preferred; a quarter of the prompts is held out."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(pairs):
        prompt = number // 2
        words = [" ".join(random.choice(WORDS, random.integers(2, 6))) for _ in range(2)]
        rows.append(
            dict(pair_id=f"p{number:03d}", prompt_id=f"q{prompt}", cluster_id=f"c{prompt}", source="human")
            | dict(messages=[{"role": "user", "content": f"Write {WORDS[prompt % 10]} {prompt}"}])
            | dict(chosen=f"{words[0]}.", rejected=f"{words[1]}!", split="eval" if prompt % 4 == 0 else "train")
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def stored(pairs=600, held_out=0.25, **changes) -> tuple[StoredPairs, np.ndarray]:
    known, wrong, _ = known_pairs(pairs, **changes)
    ids = np.array([f"p{number:04d}" for number in range(pairs)])
    return StoredPairs(ids, np.arange(pairs) >= pairs * (1 - held_out), known), wrong


@pytest.mark.parametrize("config", FORMS, ids=lambda config: config.form)
def test_heads_find_the_utility(config):
    pairs, _ = stored()
    found = fit_heads(pairs, config, seed=1)
    assert found.metrics["heldout_accuracy"] > 0.93
    assert found.metrics["heldout_accuracy_low"] <= found.metrics["heldout_accuracy"]
    assert (found.metrics["training_pairs"], found.metrics["heldout_pairs"]) == (450, 150)
    assert set(found.scored_pairs["pair_id"]) == set(pairs.pair_ids[pairs.held_out])
    RECORDS["scored_pairs"].validate(found.scored_pairs)
    raw = found.heads.raw(pairs.training.states[pairs.training.answers()])
    np.testing.assert_allclose((raw - found.heads.score_mean).mean(axis=0) / found.heads.score_std, 0, atol=1e-6)
    np.testing.assert_allclose(raw.std(axis=0) / found.heads.score_std, 1, atol=1e-6)
    assert len({round(float(value), 6) for value in raw[0]}) == 3  # the members differ


def test_held_out_pairs_do_not_fit_and_do_not_validate():
    straight, _ = stored()
    out, pairs = straight.held_out, straight.pairs
    sides = {"first": np.where(out, pairs.second, pairs.first), "second": np.where(out, pairs.first, pairs.second)}
    turned = replace(straight, pairs=replace(pairs, **sides))
    one, other = (fit_heads(pairs, CONFIG, seed=1) for pairs in (straight, turned))
    for name, array in one.heads.arrays.items():
        np.testing.assert_array_equal(array, other.heads.arrays[name])
    assert one.cross_validation.equals(other.cross_validation) and one.learning_curve.equals(other.learning_curve)
    assert other.metrics["heldout_accuracy"] == pytest.approx(1 - one.metrics["heldout_accuracy"])


def test_cross_validation_and_curve():
    pairs, _ = stored(noise=0.2, features=30)
    found = fit_heads(pairs, CONFIG, seed=1)
    RECORDS["cross_validation"].validate(found.cross_validation)
    RECORDS["learning_curve"].validate(found.learning_curve)
    assert found.cross_validation.select("split", "heads").rows() == [
        (split, heads) for split in ("by_prompt", "by_pair") for heads in ("single", "ensemble")
    ]
    assert len(found.learning_curve) == 5 * 3
    sizes = found.learning_curve.group_by("size").agg(pl.col("pairs").mean(), pl.col("accuracy").mean()).sort("size")
    assert sizes["pairs"].to_list() == pytest.approx([90, 180, 360], abs=3)
    assert sizes["accuracy"].is_sorted()
    assert found.curve is not None and found.metrics["curve_gain_of_doubling"] == found.curve.gain
    # Labels that are wrong in 20 % make margins smaller, not overconfident ones: the slope stays about 1.
    assert 0.5 < found.metrics["cv_slope"] < 2


def test_quality_changes_the_heads_and_not_what_they_are_measured_by():
    """Flipping every training label turns the heads round; cross-validation takes the labels as they are."""
    pairs, _ = stored(300)
    train = pairs.pair_ids[~pairs.held_out]
    quality = pl.DataFrame({"pair_id": train, "action": "flip", "smoothing": 0.0, "margin": 0.0})
    plain, flipped = (fit_heads(pairs, CONFIG, seed=1, quality=frame) for frame in (None, quality))
    assert flipped.metrics["heldout_accuracy"] == pytest.approx(1 - plain.metrics["heldout_accuracy"], abs=0.02)
    assert flipped.cross_validation.equals(plain.cross_validation)


def test_few_clusters_have_no_cross_validation():
    pairs, _ = stored(16, per_prompt=4, held_out=0)
    found = fit_heads(pairs, CONFIG, seed=0)
    assert len(found.cross_validation) == len(found.learning_curve) == 0 and found.curve is None
    assert "heldout_accuracy" not in found.metrics
    with pytest.raises(TooFew, match="1 preference pairs to train on, expected at least 2"):
        fit_heads(stored(1, held_out=0)[0], CONFIG, seed=0)


@pytest.mark.parametrize("config", FORMS, ids=lambda config: config.form)
def test_saved_heads_are_read_as_they_were(config, tmp_path):
    found = fit_heads(stored(60)[0], config, seed=0)
    save_frozen(found.heads, SPEC, tmp_path)
    heads, spec = load_frozen(tmp_path)
    assert spec == SPEC
    states = np.random.default_rng(1).normal(size=(5, 12))
    np.testing.assert_allclose(heads.raw(states), found.heads.raw(states), rtol=1e-4, atol=1e-4)


def test_a_folder_of_another_kind(tmp_path):
    with pytest.raises(InputError, match=r"no heads.safetensors; expected the folder of a reward model of kind frozen"):
        load_frozen(tmp_path)
    save_frozen(fit_heads(stored(60)[0], CONFIG, seed=0).heads, SPEC, tmp_path)
    path = tmp_path / "reward_model.json"
    path.write_text(path.read_text().replace('"frozen"', '"lora"'))
    with pytest.raises(InputError, match="kind 'lora'"):
        load_frozen(tmp_path)


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Preferences, their states, their quality and heads, by the stages themselves."""
    folder = tmp_path_factory.mktemp("frozen")
    base = register_base(str(folder / "root"), str(tiny_model))
    pairs = committed(folder, "preferences", preferences=preferences())
    config = DrawnStatesConfig(layers=[1, 2], dtype="float32", device="cpu")
    read = read_answers.function(preferences=pairs, base=base, config=config, context=context(folder))
    states = committed(folder, "states", facts=read.facts, **read.tables)
    quality = PairQualityConfig(ridges=[0.1], members=2)
    judged = judge_quality.function(preferences=pairs, states=states, config=quality, seed=0, context=context(folder))
    quality = committed(folder, "pair_quality", **judged.tables)
    fitted = fit_frozen.function(
        preferences=pairs, states=states, quality=quality, config=CONFIG, seed=0, context=context(folder)
    )
    heads = committed(folder, "frozen_heads", facts=fitted.facts, files=fitted.files, **fitted.tables)
    return {"preferences": pairs, "states": states, "quality": quality, "heads": heads, "base": base}


def test_the_stages_make_a_reward_model_that_the_door_scores(made, tiny_model):
    """What the folder scores from token ids equals what the fit said of the held-out pairs."""
    folder, frame = made["heads"].files_folder(), made["preferences"].read("preferences")
    scored = made["heads"].read("scored_pairs")
    heldout = frame.join(scored, on="pair_id", maintain_order="right")
    assert len(heldout) == 20 and (folder / "learning_curve.png").stat().st_size > 5000
    tokenizer = load_tokenizer(tiny_model)
    prompts = [render(tokenizer, messages) for messages in heldout["messages"].to_list()]
    answers = tokenizer(heldout["chosen"].to_list(), add_special_tokens=False)["input_ids"]
    scores = score_frozen(tiny_model, folder, prompts, answers, device="cpu", tokens_per_microbatch=64)
    assert scores.raw.shape == (20, 3)
    np.testing.assert_allclose(scores.standardised.mean(axis=1), heldout["chosen_score"].to_numpy(), atol=2e-3)
    right = (scored["chosen_score"] > scored["rejected_score"]).mean()
    assert right > 0.85
    assert made["heads"].manifest.facts["base"] == made["base"].id


def test_another_base_is_refused(made, tiny_model):
    heads, spec = load_frozen(made["heads"].files_folder())
    cut = {name: array[..., :64] for name, array in heads.arrays.items()}
    folder = made["heads"].files_folder().parent / "cut"
    save_frozen(replace(heads, arrays=cut), spec, folder)
    with pytest.raises(InputError, match="the heads read 64 features, the base"):
        score_frozen(tiny_model, folder, [[5, 6]], [[7]], device="cpu")


def test_quality_changes_what_trains(made):
    frames = (
        made["preferences"].read("preferences"),
        made["states"].read("states"),
        made["states"].read("paired_answers"),
    )
    plain = stored_pairs(*frames)
    ids = plain.pair_ids
    train = ids[~plain.held_out]
    quality = pl.DataFrame(
        {
            "pair_id": train[:3],
            "action": ["flip", "drop", "smooth"],
            "smoothing": [0.0, 0.0, 0.3],
            "margin": [0.0, 0.0, 0.5],
        }
    )
    found = with_quality(stored_pairs(*frames, smoothing=0.1), quality)
    assert set(ids) - set(found.pair_ids) == {train[1]}
    place, before = (int(np.flatnonzero(each.pair_ids == train[0])[0]) for each in (found, plain))
    assert found.pairs.first[place] == plain.pairs.second[before]
    place = int(np.flatnonzero(found.pair_ids == train[2])[0])
    assert (found.pairs.labels.targets[place], found.pairs.labels.margins[place]) == (0.7, 0.5)
    assert found.pairs.labels.targets[0] == 0.9


def test_ties_pull_together_and_do_not_measure(made):
    frames = (
        made["preferences"].read("preferences"),
        made["states"].read("states"),
        made["states"].read("paired_answers"),
    )
    tied = frames[0].with_columns(tie=pl.col("pair_id").is_in(["p000", "p010"]))
    found = stored_pairs(tied, *frames[1:])
    assert len(found.heldout) == 19  # p000 is held out
    assert found.pairs.labels.targets[found.pair_ids == "p010"] == 0.5


def test_states_are_read_of_the_pairs_that_train(made, tmp_path):
    """Those of the sources, sampled down by seed: the same that a training draws, less what label quality drops."""
    frame = made["preferences"].read("preferences")
    source = pl.when(pl.int_range(pl.len()) % 4 < 3).then(pl.lit("human")).otherwise(pl.lit("ai"))
    pairs = committed(tmp_path, "preferences", preferences=frame.with_columns(source.alias("source")).cast(SCHEMA))
    limits = {"sources": ("human",), "max_pairs": 12, "max_heldout_pairs": 5}
    config = DrawnStatesConfig(layers=[1], poolings=["last"], dtype="float32", device="cpu", **limits)
    read = read_answers.function(preferences=pairs, base=made["base"], config=config, seed=3, context=context(tmp_path))
    stored = read_stored(pairs, committed(tmp_path, "states", facts=read.facts, **read.tables))
    assert (len(stored.training), len(stored.held_out) - len(stored.training)) == (12, 5)
    assert read.metrics["answers"] <= 34 and read.facts["base"] == made["base"].id
    quality = pl.DataFrame({"pair_id": stored.pair_ids[~stored.held_out][:2], "action": "drop"})
    quality = quality.with_columns(smoothing=pl.lit(0.0), margin=pl.lit(0.0))
    for judged, dropped in ((None, 0), (quality, 2)):
        drawn = draw_pairs(pairs.read("preferences"), judged, RewardModelConfig(**limits), 3)
        assert [len(each) for each in drawn] == [12 - dropped, 5]
        assert set(pl.concat(drawn)["pair_id"]) <= set(stored.pair_ids)
        assert set(pl.concat(drawn)["source"]) == {"human"}


def test_pairs_without_states_are_named(made):
    frame = made["preferences"].read("preferences").with_columns(pl.col("pair_id") + "x")
    with pytest.raises(InputError, match=r"pair p000x and 79 others: no states of their answers"):
        stored_pairs(frame, made["states"].read("states"), made["states"].read("paired_answers"))


def test_refitting_needs_no_model(made, monkeypatch):
    """Heads, quality and curve come from the stored states alone."""
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    from flows.reward_model_command import refitted

    states = made["states"]
    states.manifest.inputs["preferences"] = made["preferences"].id
    fitted, judged = refitted(states, CONFIG, None, 0)
    assert fitted.metrics["heldout_accuracy"] > 0.85 and len(judged.quality) == 60
