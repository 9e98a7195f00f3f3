"""What becomes of a slow grader's answers: whose rollouts they grade, what is asked again, what trains."""

import json

import polars as pl
import pytest
from graded_rollouts import committed, context
from slow_iterations import OWN, Iterations, own_cluster, statuses
from slow_jobs import Jobs, http, serving

from storage.errors import StageFailed, TransientError
from storage.records import Grade, PendingGrade
from tasks.filtering.config import FilteringConfig
from tasks.filtering.stage import filter_rollouts
from tasks.grading.config import BudgetConfig, GradingConfig
from tasks.grading.verdict import Failure, Verdict


@pytest.fixture
def one_of_my_own(tmp_path, monkeypatch):
    with own_cluster(tmp_path, monkeypatch) as cluster:
        yield cluster


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setenv("JOB_KEY", "secret")
    api = Jobs()
    with serving(api) as url:
        api.url = url
        yield api


def test_grades_come_late_to_the_rollouts_that_asked(tmp_path, one_of_my_own):
    run = Iterations(tmp_path, OWN, max_pending_iterations=1)
    first, asked = run.ask(1)
    assert statuses(first.tables["grades"]) == ["pending"] * 6
    assert PendingGrade.is_valid(first.tables["pending"])
    one_of_my_own.answers |= {f"short:text 1 {index}": Verdict(index / 10, cost=2.0) for index in range(4)}
    one_of_my_own.answers["short:text 1 4"] = Failure("lost")
    second, asked_again = run.ask(2, before=asked)
    late = second.tables["late_grades"]
    assert late.sort("rollout_id").select("rollout_id", "status", "score").rows() == [
        *((f"i1r{index}", "ok", index / 10) for index in range(4)),
        ("i1r4", "failed", None),
    ]
    assert set(late["policy_id"]) == {"policy1"} and set(late["grader_version"]) == {"cluster:Cluster/7"}
    assert second.facts == {"arrived": {"1": 4}}
    assert second.metrics["cost_paid"] == 8.0 and second.metrics["pending"] == 7
    settled = run.settle(1, [asked_again])
    complete = settled.tables["rewards"].filter("complete")
    assert sorted(complete["rollout_id"]) == ["i1r0", "i1r1", "i1r2"], "p1 lacks grades: none of it is complete"
    assert complete.sort("rollout_id")["reward"].to_list() == pytest.approx(
        [(0.5 * 0.5 + 1.0 * score) / 1.5 for score in (0.0, 0.1, 0.2)]
    )
    third, _ = run.ask(3, before=asked_again)
    expired = third.tables["late_grades"].filter(pl.col("rollout_id") == "i1r5")
    assert expired["status"][0] == "failed" and "within 1 iterations" in expired["detail"][0]


def test_nothing_is_asked_twice_whatever_is_killed(tmp_path, one_of_my_own):
    run = Iterations(tmp_path, OWN)
    run.ask(1)
    run.ask(1, fresh="again")
    assert len(one_of_my_own.asked) == 6
    one_of_my_own.answers["short:text 1 0"] = Verdict(0.5, cost=1.0)
    _, asked = run.ask(1, fresh="third")
    outputs, _ = run.ask(2, texts=[("p0", "text 1 0"), ("p0", "text 1 1"), ("p0", "new")], before=asked)
    assert statuses(outputs.tables["grades"]) == ["ok", "pending", "pending"]
    assert one_of_my_own.asked[6:] == ["new"]
    assert outputs.metrics["cache_hits"] == 1 and outputs.metrics["cost_saved"] == 1.0


def test_a_failed_answer_can_be_asked_for_again(tmp_path, one_of_my_own):
    run = Iterations(tmp_path, OWN)
    _, asked = run.ask(1)
    one_of_my_own.answers["short:text 1 0"] = Verdict(7.0)
    outputs, _ = run.ask(2, texts=[("p0", "text 1 0")], before=asked)
    assert "score is 7.0" in outputs.tables["late_grades"]["detail"][0]
    assert one_of_my_own.asked.count("text 1 0") == 2
    del one_of_my_own.answers["short:text 1 0"]


def test_what_wasnt_taken_is_tried_again_and_what_was_taken_is_not(tmp_path, jobs):
    run = Iterations(tmp_path, http(jobs, chunk=2))
    jobs.fail_after = 3
    with pytest.raises(TransientError, match="took 1 of 2"):
        run.ask(1)
    jobs.fail_after = None
    outputs, _ = run.ask(1, fresh="again")
    assert statuses(outputs.tables["grades"]) == ["pending"] * 6
    assert sorted(jobs.jobs.values()) == [f"text 1 {index}" for index in range(6)]


