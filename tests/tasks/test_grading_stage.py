"""The grading stage on real artifacts: whose versions it hashes, and reward-model shards one after the other."""

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import ModuleType

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.policies import register_base
from storage.records import RECORDS
from tasks._stage import Shard, StageContext
from tasks._training import reward_models
from tasks._training.heads import HeadDescription, fresh_scoring_model, save_scoring_model
from tasks._training.lora import LoraSpec
from tasks.grading import stage as grading
from tasks.grading.config import GraderConfig, GradingConfig
from tasks.grading.verdict import Verdict

BATCH, ROLLOUTS = (RECORDS[name].create_empty().schema for name in ("batch", "rollouts"))
SCORED = GradingConfig(graders=[GraderConfig(grader="reward_model", params={"device": "cpu"})], rows_per_shard=4)


def committed(tmp_path, name, **outputs) -> Artifact:
    artifact = Artifact(root=str(tmp_path / "root"), stage=name, fingerprint=f"{name}0")
    recipe = Recipe(artifact, step=name, version=1, config={}, inputs={}, seed=None)
    commit_outputs(recipe, Attempt(datetime.now(UTC), tmp_path), Outputs(**outputs))
    return artifact


def batch_of(tmp_path, *verifiers: str, samples: int = 1) -> Artifact:
    rows = [
        dict(
            prompt_id=f"p{index}",
            position=index,
            samples=samples,
            answer=None,
            domain="",
            rubric=None,
            cluster_id=f"p{index}",
            split="train",
        )
        | dict(messages=[{"role": "user", "content": "hi"}], verifier={"name": name, "params": "{}"})
        for index, name in enumerate(verifiers)
    ]
    return committed(tmp_path, "select", batch=pl.DataFrame(rows, schema=BATCH))


def rollouts_of(tmp_path, count: int) -> Artifact:
    rows = [
        dict(
            rollout_id=f"r{index}", prompt_id=f"p{index // 2}", sample_index=index % 2, iteration=1, policy_id="policy"
        )
        | dict(prompt_token_ids=[1, 2, 3], token_ids=[4 + index, 5], logprobs=[-0.5, -0.5], text="x")
        | dict(finish_reason="stop", engine="transformers", sampling="{}", created_at=datetime(2026, 1, 1, tzinfo=UTC))
        for index in range(count)
    ]
    return committed(tmp_path, "rollouts", rollouts=pl.DataFrame(rows, schema=ROLLOUTS))


@pytest.fixture
def own_verifier():
    def half(text, answer, params):
        return Verdict(0.5)

    half.version = "3"
    sys.modules["own_verifiers"] = module = ModuleType("own_verifiers")
    module.half = half
    yield half
    del sys.modules["own_verifiers"]


def test_graders_of_ones_own_are_hashed_with_their_versions(tmp_path, own_verifier):
    batch = batch_of(tmp_path, "haiku")
    own = [
        GraderConfig(grader="own_verifiers:half"),
        GraderConfig(grader="http://127.0.0.1:1/grade", name="endpoint", params={"version": 4}),
        GraderConfig(grader="command", params={"run": ["sh"], "version": "5"}),
    ]
    expected = {"own_verifiers:half": "3", "http://127.0.0.1:1/grade": "4", "command": "5"}
    assert grading.versions(GradingConfig(graders=own), batch) == expected
    both = GradingConfig(graders=[GraderConfig(), own[0]])
    assert grading.versions(both, batch) == {"haiku": "1", "own_verifiers:half": "3"}


def test_a_prompts_own_verifier_is_hashed_with_its_version(tmp_path, own_verifier):
    batch = batch_of(tmp_path, "haiku", "own_verifiers:half", "haiku")
    assert grading.versions(GradingConfig(), batch) == {"haiku": "1", "own_verifiers:half": "3"}
    own_verifier.version = "4"
    assert grading.versions(GradingConfig(), batch)["own_verifiers:half"] == "4"


def test_only_the_verifiers_that_grade_are_hashed(tmp_path, own_verifier):
    batch = batch_of(tmp_path, "haiku", "nowhere:verify")
    named = GradingConfig(graders=[GraderConfig(grader="own_verifiers:half"), GraderConfig(grader="reward_model")])
    assert grading.versions(named, batch) == {"own_verifiers:half": "3"}
    with pytest.raises(InputError, match="'nowhere:verify' can't be imported"):
        grading.versions(GradingConfig(), batch)


@pytest.fixture
def reward_model(tmp_path, tiny_model) -> Artifact:
    description = HeadDescription(end_token_id=2, dtype="float32", layers=None)
    model = fresh_scoring_model(tiny_model, LoraSpec(4, 8), description, seed=0, device=torch.device("cpu"))
    (tmp_path / "saved").mkdir()
    files = {path.name: path for path in save_scoring_model(model, description, tmp_path / "saved")}
    base = register_base(str(tmp_path / "root"), str(tiny_model))
    return committed(tmp_path, "reward_model", files=files, facts={"base": base.id})


