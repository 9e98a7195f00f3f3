"""Rewards of two reward models are never compared: a group's grades are all of one version of each grader."""

import polars as pl
import pytest
from graded_rollouts import batch_rows, committed, rollout_rows
from hypothesis import given
from hypothesis import strategies as st
from slow_iterations import OWN, Iterations, own_cluster

from storage.errors import InputError
from storage.records import Grade
from tasks.grading import stage as grading
from tasks.grading.config import GraderConfig, GradingConfig
from tasks.grading.mixing import refuse_mixed
from tasks.grading.verdict import Verdict


def grades(rows: list[tuple[str, str, str, str]]) -> pl.DataFrame:
    """Of (rollout, grader, version, status)."""
    full = [(r, g, v, s, 0.5 if s == "ok" else None, None, None, "{}", 0.0, 0.0, "policy") for r, g, v, s in rows]
    return pl.DataFrame(full, schema=Grade.create_empty().schema, orient="row")


def groups(*prompts: str) -> list[pl.LazyFrame]:
    """Rollouts r0, r1, ... of these prompts."""
    ids = [f"r{index}" for index in range(len(prompts))]
    return [
        pl.LazyFrame(
            {"rollout_id": ids, "prompt_id": list(prompts)},
            schema=dict.fromkeys(("rollout_id", "prompt_id"), pl.String),
        )
    ]


def test_two_reward_models_in_one_group_are_refused():
    rows = [("r0", "reward_model", "one", "ok"), ("r1", "reward_model", "two", "ok")]
    with pytest.raises(InputError, match="prompt p0: grader 'reward_model' graded its rollouts in versions one, two"):
        refuse_mixed(grades(rows).lazy(), groups("p0", "p0"))
    refuse_mixed(grades(rows).lazy(), groups("p0", "p1"))


def test_what_was_not_answered_mixes_nothing_and_graders_differ_as_they_like():
    rows = [("r0", "style", "one", "ok"), ("r1", "style", "two", "failed"), ("r1", "verifier", "three", "ok")]
    refuse_mixed(grades(rows).lazy(), groups("p0", "p0"))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.sampled_from("xy")), min_size=1, max_size=12))
def test_it_is_refused_exactly_when_some_group_is_mixed(rows):
    """Each row: the prompt of a rollout, and a grader with a version that graded it."""
    frame = grades([(f"r{i}", grader, version, "ok") for i, (_, grader, version) in enumerate(rows)])
    rollouts = groups(*(f"p{prompt}" for prompt, _, _ in rows))
    seen: dict[tuple[int, str], set[str]] = {}
    for prompt, grader, version in rows:
        seen.setdefault((prompt, grader), set()).add(version)
    if max(map(len, seen.values())) > 1:
        with pytest.raises(InputError, match="expected one for all rollouts of a group"):
            refuse_mixed(frame.lazy(), rollouts)
    else:
        refuse_mixed(frame.lazy(), rollouts)


def test_rounds_that_two_reward_models_graded_are_not_joined(tmp_path):
    """A group lies in two rounds; between them somebody exchanged the reward model."""
    config = GradingConfig(graders=[GraderConfig(grader="reward_model", name="style")])
    parts = []
    for version in ("one", "two"):
        sampled = rollout_rows([("p0", "text"), ("p1" if version == "one" else "p2", "text")], prefix=version)
        rows = [(each, "style", version, "ok") for each in sampled["rollout_id"]]
        parts.append(
            (
                committed(tmp_path, "rollouts", version, rollouts=sampled),
                committed(tmp_path, "select", version, batch=batch_rows(3)),
                committed(tmp_path, "grading", version, grades=grades(rows)),
            )
        )
    rollouts, batches, gradings = (list(each) for each in zip(*parts, strict=True))
    with pytest.raises(InputError, match="prompt p0: grader 'style' graded its rollouts in versions one, two"):
        grading.join_grading.function(rollouts=rollouts, batches=batches, gradings=gradings, config=config)
    alone = grading.join_grading.function(
        rollouts=rollouts[:1], batches=batches[:1], gradings=gradings[:1], config=config
    )
    assert alone.tables["rewards"]["complete"].all()


def test_a_late_grade_keeps_the_version_that_it_was_asked_under(tmp_path, monkeypatch):
    """The slow grader is a newer one when its answers come: they are still those of the one that was asked."""
    with own_cluster(tmp_path, monkeypatch) as cluster:
        run = Iterations(tmp_path, OWN)
        _, asked = run.ask(1)
        cluster.answers |= {f"short:text 1 {index}": Verdict(0.5) for index in range(6)}
        cluster.version = "8"
        outputs, asked_again = run.ask(2, before=asked)
        assert set(outputs.tables["late_grades"]["grader_version"]) == {"cluster:Cluster/7"}
        assert set(outputs.tables["grades"]["grader_version"]) == {"cluster:Cluster/8"}
        settled = run.settle(1, [asked_again])
        assert settled.tables["rewards"]["complete"].all()
