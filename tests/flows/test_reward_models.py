"""Nights of one campaign on real servers: which reward model grades next, and who says why."""

import httpx
import numpy as np
import polars as pl
import pytest
from graded_rollouts import batch_rows, committed, rollout_rows
from mlflow import MlflowClient
from pipeline import manifests
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.config import parse_config
from flows.reward_models import TAG, Night, read_anchors, refresh
from flows.slow_grades import Graded
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.policies import register_base
from storage.records import RECORDS
from storage.tracking import Tracker
from tasks._stage import RunContext, run_context

PREFERENCES = RECORDS["preferences"].create_empty().schema
WORDS = ("pond", "frog", "sea", "water", "still", "old", "lines", "three", "sound", "answer")
TRAINING = {
    **{"learning_rate": 1e-2, "batch_pairs": 8, "epochs": 3, "dtype": "float32", "device": "cpu"},
    **{"lora_rank": 4, "lora_alpha": 8, "when": "every", "train_every": 1},
}


def pairs_of(seed: int, *, swapped: bool = False, turned: bool = False, pairs: int = 64) -> pl.DataFrame:
    """Answers that end in a full stop are better; a quarter of the prompts is held out.

    `swapped`: those that train say the opposite; `turned`: all do.
    """
    random = np.random.default_rng(seed)
    rows = []
    for number in range(pairs):
        prompt = number // 2
        held_out = prompt % 4 == 0
        better, worse = (" ".join(random.choice(WORDS, random.integers(2, 6))) + end for end in ".!")
        if turned or (swapped and not held_out):
            better, worse = worse, better
        rows.append(
            {"pair_id": f"s{seed}p{number}", "prompt_id": f"q{prompt}", "cluster_id": f"c{prompt}"}
            | {"messages": [{"role": "user", "content": f"Write {WORDS[prompt % 10]} {prompt}"}]}
            | {"chosen": better, "rejected": worse, "source": "grader", "strength": 0.5}
            | {"split": "eval" if held_out else "train"}
        )
    return pl.DataFrame(rows, schema=PREFERENCES)


class Nights:
    """A campaign of which only the reward model matters: each night brings pairs, and says who grades next."""

    def __init__(self, folder, model, prefect_server, mlflow_server, **sections) -> None:
        self.folder, self.root, self.api = folder, str(folder / "root"), prefect_server
        document = {
            "campaign": "nights",
            "root": self.root,
            "model": {"path": str(model)},
            "curate": {"sources": [{"generator": "haiku"}]},
            "grading": {"graders": [{"grader": "verifier"}]},
            "reward_model": TRAINING,
            "reward_check": {"device": "cpu"},
            "reward_gate": {"max_length_correlation": 1.0, "min_pairs": 10},
            **sections,
        }
        self.config = parse_config(document, "test")
        self.policy = register_base(self.root, str(model))
        self.tracker = Tracker(mlflow_server, "nights")
        self.usual = {"campaign": "nights", "policy": "p/1", "champion": "p/1", "champion_evaluation": "e/1"}
        self.state = Campaign(self.root, "nights").commit(State(iteration=0, **self.usual))
        self.runs: list[str] = []

    def __call__(self, pairs: pl.DataFrame) -> State:
        k = self.state.iteration + 1
        pairs = pairs.with_columns(iteration=pl.lit(k, pl.Int32))
        held_out = float((pairs["split"] == "eval").sum())
        metrics = {"pairs": float(len(pairs)), "eval_pairs": held_out}
        made = committed(self.folder, "preferences", str(k), self.root, preferences=pairs, metrics=metrics)
        graded = self.sampled(k)
        tags = {"posttrain.campaign": "nights", "posttrain.iteration": str(k)}
        self.runs.append(self.tracker.start_run(f"night {k}", parent=None, config={}, tags=tags, note=""))
        steps: dict[str, str] = {}
        run = RunContext(self.root, "nights", k, self.tracker, self.runs[-1], steps=steps)

        @flow(name="night", persist_result=True)
        def around():
            with run_context(run):
                return refresh(
                    Night(self.state, self.config, run, self.policy, graded, made, read_anchors(self.config))
                )

        with temporary_settings({PREFECT_API_URL: self.api}):
            found = around()
        self.state = Campaign(self.root, "nights").commit(State(iteration=k, steps=steps, **found.ids(), **self.usual))
        return self.state

    def sampled(self, k: int) -> Graded:
        """Two rollouts of this night and what a verifier says of them."""
        rollouts = rollout_rows([("p0", "an answer."), ("p0", "another!")], iteration=k, prefix=f"i{k}r")
        ids = rollouts["rollout_id"].to_list()
        grades = pl.DataFrame(
            [(each, "verifier", "1", "ok", 0.5, None, None, "{}", 0.0, 0.0, "policy") for each in ids],
            schema=RECORDS["grades"].create_empty().schema,
            orient="row",
        )
        rewards = pl.DataFrame(
            [(each, 0.5, [], True, None) for each in ids], schema=RECORDS["rewards"].create_empty().schema, orient="row"
        )
        return Graded(
            committed(self.folder, "rollouts", str(k), self.root, rollouts=rollouts),
            committed(self.folder, "select", str(k), self.root, batch=batch_rows(1, samples=2)),
            committed(self.folder, "grading", str(k), self.root, grades=grades, rewards=rewards),
        )