def test_reward_model_shards_run_one_at_a_time_and_give_what_one_gives(tmp_path, reward_model, monkeypatch):
    batch = batch_of(tmp_path, *["haiku"] * 5, samples=2)
    inputs = dict(rollouts=rollouts_of(tmp_path, 10), batch=batch, reward_model=reward_model)
    context = StageContext(tmp_path, logging.getLogger(__name__), lambda done, total, label: None, iteration=1)
    inside, most = [], []

    def watched(*arguments, **options):
        inside.append(threading.get_ident())
        most.append(len(inside))
        time.sleep(0.05)
        try:
            return scored(*arguments, **options)
        finally:
            inside.pop()

    def shard(index: int, count: int) -> pl.DataFrame:
        made = grading.grade.function(**inputs, config=SCORED, shard=Shard(index, count), context=context)
        return made.tables["grades"]

    scored = reward_models.score
    monkeypatch.setattr(reward_models, "score", watched)
    count = grading.plan(inputs["rollouts"], batch, SCORED)
    with ThreadPoolExecutor(count) as pool:
        parts = pl.concat(pool.map(shard, range(count), [count] * count))
    assert most == [1] * 3
    whole = shard(0, 1)
    assert parts["rollout_id"].to_list() == whole["rollout_id"].to_list()
    assert parts["score"].to_list() == pytest.approx(whole["score"].to_list(), abs=1e-5)


def test_another_reward_model_grades_beside_the_runs_own(tmp_path, reward_model):
    named = {"grader": "other_reward_model", "name": "gold", "weight": 0.0}
    gold = GraderConfig(**named, params={"reward_model": reward_model.id, "device": "cpu"})
    config = GradingConfig(graders=[GraderConfig(), gold])
    batch = batch_of(tmp_path, "haiku", samples=2)
    inputs = dict(rollouts=rollouts_of(tmp_path, 2), batch=batch, reward_model=None, config=config)
    context = StageContext(tmp_path, logging.getLogger(__name__), lambda done, total, label: None, iteration=1)
    assert config.other_reward_models == {"gold": reward_model.id} and not config.needs_reward_model
    assert set(grading.versions(config, batch)) == {"haiku"}
    given = {"judge_models": {"gold": reward_model}, "shard": Shard(1, 2), "context": context}
    found = grading.grade.function(**inputs, **given).tables["grades"]
    own = grading.grade.function(
        **inputs | {"reward_model": reward_model, "config": SCORED}, shard=Shard(0, 1), context=context
    ).tables["grades"]
    assert found["grader"].unique().to_list() == ["gold"]
    assert found["grader_version"].unique().to_list() == [reward_model.fingerprint]
    assert found["score"].to_list() == own["score"].to_list()
    held_out = config.active(0, has_reward_model=False)
    assert [grader.label for grader in held_out.graders] == ["verifier"], "what only watches promotes nobody"
    weightless = GradingConfig(
        graders=[GraderConfig(grader="majority", from_iteration=1), GraderConfig(weight=0), gold]
    )
    assert [grader.label for grader in weightless.active(0, has_reward_model=False).graders] == ["verifier"]
    with pytest.raises(InputError, match="gold is a reward model, but there is none"):
        grading.grade.function(**inputs, **given | {"judge_models": {}})


@pytest.mark.parametrize(
    ("params", "ensemble"),
    [
        ({}, None),
        ({"reward_model": "newest"}, None),
        ({"reward_model": "rm/1", "devise": "cpu"}, None),
        ({"reward_model": f"reward_model/{'0' * 16}"}, {"absolute": True}),
    ],
)
def test_another_reward_model_is_named_by_its_id(params, ensemble):
    with pytest.raises(ValidationError, match=r"expected params\.reward_model|used without one|unknown params"):
        GraderConfig(grader="other_reward_model", params=params, ensemble=ensemble)


def test_rollouts_of_another_batch_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds 10 rollouts, its batch select/select0 asks for 2"):
        grading.plan(rollouts_of(tmp_path, 10), batch_of(tmp_path, "haiku", samples=2), SCORED)


def test_slices_of_whole_groups_vote_and_the_rewards_know_lengths_and_domains(tmp_path):
    """Two prompts of two samples in slices of one rollout at most: still the pairs vote together."""
    vote = GraderConfig(grader="majority", from_iteration=1, params={"answer": "text"})
    steps = [{"step": "length_penalty", "per_token": 0.25}]
    domains = {"other": {"steps": []}}
    config = GradingConfig(graders=[vote], rows_per_shard=1, composite={"steps": steps, "domains": domains})
    inputs = dict(rollouts=rollouts_of(tmp_path, 4), batch=batch_of(tmp_path, "haiku", "haiku", samples=2))
    context = StageContext(tmp_path, logging.getLogger(__name__), lambda done, total, label: None, iteration=1)
    count = grading.plan(**inputs, config=config)
    assert count == 2
    parts = [
        grading.grade.function(
            **inputs, reward_model=None, config=config, shard=Shard(index, count), context=context
        ).tables["grades"]
        for index in range(count)
    ]
    assert [part["rollout_id"].to_list() for part in parts] == [["r0", "r1"], ["r2", "r3"]]
    joined = committed(tmp_path, "grades", grades=pl.concat(parts))
    made = grading.rewards(**inputs, joined=joined, config=config)
    assert made.tables["rewards"]["reward"].to_list() == [0.5] * 4
    assert made.tables["grader_summary"]["ok"].to_list() == [4]
    assert made.metrics["latency_p95_s/majority"] >= 0
    committed(tmp_path, "grading", **made.tables)
    assert grading.versions(config, inputs["batch"]) == {"majority": "1"}
