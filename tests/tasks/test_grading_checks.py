"""What is refused of a run's graders before anything is made."""

import pytest

from storage.errors import InputError
from tasks.grading.checks import check_graders, check_iterations
from tasks.grading.config import GraderConfig, GradingConfig

JUDGING = {"endpoint": {"base_url": "http://localhost:1/v1", "model": "m", "key_variable": "NO_SUCH_JUDGE_KEY"}}
HEADERS = {"headers": {"Authorization": "NO_SUCH_HEADER"}}


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        ({"grader": "numbr"}, "no verifier 'numbr'"),
        ({"grader": "no_such_module:f"}, "can't be imported"),
        ({"grader": "hostile_graders:unnamed"}, "has the parameters"),
        ({"grader": "hostile_graders:Batches", "params": {"lag": 1}}, "don't fit its constructor"),
        ({"grader": "process", "params": {"scorer": "no_such_module:f"}}, "can't be imported"),
        ({"grader": "majority", "from_iteration": 1, "params": {"ties": "some"}}, "params.ties"),
        ({"grader": "command", "params": {"run": ["./no-such-program"]}}, "is no program here"),
        (
            {"grader": "http://localhost:1/x", "name": "mine", "params": HEADERS},
            "environment variables that aren't set",
        ),
        ({"grader": "rubric", "judging": JUDGING}, "the environment variable NO_SUCH_JUDGE_KEY is not set"),
        ({"grader": "no_such_module:Slow", "latency": "slow"}, "can't be imported"),
        ({"grader": "folder", "latency": "slow"}, "params.folder is None"),
        (
            {"grader": "http_jobs", "latency": "slow", "params": {"url": "http://x", "key_env": "NO_SUCH_JOB_KEY"}},
            "NO_SUCH_JOB_KEY",
        ),
    ],
)
def test_a_grader_that_is_not_there_is_refused_before_any_work(grader, message):
    grading = GradingConfig(graders=[GraderConfig(), GraderConfig.model_validate(grader)])
    with pytest.raises(InputError, match=message):
        check_graders(grading, ["haiku"])
    check_graders(GradingConfig(), ["haiku"])


def test_code_is_graded_in_a_sandbox_or_not_at_all(monkeypatch, tmp_path):
    from tasks.grading.sandbox.bubblewrap import check_sandbox

    check_sandbox.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    for graders, verifiers in [([{}], ["python_code"]), ([{}, {"grader": "python_code"}], ["haiku"])]:
        with pytest.raises(InputError, match="no bwrap on the PATH"):
            check_graders(GradingConfig.model_validate({"graders": graders}), verifiers)
    check_graders(GradingConfig.model_validate({"graders": [{"grader": "number"}]}), ["python_code"])
    with pytest.raises(InputError, match="no verifier 'numbr'"):
        check_graders(GradingConfig(), ["numbr"])


def test_an_iteration_without_graders_is_refused_before_any_work():
    late = GraderConfig(from_iteration=2)
    model = GraderConfig(grader="reward_model", from_iteration=1)
    slow = GraderConfig(grader="folder", latency="slow", params={"folder": "asked"})
    for graders, iteration in [([late], 0), ([model], 0), ([GraderConfig(grader="majority", from_iteration=1)], 0)]:
        with pytest.raises(InputError, match=f"no grader with a weight is active in iteration {iteration}"):
            check_iterations(GradingConfig(graders=graders))
    unweighed = GradingConfig(graders=[GraderConfig(weight=0), model])
    with pytest.raises(InputError, match="no grader with a weight is active in iteration 1"):
        check_iterations(unweighed)
    check_iterations(GradingConfig(graders=[GraderConfig(), model, slow]))