@pytest.fixture(scope="module")
def nights(tmp_path_factory, tiny_model, prefect_server, mlflow_server):
    """Good labels, then training labels that are swapped, then good ones again; the states after each."""
    campaign = Nights(tmp_path_factory.mktemp("nights"), tiny_model, prefect_server, mlflow_server)
    states = [campaign(pairs_of(1)), campaign(pairs_of(2, swapped=True)), campaign(pairs_of(3))]
    return {"campaign": campaign, "states": states, "made": manifests(campaign.root)}


def test_the_first_one_grades_once_it_is_better_than_chance(nights):
    first, made = nights["states"][0], nights["made"]
    assert set(first.steps) == {"reward_model", "reward_check", "reward_gate"}
    assert (first.reward_model, first.reward_check) == (first.steps["reward_model"], first.steps["reward_check"])
    assert made[first.reward_check].metrics["heldout_accuracy_low"] > 0.5
    assert made[first.steps["reward_gate"]].metrics["promoted"] == 1.0


def test_a_worse_one_stays_out(nights):
    first, second, made = *nights["states"][:2], nights["made"]
    assert set(second.steps) == {"reward_model", "reward_check", "reward_check-candidate", "reward_gate"}
    assert (second.reward_model, second.reward_check) == (first.reward_model, first.reward_check)
    checks = [made[second.steps[step]] for step in ("reward_check", "reward_check-candidate")]
    assert [each.inputs["reward_model"] for each in checks] == [first.reward_model, second.steps["reward_model"]]
    assert checks[0].inputs["preferences"] == checks[1].inputs["preferences"]
    gate = made[second.steps["reward_gate"]]
    assert gate.metrics["promoted"] == 0.0 and gate.metrics["accuracy_difference_high"] < 0


def test_a_better_one_replaces_it(nights):
    second, third, made = *nights["states"][1:], nights["made"]
    assert third.reward_model == third.steps["reward_model"] != second.reward_model
    assert third.reward_check == third.steps["reward_check-candidate"]
    assert made[third.steps["reward_gate"]].metrics["promoted"] == 1.0


def test_prefect_mlflow_and_the_table_say_why(nights, prefect_server, mlflow_server):
    campaign, first, second = nights["campaign"], *nights["states"][:2]
    gate = Artifact.at(campaign.root, second.steps["reward_gate"])
    row = gate.read("gate").row(by_predicate=pl.col("name") == "accuracy", named=True)
    assert not row["passed"] and row["candidate"] < row["incumbent"] and "which must lie above -0.05" in row["why"]
    assert row["why"] in gate.manifest.facts["why"]
    tags = [MlflowClient(mlflow_server).get_run(run).data.tags for run in campaign.runs]
    assert [each[TAG] for each in tags] == [state.reward_model for state in nights["states"]]
    assert f"{second.steps['reward_model']} stays out: accuracy: {row['why']}" in tags[1][f"{TAG}.verdict"]
    query = {"artifacts": {"key": {"any_": ["reward-gate-verdict"]}}, "sort": "CREATED_DESC"}
    pages = httpx.post(f"{prefect_server}/artifacts/filter", json=query).raise_for_status().json()
    said = [page["data"] for page in pages if second.steps["reward_model"] in page["data"]]
    assert said and f"stays out; `{first.reward_model}` grades" in said[0] and row["why"] in said[0]


def test_a_first_one_that_fails_leaves_the_campaign_without(tmp_path, tiny_model, prefect_server, mlflow_server):
    """Offline: the next night tries again, and the one that passes is frozen."""
    training = TRAINING | {"when": "offline", "train_every": None}
    campaign = Nights(tmp_path, tiny_model, prefect_server, mlflow_server, reward_model=training)
    failed = campaign(pairs_of(2, swapped=True))
    assert "reward_gate" in failed.steps and failed.reward_model is failed.reward_check is None
    passed = campaign(pairs_of(1))
    assert passed.reward_model == passed.steps["reward_model"]
    frozen = campaign(pairs_of(3))
    assert set(frozen.steps) == {"reward_check"}, "it is watched, and none is trained"
    assert (frozen.reward_model, frozen.reward_check) == (passed.reward_model, passed.reward_check)


def test_drift_asks_for_another_one(tmp_path, tiny_model, prefect_server, mlflow_server, caplog):
    """What people prefer turns round: the sign counts once it had its rest, and the one that learned it replaces."""
    training = TRAINING | {"when": "trigger", "train_every": None, "trigger": {"min_pairs": 10}}
    campaign = Nights(tmp_path, tiny_model, prefect_server, mlflow_server, reward_model=training)
    first = campaign(pairs_of(1))
    resting = campaign(pairs_of(2, turned=True))
    assert set(resting.steps) == {"reward_check"} and resting.reward_model == first.reward_model
    fired = campaign(pairs_of(3, turned=True))
    assert fired.reward_model == fired.steps["reward_model"] != first.reward_model
    assert any("accuracy on fresh held-out pairs fell from" in each.getMessage() for each in caplog.records)
    calm = campaign(pairs_of(4, turned=True))
    assert set(calm.steps) == {"reward_check"} and calm.reward_model == fired.reward_model