def test_a_budget_skips_groups_and_says_with_which_probability(tmp_path, one_of_my_own):
    run = Iterations(tmp_path, OWN.model_copy(update={"budget": BudgetConfig(max_rollouts=4)}))
    outputs, _ = run.ask(1)
    grades = outputs.tables["grades"].sort("rollout_id")
    assert grades["status"].to_list() == ["pending"] * 3 + ["skipped"] * 3
    chosen = [json.loads(text) for text in grades["detail"]]
    assert [each["chosen"] for each in chosen] == ["value"] * 3 + ["rest"] * 3
    assert chosen[0]["propensity"] == 1.0 and "propensity" not in chosen[5]
    assert outputs.metrics["skipped"] == 3 and outputs.metrics["submitted"] == 3
    assert not run.settle(1).tables["rewards"]["complete"].any()


def test_a_late_grade_never_attaches_to_a_fresh_rollout(tmp_path, one_of_my_own):
    run = Iterations(tmp_path, OWN)
    _, asked = run.ask(1)
    one_of_my_own.answers |= {f"short:text 1 {index}": Verdict(0.5) for index in range(6)}
    with pytest.raises(StageFailed, match="is of this iteration"):
        run.ask(2, before=asked, fresh="i1r")
    _, later = run.ask(3, before=asked)
    settled = run.settle(3, [later])
    assert set(settled.tables["grades"]["rollout_id"]) == {f"i3r{index}" for index in range(6)}
    with pytest.raises(StageFailed, match="none was pending there"):
        run.made[1] = (*run.made[1][:3], committed(tmp_path, "slow_grading", "none", **answered(run.made[1][3])))
        run.settle(1, [later])


def answered(asked):
    """The tables of an asking whose rows weren't pending."""
    grades = asked.read("grades").with_columns(
        pl.lit("failed").cast(Grade.create_empty().schema["status"]).alias("status")
    )
    return {"grades": grades}


def test_a_grader_that_left_the_run_file_leaves_failed_rows(tmp_path, one_of_my_own):
    run = Iterations(tmp_path, OWN)
    _, asked = run.ask(1)
    run.config = GradingConfig()
    outputs, _ = run.ask(2, before=asked)
    assert set(outputs.tables["late_grades"]["status"]) == {"failed"}
    assert "there is no slow grader slow any more" in outputs.tables["late_grades"]["detail"][0]
    assert outputs.tables["pending"].is_empty() and outputs.tables["grades"].is_empty()


def test_a_group_that_has_trained_is_not_trained_again(tmp_path, one_of_my_own):
    run = Iterations(tmp_path, OWN)
    _, asked = run.ask(1)
    one_of_my_own.answers |= {f"short:text 1 {index}": Verdict(index / 10) for index in range(3)}
    _, second = run.ask(2, before=asked)
    one_of_my_own.answers |= {f"short:text 1 {index}": Verdict(index / 10) for index in range(3, 6)}
    _, third = run.ask(3, before=second)
    rollouts, root = run.made[1][0], str(tmp_path / "root")
    trained = []
    for name, late in [("a", [second]), ("b", [second, third])]:
        rewards = committed(tmp_path, "settle", name, root, **run.settle(1, late).tables)
        kept = filter_rollouts.function(
            rollouts=rollouts, rewards=rewards, config=FilteringConfig(), trained=trained, context=context(tmp_path)
        )
        trained.append(committed(tmp_path, "filtering", name, root, **kept.tables))
    assert [sorted(set(each.read("trajectories")["group_id"])) for each in trained] == [["p0"], ["p1"]]
    ledger = dict(trained[1].read("ledger").select("rollout_id", "rule").iter_rows())
    assert ledger == {f"i1r{index}": "trained" if index < 3 else "kept" for index in range(6)}


def test_what_expired_can_be_asked_for_again(tmp_path, one_of_my_own):
    run = Iterations(tmp_path, OWN, max_pending_iterations=1)
    _, asked = run.ask(1)
    expired, after = run.ask(3, before=asked)
    assert expired.metrics["expired"] == 6
    again, _ = run.ask(4, texts=[("p0", f"text 1 {index}") for index in range(6)], before=after)
    assert again.metrics["submitted"] == 6
    assert one_of_my_own.asked.count("text 1 0") == 2


def test_an_answer_that_several_rollouts_share_is_paid_for_in_one_row(tmp_path, one_of_my_own):
    run = Iterations(tmp_path, OWN)
    _, asked = run.ask(1, texts=[("p0", "same")] * 3)
    one_of_my_own.answers["short:same"] = Verdict(0.5, detail={"seconds": 12}, cost=3.0)
    second, after = run.ask(2, before=asked)
    late = second.tables["late_grades"]
    assert late["score"].to_list() == [0.5] * 3 and sorted(late["cost"]) == [0.0, 0.0, 3.0]
    assert late["latency_s"].to_list() == [12.0] * 3
    third, _ = run.ask(3, texts=[("p0", "same")], before=after)
    assert third.tables["grades"].select("score", "cost").rows() == [(0.5, 0.0)]
    del one_of_my_own.answers["short:same"]
