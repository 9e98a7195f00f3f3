"""The stage `reward_check` with a real reward model: what it writes, and what it refuses."""

import json

import numpy as np
import polars as pl
import pytest
from graded_rollouts import batch_rows, committed, context, rollout_rows

from storage.errors import InputError, TooFew
from storage.policies import register_base
from storage.records import RECORDS
from tasks._engines.chat import load_tokenizer, render
from tasks.reward_check.config import RewardCheckConfig
from tasks.reward_check.stage import check_reward_model
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.train import train_reward_model

SCHEMA = RECORDS["preferences"].create_empty().schema
GRADES = RECORDS["grades"].create_empty().schema
WORDS = ("pond", "frog", "sea", "water", "still", "old", "lines", "three", "sound", "answer")
CONFIG = RewardCheckConfig(device="cpu", min_slice=10)


def preferences(pairs=120, seed=0):
    """Answers that end in a full stop are preferred; people gave them 8, the others 2, about."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(pairs):
        words = [" ".join(random.choice(WORDS, random.integers(2, 6))) for _ in range(2)]
        rows.append(
            dict(pair_id=f"p{number:03d}", prompt_id=f"q{number}", cluster_id=f"c{number}", source="human")
            | dict(messages=[{"role": "user", "content": f"Write {WORDS[number % 10]} {number}"}])
            | dict(chosen=f"{words[0]}.", rejected=f"{words[1]}!", annotator="ann", strength=1.0)
            | dict(human_score_chosen=8 + 0.2 * random.normal(), human_score_rejected=2 + 0.2 * random.normal())
            | dict(split="train" if number % 2 else "eval", iteration=1 if number % 4 == 2 else None)
        )
    return pl.DataFrame(rows, schema=SCHEMA)


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """A reward model that learned the full stop, and its preferences."""
    folder = tmp_path_factory.mktemp("reward_check")
    frame = preferences()
    pairs = committed(folder, "preferences", preferences=frame)
    base = register_base(pairs.root, str(tiny_model))
    config = RewardModelConfig(
        learning_rate=1e-2, batch_pairs=8, epochs=8, dtype="float32", device="cpu", lora_rank=4, lora_alpha=8
    )
    trained = train_reward_model(
        frame, tiny_model, config, seed=1, scratch=folder / "training", progress=lambda *_: None
    )
    files = {path.name: path for path in sorted(trained.folder.iterdir())}
    model = committed(folder, "reward_model", files=files, facts={"base": base.id})
    return folder, model, pairs, trained


def check(made, folder, config=CONFIG, **inputs):
    arguments = {"reward_model": made[1], "preferences": made[2], "config": config, "seed": 5} | inputs
    return check_reward_model.function(**arguments, context=context(folder))


def test_what_it_writes(made, tmp_path):
    outputs = check(made, tmp_path)
    metrics = outputs.metrics
    assert metrics["heldout_accuracy"] == pytest.approx(made[3].metrics["heldout_accuracy"])
    assert metrics["pairs"] == 60 and outputs.facts["scale"] == "absolute"
    calibration = json.loads(outputs.files["calibration.json"].read_text())
    assert calibration["answers"] == 120 and calibration["map"]["kind"] == "affine"
    assert metrics["gap_mae"] < 2 and abs(metrics["gap_bias"]) < 0.3
    checked = committed(
        tmp_path, "reward_check", gap=outputs.tables["gap"], checked_pairs=outputs.tables["checked_pairs"]
    )
    table = checked.read("checked_pairs")
    assert set(table["pair_id"]) == set(made[2].read("preferences").filter(split="eval")["pair_id"])
    raw = made[3].scored_pairs.join(table, on="pair_id")
    margins = raw.select(
        raw=pl.col("chosen_score") - pl.col("rejected_score"), found=pl.col("chosen_reward") - pl.col("rejected_reward")
    )
    assert np.corrcoef(margins["raw"], margins["found"])[0, 1] > 0.9999


def test_fresh_answers_anchors_domains_and_an_earlier_check(made, tmp_path, tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    texts = [(f"p{index // 4}", f"pond {WORDS[index % 10]}{'.' if index % 2 else '!'}") for index in range(40)]
    rollouts = rollout_rows(texts)
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in texts]
    prompt = render(tokenizer, [{"role": "user", "content": "Write pond"}])
    rollouts = rollouts.with_columns(
        token_ids=pl.Series(tokens, dtype=rollouts.schema["token_ids"]),
        logprobs=pl.Series([[-1.0] * len(each) for each in tokens], dtype=rollouts.schema["logprobs"]),
        prompt_token_ids=pl.Series([prompt] * 40, dtype=rollouts.schema["prompt_token_ids"]),
    )
    grades = [
        dict(rollout_id=f"r{index}", grader="people", grader_version="1", status="ok", score=float(index % 2))
        | dict(detail="{}", cost=0.0, policy_id="policy1")
        for index in range(40)
    ]
    fresh = committed(tmp_path, "rollouts", rollouts=rollouts)
    graded = committed(tmp_path, "grading", grades=pl.DataFrame(grades, schema=GRADES))
    batch = batch_rows(120).with_columns(
        prompt_id=pl.Series([f"q{index}" for index in range(120)]),
        domain=pl.Series(["sea" if index % 4 else "land" for index in range(120)]),
    )
    pool = committed(tmp_path, "select", batch=batch)
    first = check(made, tmp_path)
    before = committed(tmp_path, "reward_check", files=first.files)
    anchors = committed(tmp_path, "preferences", "anchors", preferences=preferences(12, seed=9))
    outputs = check(made, tmp_path, rollouts=fresh, grading=graded, prompts=pool, anchors=anchors, graded_by=before)
    assert outputs.metrics["fresh_spearman/people"] > 0.6 and outputs.metrics["fresh_answers"] == 40
    assert outputs.metrics["anchor_agreement"] > 0.8
    # Half of the held-out pairs are of the rollouts' iteration.
    assert outputs.metrics["fresh_pairs"] == 30 and "fresh_pairs" not in first.metrics
    # The same answers by the map that was fitted to them: no drift.
    assert abs(outputs.metrics["graded_gap_bias"]) < 1e-6
    slices = outputs.tables["gap"].filter(pl.col("measure") == "gap_bias")["slice"].to_list()
    assert {"domain: sea", "domain: land"} <= set(slices)


def test_without_held_out_pairs_it_says_what_to_do(made, tmp_path):
    frame = preferences(20).with_columns(split=pl.lit("train", SCHEMA["split"]))
    training = committed(tmp_path, "preferences", preferences=frame, root=made[2].root, name="training")
    with pytest.raises(InputError, match=r"no pair of split eval.*preferences.eval_fraction"):
        check(made, tmp_path, preferences=training)


def test_pairs_that_are_too_long_are_said(made, tmp_path):
    with pytest.raises(TooFew, match=r"every one of the 60 pairs is longer than reward_check.max_tokens \(8\)"):
        check(made, tmp_path, CONFIG.model_copy(update={"max_tokens": 8}))


def test_fewer_pairs_are_drawn_by_seed(made, tmp_path):
    config = CONFIG.model_copy(update={"max_pairs": 25})
    drawn = check(made, tmp_path, config).tables["checked_pairs"]
    assert len(drawn) == 25 and check(made, tmp_path, config).tables["checked_pairs"].equals(drawn)
    assert not check(made, tmp_path, config, seed=6).tables["checked_pairs"]["pair_id"].equals(drawn["pair_id"])
