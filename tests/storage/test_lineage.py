"""Lineage: any id leads up to its sources and down to what was made of it."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from storage.artifacts import Artifact, Outputs
from storage.campaigns import Campaign, State
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import CorruptArtifact, InputError
from storage.fingerprints import digest
from storage.lineage import downstream, find, lineage
from storage.store import open_store

MESSAGES = [{"role": "user", "content": "Write a haiku."}]
POLICY = digest("the first policy")


def commit(root: str, folder: Path, step: str, outputs: Outputs, *inputs: Artifact, **options) -> Artifact:
    fingerprint = options.get("fingerprint", digest(step))
    artifact = Artifact(root=root, stage=options.get("stage", step), fingerprint=fingerprint)
    named = {each.stage: each.id for each in inputs}
    config = {"sources": ["haiku.jsonl"]} if step == "curate" else {}
    recipe = Recipe(artifact, step, 1, config, named, 3, "nightly", 1, "mlflow-run")
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    commit_outputs(recipe, Attempt(datetime.now(UTC), scratch, "flow-run", "task-run"), outputs)
    return artifact


def prompts() -> pl.DataFrame:
    row = {"prompt_id": "prompt-a", "messages": MESSAGES, "answer": None, "verifier": {"name": "haiku", "params": "{}"}}
    row |= {
        "domain": "haiku",
        "tags": [],
        "source": "haiku.jsonl:7",
        "split": "train",
        "cluster_id": "c",
        "rubric": None,
    }
    return pl.DataFrame([row, {**row, "prompt_id": "prompt-b", "source": "haiku.jsonl:8"}])


def rollouts() -> pl.DataFrame:
    rows = [
        {
            "rollout_id": f"rollout-{prompt}-{index}",
            "prompt_id": f"prompt-{prompt}",
            "sample_index": index,
            "iteration": 1,
            "policy_id": POLICY,
            "prompt_token_ids": [1],
            "token_ids": [1, 2],
            "logprobs": [-0.1, -0.2],
            "text": f"answer {index}",
            "finish_reason": "stop",
            "engine": "vllm",
            "sampling": "{}",
            "created_at": datetime.now(UTC),
        }
        for prompt in "ab"
        for index in range(2)
    ]
    return pl.DataFrame(rows)


def graded(ids: list[str]) -> Outputs:
    grades = pl.DataFrame(
        [
            {
                "rollout_id": name,
                "grader": grader,
                "grader_version": "1",
                "status": "ok",
                "score": 0.25,
                "passed": None,
                "uncertainty": None,
                "detail": "{}",
                "latency_s": 0.0,
                "cost": 0.0,
                "policy_id": POLICY,
            }
            for name in ids
            for grader in ("haiku", "length")
        ]
    )
    components = [{"name": "haiku", "value": 0.25}]
    graded = {"reward": 0.25, "components": components, "complete": True, "passed": None}
    rewards = [{"rollout_id": name, **graded} for name in ids]
    return Outputs(grades=grades, rewards=pl.DataFrame(rewards))


def filtered(ids: list[str]) -> Outputs:
    ledger = [{"rollout_id": name, "kept": name == ids[0], "value": 0.1, "threshold": 0.2} for name in ids]
    ledger = pl.DataFrame([{**row, "rule": "kept" if row["kept"] else "no_variance"} for row in ledger])
    trajectory = {"rollout_id": ids[0], "group_id": "prompt-a", "prompt_id": "prompt-a", "policy_id": POLICY}
    trajectory |= {"prompt_token_ids": [1], "token_ids": [1], "logprobs": [-0.1], "temperature": 1.0}
    trajectory |= {"reward": 0.25, "advantage": 0.5, "weight": 1.0, "age": 0, "passed": None}
    return Outputs(ledger=ledger, trajectories=pl.DataFrame([trajectory]))


def preferred(ids: list[str]) -> Outputs:
    pair = {"pair_id": "pair-0001", "prompt_id": "prompt-a", "cluster_id": "c", "messages": MESSAGES}
    pair |= {"chosen_rollout_id": ids[0], "rejected_rollout_id": ids[1], "chosen": "x", "rejected": "y"}
    pair |= {"source": "grader", "strength": 0.5, "annotator": None, "split": "train"}
    pair |= dict.fromkeys(("human_score_chosen", "human_score_rejected", "chosen_policy_id", "rejected_policy_id"))
    pair |= dict.fromkeys(("tie", "iteration", "detail"))
    return Outputs(preferences=pl.DataFrame([pair]))


@pytest.fixture
def campaign(root: str, tmp_path: Path) -> dict[str, Artifact]:
    """curate -> rollouts (of a policy) -> grading -> filtering and preferences -> policy and reward model."""
    ids = rollouts()["rollout_id"].to_list()

    def make(step: str, outputs: Outputs, *inputs: str, **options) -> None:
        made[step] = commit(root, tmp_path, step, outputs, *(made[name] for name in inputs), **options)

    made: dict[str, Artifact] = {}
    make("base", Outputs(), stage="policy_update", fingerprint=POLICY)
    make("curate", Outputs(prompts=prompts()))
    make("rollouts", Outputs(rollouts=rollouts()), "curate", "base")
    make("grading", graded(ids), "rollouts")
    make("filtering", filtered(ids), "rollouts", "grading")
    make("preferences", preferred(ids), "rollouts", "grading")
    make("reward_model", Outputs(), "preferences")
    make("policy_update", Outputs(), "filtering")
    state = State(
        campaign="nightly",
        iteration=1,
        policy=made["policy_update"].id,
        champion=made["base"].id,
        champion_evaluation=made["grading"].id,
        steps={step: each.id for step, each in made.items()},
    )
    Campaign(root, "nightly").commit(state)
    return made


def test_artifact_leads_up_to_its_sources_and_down_to_the_policy(root, campaign):
    found = lineage(root, campaign["filtering"].id)
    assert set(found.upstream) == {campaign[step].id for step in ("rollouts", "grading", "curate", "base")}
    assert found.downstream == [campaign["policy_update"].id]
    source = found.nodes[campaign["curate"].id]
    assert source.config == {"sources": ["haiku.jsonl"]}
    assert (source.campaign, source.iteration, source.step) == ("nightly", 1, "curate")
    runs = (source.prefect_flow_run_id, source.prefect_task_run_id, source.mlflow_run_id)
    assert runs == ("flow-run", "task-run", "mlflow-run")
    assert set(downstream(root, campaign["grading"].id)) == {
        campaign[step].id for step in ("filtering", "preferences", "policy_update", "reward_model")
    }


def test_rollout_tells_its_whole_story(root, campaign):
    found = lineage(root, "rollout-a-0")
    assert found.subject.kind == "rollout"
    assert found.subject.artifacts == [campaign["rollouts"].id]
    sections = found.sections
    assert [row["source"] for row in sections["prompt"]] == ["haiku.jsonl:7"]
    assert [row["artifact"] for row in sections["policy"]] == [campaign["base"].id]
    assert [(row["grader"], row["score"]) for row in sections["grades"]] == [("haiku", 0.25), ("length", 0.25)]
    assert sections["rewards"][0]["reward"] == 0.25
    assert [(row["rule"], row["value"], row["threshold"]) for row in sections["ledger"]] == [("kept", 0.1, 0.2)]
    assert [(row["group_id"], row["advantage"]) for row in sections["trajectories"]] == [("prompt-a", 0.5)]
    assert [(row["pair_id"], row["side"]) for row in sections["pairs"]] == [("pair-0001", "chosen")]
    assert [row["artifact"] for row in sections["policies_trained"]] == [campaign["policy_update"].id]


def test_dropped_rollout_trained_nothing(root, campaign):
    sections = lineage(root, "rollout-b-1").sections
    assert [row["rule"] for row in sections["ledger"]] == ["no_variance"]
    assert sections["trajectories"] == sections["policies_trained"] == sections["pairs"] == []


def test_prompt_and_pair(root, campaign):
    prompt = lineage(root, "prompt-b").sections
    assert [(row["source"], row["split"]) for row in prompt["prompt"]] == [("haiku.jsonl:8", "train")]
    assert [row["rollout_id"] for row in prompt["rollouts"]] == ["rollout-b-0", "rollout-b-1"]
    pair = lineage(root, "pair-0001").sections
    assert {row["rollout_id"] for row in pair["rollouts"]} == {"rollout-a-0", "rollout-a-1"}
    assert [row["artifact"] for row in pair["reward_models_trained"]] == [campaign["reward_model"].id]


def test_ids_may_be_beginnings(root, campaign):
    grading = campaign["grading"]
    assert find(root, grading.fingerprint[:6]).id == grading.id
    assert find(root, f"grading/{grading.fingerprint[:8]}").id == grading.id
    assert find(root, POLICY).id == campaign["base"].id
    assert find(root, "pair-00").id == "pair-0001"
    with pytest.raises(InputError, match="Give more of it"):
        find(root, "rollout-a")


def test_campaign_and_iteration(root, campaign):
    assert find(root, "nightly").kind == "campaign"
    found = lineage(root, "nightly/1")
    assert found.subject.kind == "iteration"
    assert campaign["rollouts"].id in found.nodes
    with pytest.raises(InputError, match="iteration 5 isn't committed"):
        find(root, "nightly/5")


def test_unknown_id_says_what_there_is(root, campaign):
    fingerprint = campaign["rollouts"].fingerprint
    wrong = fingerprint[:-3] + ("000" if fingerprint[-3:] != "000" else "111")
    with pytest.raises(InputError, match=r"prompt_id, rollout_id or pair_id") as error:
        find(root, wrong)
    assert campaign["rollouts"].id in str(error.value)
    with pytest.raises(InputError, match="rollout-a-0"):
        find(root, "rollout-x-9")
    with pytest.raises(InputError, match="unknown"):
        find(root, "")


def test_an_input_that_is_gone_is_named(root, campaign):
    open_store(root).remove(f"{campaign['curate'].folder}/_manifest.json")
    found = lineage(root, campaign["rollouts"].id)
    assert found.nodes[campaign["curate"].id].missing
    # The prompts are still known by their ids.
    assert lineage(root, "rollout-a-0").sections["prompt"] == []


def test_damaged_files_are_named(root, campaign):
    [entry] = campaign["rollouts"].manifest.tables["rollouts"].files
    open_store(root).write(f"{campaign['rollouts'].folder}/{entry.name}", b"nothing of Parquet")
    with pytest.raises(CorruptArtifact, match=campaign["rollouts"].id):
        lineage(root, "rollout-a-0")
