"""Rounds in a night: on a real Prefect server with a scripted policy, and once in a whole run with a real one."""

import re
from pathlib import Path

import polars as pl
import pytest
import scripted_policy
import yaml
from graded_rollouts import committed
from pipeline import contents, environment, manifests, posttrain, run_file, states
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.config import parse_config
from flows.rounds import Sampler, sample_iteration
from flows.steps import ROUND
from storage.artifacts import Artifact
from storage.errors import InputError
from storage.policies import register_base
from storage.records import Prompt
from tasks._engines import pool as engines
from tasks._stage import RunContext, StoppedAfter, run_context
from tasks.filtering.stage import decisions

KINDS = ("easy", "hard", "mixed")
PAGE = (Path(__file__).parents[2] / "deployments" / "rounds.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


def document(**changes):
    return {
        "campaign": "rounds",
        "model": {"path": "model"},
        "curate": {"sources": [{"generator": "haiku"}]},
        "select": {"prompts_per_iteration": 12, "samples_per_prompt": 8},
        "rollouts": {
            "rows_per_shard": 40,
            "sampling": {"max_tokens": 8},
            "engine": {"name": "scripted_policy:ScriptedPolicy", "max_model_len": 256},
        },
        "grading": {"graders": [{"grader": "verifier"}]},
        **changes,
    }


def prompts(each: int) -> pl.DataFrame:
    """So many prompts of every kind."""
    rows = [
        {
            "prompt_id": f"{kind}{index}",
            "messages": [{"role": "user", "content": f"{kind} {index}"}],
            "answer": scripted_policy.ANSWER,
            "verifier": {"name": "exact_match", "params": "{}"},
            "domain": kind,
            "tags": [],
            "source": f"here:{index}",
            "split": "train",
            "cluster_id": f"{kind}{index}",
        }
        for kind in KINDS
        for index in range(each)
    ]
    return pl.DataFrame(rows, schema=Prompt.create_empty().schema)


@pytest.fixture
def night(prefect_server, tmp_path, tiny_model):
    """Sample one iteration below a root of that name; gives its rollouts, batch and grading, its history, its steps."""
    scripted_policy.calls.clear()
    scripted_policy.dies_at.clear()

    def run(name="root", each=4, history=None, iteration=1, **changes):
        root = str(tmp_path / name)
        known = Artifact(root=root, stage="curate", fingerprint="curate0")
        pool = known if known.exists() else committed(tmp_path, "curate", root=root, prompts=prompts(each))
        context = {key: changes.pop(key) for key in ("force", "stop_after") if key in changes}
        config = parse_config(document(**changes), "test")
        sampler = Sampler(
            config=config,
            iteration=iteration,
            prompts=pool,
            history=history,
            policy=register_base(root, str(tiny_model)),
            reward_model=None,
            judge_models={},
            graders=config.grading.active(iteration, has_reward_model=False),
        )
        steps = {}

        @flow(name="night", persist_result=True)
        def around():
            with run_context(RunContext(root=root, campaign="rounds", iteration=iteration, steps=steps, **context)):
                return sample_iteration(sampler)

        with temporary_settings({PREFECT_API_URL: prefect_server}):
            sampled, after = around()
        return sampled, after, steps

    yield run
    engines.close_all()


def samples_by_kind(rollouts: Artifact) -> dict[str, set[int]]:
    counts = rollouts.read("rollouts").group_by("prompt_id").len()
    kinds = counts.with_columns(pl.col("prompt_id").str.extract("([a-z]+)"))
    return {kind: set(kinds.filter(pl.col("prompt_id") == kind)["len"]) for kind in kinds["prompt_id"].unique()}


def test_without_rounds_the_steps_and_their_artifacts_are_those_of_before(night):
    sampled, after, steps = night()
    assert list(steps) == ["select", "rollouts", "grading"]
    assert after.id == sampled.batch.id == steps["select"]
    assert {name.partition("/")[0] for name in steps.values()} == {"select", "rollouts", "grading"}
    # Rounds find what a night without them made.
    with_rounds = night(rounds={"refill": {"groups": 2}})[2]
    assert [with_rounds[f"{step}-1"] for step in steps] == list(steps.values())
    assert sum(scripted_policy.calls) == 96


def test_screening_samples_the_rest_where_the_first_vary(night):
    sampled, after, steps = night(rounds={"screening": {"samples": 4}})
    assert list(steps) == [
        *("select-1", "screening-1", "rollouts-1", "grading-1", "rest-1", "rollouts-1-rest", "grading-1-rest"),
        *("select", "rollouts", "grading"),
    ]
    assert after.id == steps["select-1"]
    assert sum(scripted_policy.calls) == 12 * 4 + 4 * 4
    assert samples_by_kind(sampled.rollouts) == {"easy": {4}, "hard": {4}, "mixed": {8}}
    rollouts = sampled.rollouts.read("rollouts")
    indices = rollouts.group_by("prompt_id", maintain_order=True).agg("sample_index")["sample_index"].to_list()
    assert all(each == list(range(len(each))) for each in indices)
    assert sampled.batch.metrics == {
        "prompts": 12.0,
        "rollouts": 64.0,
        "rounds": 1.0,
        "screened_out": 8.0,
        "rollouts_saved": 32.0,
        "first_reward_mean": 0.5,
        "first_pass_rate": 0.5,
    }
    assert sampled.rollouts.metrics["rollouts"] == 64 and sampled.rollouts.metrics["length_mean"] == 3
    grades = sampled.grading.read("grades")
    assert sorted(grades["rollout_id"]) == sorted(rollouts["rollout_id"])
    assert sampled.grading.metrics["reward_mean"] == 0.5
    # The filter sees whole groups: the baseline of a group that went on is that of all of its samples.
    decided = decisions([sampled.rollouts], sampled.grading, parse_config(document(), "t").filtering)
    kept = decided.filter("kept")
    assert set(kept["group_id"]) == {f"mixed{index}" for index in range(4)} and len(kept) == 32
    assert sorted(set(kept["advantage"])) == [-0.5, 0.5]


def test_what_the_composite_takes_over_a_group_is_taken_over_both_goes(night):
    grading = {"graders": [{"grader": "verifier"}], "composite": {"steps": [{"step": "normalise", "scope": "batch"}]}}
    sampled, _, steps = night(rounds={"screening": {"samples": 3}}, grading=grading)
    rewards = sampled.grading.read("rewards")["reward"]
    assert rewards.mean() == pytest.approx(0, abs=1e-9) and rewards.std() == pytest.approx(1, abs=1e-4)
    parts = [Artifact.at(sampled.grading.root, steps[name]).read("rewards") for name in ("grading-1", "grading-1-rest")]
    assert set(pl.concat(parts)["reward"].round(6)) != set(rewards.round(6))


def test_refill_draws_other_prompts_until_enough_groups_survive(night):
    changes = {"select": {"prompts_per_iteration": 6, "samples_per_prompt": 4}, "each": 12}
    rounds = {"refill": {"groups": 7, "max_rounds": 6}}
    sampled, after, steps = night(rounds=rounds, **changes)
    made = manifests(sampled.batch.root)
    drawn = [made[artifact] for step, artifact in steps.items() if re.fullmatch(r"select-\d+", step)]
    batch = sampled.batch.read("batch")
    assert sum(each.metrics["prompts"] for each in drawn) == len(batch) == batch["prompt_id"].n_unique()
    mixed = {prompt_id for prompt_id in batch["prompt_id"] if prompt_id.startswith("mixed")}
    metrics = sampled.batch.metrics
    assert metrics["surviving_groups"] == len(mixed) >= 7 and metrics["rounds"] == len(drawn) > 1
    first = made[steps["survivors-1"]].metrics["surviving"]
    assert metrics["refilled_groups"] == len(mixed) - first
    last = made[steps[f"survivors-{len(drawn) - 1}"]].metrics["surviving"]
    assert last < 7, "it went on though enough groups survived"
    assert steps["grading"] == steps[f"rewards-{len(drawn)}"]
    assert samples_by_kind(sampled.rollouts)["easy"] == {4}
    history = after.read("prompt_history")
    assert history["times_drawn"].sum() == len(batch) and len(history) == 36
    assert set(history.filter(pl.col("times_drawn") > 0)["prompt_id"]) == set(batch["prompt_id"])
    # The next night draws others: the draws of the refill count.
    following, _, _ = night(history=after, iteration=2, **changes)
    left = 36 - len(batch)
    again = set(following.batch.read("batch")["prompt_id"]) & set(batch["prompt_id"])
    assert len(again) == max(0, 6 - left)


@pytest.mark.parametrize(
    ("each", "refill", "why"),
    [
        (2, {"groups": 9, "max_rounds": 4}, "the pool has no other prompts"),
        (9, {"groups": 18, "max_rounds": 2, "prompts": 12}, "rounds.refill.max_rounds is reached"),
    ],
)
def test_a_refill_that_runs_out_goes_on_with_what_it_has(night, caplog, each, refill, why):
    changes = {"select": {"prompts_per_iteration": 6, "samples_per_prompt": 4}, "each": each}
    sampled, _, _ = night(rounds={"refill": refill, "screening": {"samples": 2}}, **changes)
    metrics = sampled.batch.metrics
    assert metrics["surviving_groups"] < refill["groups"]
    assert metrics["prompts"] == (6 if each == 2 else 18)
    assert metrics["screened_out"] * 2 == metrics["rollouts_saved"] > 0
    if each == 9:
        assert metrics["rounds"] == 2
    assert any(why in record.getMessage() for record in caplog.records)


def test_a_night_cut_off_in_round_two_goes_on_where_it_was(night):
    rounds = {"screening": {"samples": 2}, "refill": {"groups": 5, "max_rounds": 5}}
    changes = {"select": {"prompts_per_iteration": 6, "samples_per_prompt": 4}, "each": 6, "rounds": rounds}
    sampled, after, steps = night("undisturbed", **changes)
    assert {"rollouts-2", "rollouts-1-rest", "survivors-2"} <= steps.keys()
    generations = list(scripted_policy.calls)
    scripted_policy.calls.clear()
    scripted_policy.dies_at.append(3)
    with pytest.raises(RuntimeError, match="generation 3 was cut off"):
        night("cut", **changes)
    assert scripted_policy.calls == generations[:3]
    before = contents(str(Path(sampled.batch.root).parent / "cut"))
    again, history, steps_again = night("cut", **changes)
    assert scripted_policy.calls == generations[:3] + generations[2:]
    assert (again, history) != (sampled, after) and steps_again == steps  # another root, the same artifacts
    now = contents(again.batch.root)
    assert before.items() <= now.items() and now == contents(sampled.batch.root)


def test_a_round_is_rerun_by_its_own_name(night):
    changes = {"rounds": {"screening": {"samples": 4}}}
    _, _, steps = night(**changes)
    with pytest.raises(StoppedAfter) as stopped:
        night(stop_after="rollouts-1-rest", force=frozenset({"rollouts-1-rest"}), **changes)
    assert stopped.value.artifact.id == steps["rollouts-1-rest"]
    assert scripted_policy.calls[-1:] == [16] and sum(scripted_policy.calls) == 48 + 16 + 16
    for step in steps:
        assert ROUND.fullmatch(step) or step in ("select", "rollouts", "grading")
    assert not any(ROUND.fullmatch(step) for step in ("rollouts-0", "rollouts-1-more", "select-1-rest", "curate-1"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": {"screening": {"samples": 8}}}, r"screening.samples is 8, expected less than .*\(8\)"),
        (
            {"rounds": {"screening": {"samples": 2}}, "select": {"retire_from": 0.9}},
            r"all of its 2 rollouts \(rounds.screening.samples\) .* comes to 0.8333 .*lower retire_from to 0.8333",
        ),
        ({"rounds": {"refill": {"groups": 37}}}, "groups is 37, but 3 rounds draw 36 prompts at most"),
        ({"rounds": {"refill": {"groups": 20, "prompts": 2}}}, "groups is 20, but 3 rounds draw 16 prompts"),
        ({"rounds": {"refil": {"groups": 2}}}, "unknown key 'rounds.refil', did you mean 'refill'"),
        ({"rounds": {"screening": {"sample": 2}}}, "unknown key 'rounds.screening.sample', did you mean 'samples'"),
        (
            {
                "rounds": {"refill": {"groups": 2}},
                "grading": {"graders": [{"weight": 0.5}, {"grader": "folder", "latency": "slow", "name": "people"}]},
            },
            "grader 'people' is slow",
        ),
        (
            {
                "rounds": {"screening": {"samples": 2}},
                "grading": {"graders": [{}, {"grader": "majority", "from_iteration": 1}]},
            },
            "grader 'majority' compares all samples of a prompt",
        ),
    ],
)
def test_rounds_that_cant_be_decided_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        parse_config(document(**changes), "test")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet_of_the_page_loads(snippet):
    assert parse_config(document() | snippet, "page").rounds.any


@pytest.mark.slow
def test_a_whole_run_with_both_kinds_of_rounds(tmp_path, tiny_model, prefect_server):
    root, env = str(tmp_path / "root"), environment(tmp_path / "home", PREFECT_API_URL=prefect_server)
    rounds = {"screening": {"samples": 2}, "refill": {"groups": 8, "max_rounds": 2, "prompts": 4}}
    path = run_file(tmp_path, tiny_model, rounds=rounds, iterations=1)
    posttrain("run", str(path), "--root", root, env=env)
    made, state = manifests(root), states(root)["00001.json"]
    steps = state["steps"]
    metrics = made[steps["select"]].metrics
    assert made[steps["filtering"]].inputs["rollouts"] == steps["rollouts"]
    assert made[steps["rollouts"]].metrics["rollouts"] == metrics["rollouts"]
    assert len(Artifact.at(root, steps["filtering"]).read("ledger")) == metrics["rollouts"]
    assert state["prompt_history"] == steps[f"select-{metrics['rounds']:.0f}"]
    posttrain("rerun", "tiny", "1", "rollouts-1-rest", "--force", "--root", root, env=env)
    said = posttrain("rerun", "tiny", "1", "rollouts", "--force", "--root", root, env=env)
    assert "the rounds' own are called rollouts-1" in said
    assert contents(root) == {name: manifest.content for name, manifest in made.items()}
