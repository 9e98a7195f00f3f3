"""A campaign whose reward model is of the cheap kind, and `posttrain reward-model` on what it stored."""

import json
import re
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
import yaml
from command import invoke
from frozen_pairs import known_pairs
from pipeline import REPOSITORY, environment, manifests, posttrain, run_file, states

from flows.config import parse_config
from flows.reward_model_command import register
from storage.artifacts import Artifact, Outputs
from storage.campaigns import Campaign, Launch, State
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.records import RECORDS

PAGE = (REPOSITORY / "deployments" / "frozen-heads.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
REST = {
    "campaign": "page",
    "model": {"path": "model"},
    "curate": {"sources": [{"generator": "haiku"}]},
    "grading": {"graders": [{"grader": "verifier"}]},
}

FROZEN = {
    "frozen_heads": {"ridges": [0.1, 1.0], "members": 3, "repeats": 1, "folds": 2, "curve": [0.4, 0.7, 1.0]},
    "pair_quality": {"ridges": [0.1], "members": 2, "folds": 2},
    "states": {"layers": [1, 2], "dtype": "float32"},
}


@pytest.fixture(scope="module")
def campaign(tiny_model, tmp_path_factory):
    """One iteration with the tiny model."""
    folder = tmp_path_factory.mktemp("frozen")
    env = environment(folder / "home", POSTTRAIN_ROOT=str(folder / "root"))
    path = run_file(folder, tiny_model, iterations=1, **FROZEN)
    posttrain("run", str(path), env=env)
    return path, env, str(folder / "root")


@pytest.mark.slow
def test_the_reward_model_is_fitted_to_states(campaign):
    _, _, root = campaign
    state = states(root)["00001.json"]
    made = manifests(root)
    assert state["reward_model"].startswith("frozen_heads/") and state["steps"]["reward_model"] == state["reward_model"]
    heads = made[state["reward_model"]]
    assert {"heads.safetensors", "reward_model.json"} <= set(heads.files)
    assert heads.inputs["states"] == state["steps"]["states"] and heads.inputs["quality"].startswith("pair_quality/")
    assert heads.metrics["training_pairs"] > 2


@pytest.mark.slow
def test_it_refits_in_the_terminal(campaign):
    path, env, _ = campaign
    shown = posttrain("reward-model", "tiny", env=env)
    assert "tiny, iteration 1: states/" in shown and "strength deciles" in shown
    document = json.loads(posttrain("reward-model", str(path), "--set", "frozen_heads.members=2", "--json", env=env))
    assert document["metrics"]["training_pairs"] > 2
    assert sum(row["pairs"] for row in document["label_quality"]) == document["metrics"]["training_pairs"]
    missing = posttrain("reward-model", "tiny", "--iteration", "7", env=env, code=2)
    assert "no stored states of iteration 7, there are those of [1]" in missing


def test_the_page_s_snippets_load_and_say_the_defaults():
    assert len(SNIPPETS) == 3
    loaded = [parse_config({**REST, **snippet}, "page") for snippet in SNIPPETS]
    assert loaded[1].frozen_heads == loaded[0].frozen_heads
    assert loaded[0].states == parse_config(REST, "page").states
    assert loaded[2].pair_quality == type(loaded[2].pair_quality)()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A root with a campaign of two iterations: the first has states, of answers whose quality is known."""
    folder = tmp_path_factory.mktemp("stored")
    root = str(folder / "root")
    pairs, _, _ = known_pairs(120)
    sides = {"chosen": pairs.first, "rejected": pairs.second}
    rows = [
        dict(pair_id=f"p{number:03d}", prompt_id=f"q{cluster}", cluster_id=f"c{cluster}", source="human")
        | dict(messages=[{"role": "user", "content": "?"}], split="eval" if cluster % 4 == 0 else "train")
        | {side: f"answer {answers[number]}" for side, answers in sides.items()}
        for number, cluster in enumerate(pairs.clusters)
    ]
    states = pl.DataFrame(
        {"answer_id": [f"a{row}" for row in range(240)], "state": pairs.states.astype(np.float32).tolist()},
        schema=RECORDS["states"].create_empty().schema,
    )
    paired = pl.DataFrame(
        {"pair_id": [row["pair_id"] for row in rows]}
        | {f"{side}_answer_id": [f"a{row}" for row in answers] for side, answers in sides.items()}
    )

    def commit(stage: str, outputs: Outputs, **inputs: str) -> str:
        made = Artifact(root=root, stage=stage, fingerprint=f"{stage}0")
        commit_outputs(Recipe(made, stage, 1, {}, inputs, None), Attempt(datetime.now(UTC), folder), outputs)
        return made.id

    preferences = pl.DataFrame(rows, schema=RECORDS["preferences"].create_empty().schema)
    read = commit("preferences", Outputs(preferences=preferences))
    made = commit("states", Outputs(states=states, paired_answers=paired), preferences=read)
    place = Campaign(root, "tiny")
    for iteration, steps in ((1, {"states": made}), (2, {})):
        ids = dict(policy="p/0", champion="p/0", champion_evaluation="e/0")
        place.commit(State(campaign="tiny", iteration=iteration, steps=steps, **ids))
    config = parse_config({**REST, **FROZEN, "campaign": "tiny"}, "page").model_dump(mode="json")
    place.record_launch(Launch(launch_id="one", campaign="tiny", started_at=datetime.now(UTC), config=config))
    return root


def test_the_command_refits_the_newest_states(stored, tmp_path):
    picture = tmp_path / "curve.png"
    shown = invoke(register, "reward-model", "tiny", "--root", stored, "--picture", str(picture))
    assert "tiny, iteration 1: states/states0" in shown and "strength deciles" in shown
    assert picture.stat().st_size > 5000
    document = json.loads(invoke(register, "reward-model", "tiny", "--root", stored, "--json"))
    assert document["metrics"]["heldout_pairs"] == 30 and document["metrics"]["heldout_accuracy"] > 0.8
    assert document["verdict"] in shown.replace("\n", " ")
    assert sum(row["pairs"] for row in document["label_quality"]) == 90
    assert [row["split"] for row in document["cross_validation"]] == ["by_prompt"] * 2 + ["by_pair"] * 2


def test_states_that_are_not_there_are_named(stored):
    with pytest.raises(InputError, match=r"no stored states of iteration 2, there are those of \[1\]"):
        invoke(register, "reward-model", "tiny", "--root", stored, "--iteration", "2")
    with pytest.raises(InputError, match="name the file instead"):
        invoke(register, "reward-model", "tiny", "--root", stored, "--set", "frozen_heads.members=2")
