"""A grade is paid for once: over equal outputs, over runs, over a kill, and over everything but its own rule."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import warm
from graded_rollouts import batch_rows, committed, grade_shard, rollout_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.grade_cache import GradeCache
from tasks.grading.config import GraderConfig, GradingConfig
from tasks.grading.grade import grade_samples, purse_for
from tasks.grading.keys import grader_key, row_key, row_keys
from tasks.grading.sample import Sample
from tasks.grading.verdict import Failure, Verdict

REPOSITORY = Path(__file__).parents[2]
CHUNK = 5


def sample(index: int, text: str = "", prompt_id: str = "p", **changes) -> Sample:
    given = dict(rollout_id=f"r{index}", prompt_id=prompt_id, policy_id="policy", text=text or f"text {index}")
    given |= dict(messages=[{"role": "user", "content": prompt_id}], tokens=2, truncated=False, answer=None)
    return Sample(**{**given, "rubric": None, "domain": "", "verifier": "v", "params": {}} | changes)


class Judge:
    """Grades by length, costs a dollar; remembers whom it was asked about."""

    paid = True

    def __init__(self, version="1", compares_group=False):
        self.version, self.compares_group, self.asked = version, compares_group, []

    def version_of(self, sample):
        return self.version

    def grade_batch(self, samples, progress):
        self.asked.append([sample.text for sample in samples])
        return [
            Failure("no answer", cost=1.0) if "bad" in sample.text else Verdict(len(sample.text) / 100, cost=1.0)
            for sample in samples
        ]

    def close(self):
        pass


def graded(samples, grader, root, **changes):
    config = GraderConfig(grader="judge", chunk=CHUNK, **changes)
    purse = purse_for(config, GradeCache(str(root)))
    grades = grade_samples(samples, grader, config, lambda done, total, label: None, purse)
    return grades, purse.spending


def test_the_second_time_costs_nothing_and_gives_the_same(tmp_path):
    samples = [sample(index) for index in range(12)]
    first, spent = graded(samples, judge := Judge(), tmp_path)
    assert [len(chunk) for chunk in judge.asked] == [5, 5, 2]
    assert spent.metrics() == {"cache_hits": 0.0, "cost_paid": 12.0, "cost_saved": 0.0}
    again, saved = graded(samples, judge := Judge(), tmp_path)
    assert judge.asked == []
    assert saved.metrics() == {"cache_hits": 12.0, "cost_paid": 0.0, "cost_saved": 12.0}
    assert again.drop("latency_s", "cost").equals(first.drop("latency_s", "cost"))
    assert again["cost"].sum() == 0, "what was paid for before costs nothing"
    assert len(list((tmp_path / "grade_cache").rglob("*.parquet"))) == 1


def test_what_becomes_of_an_answer_is_no_part_of_it(tmp_path):
    samples = [sample(0, "x" * 50, truncated=True)]
    first, _ = graded(samples, Judge(), tmp_path)
    again, saved = graded(
        samples, judge := Judge(), tmp_path, name="other", weight=0.1, truncated_factor=1.0, judge=True, pass_score=0.2
    )
    assert first["score"].to_list() == [0.25] and again["score"].to_list() == [0.5]
    assert judge.asked == [] and saved.cache_hits == 1


def test_failed_grades_are_never_kept(tmp_path):
    samples = [sample(0, "bad"), sample(1, "x" * 200), sample(2, "fine")]
    for _ in range(2):
        grades, spent = graded(samples, judge := Judge(), tmp_path)
        assert grades["status"].to_list() == ["failed", "failed", "ok"]
    assert judge.asked == [["bad", "x" * 200]]
    assert spent.metrics() == {"cache_hits": 1.0, "cost_paid": 2.0, "cost_saved": 1.0}


def test_a_grader_that_is_free_is_not_kept_unless_the_run_file_says_so(tmp_path):
    judge = Judge()
    judge.paid = False
    graded([sample(0)], judge, tmp_path)
    assert not (tmp_path / "grade_cache").exists()
    graded([sample(0)], judge, tmp_path, cached=True)
    assert (tmp_path / "grade_cache").exists()
    graded([sample(0)], judge := Judge(), tmp_path, cached=False)
    assert judge.asked == [["text 0"]]


def test_who_compares_a_group_sees_it_whole_or_not_at_all(tmp_path):
    group = [sample(index, prompt_id=f"p{index // 4}") for index in range(8)]
    graded(group, Judge(compares_group=True), tmp_path)
    changed = [*group[:7], sample(7, "changed", prompt_id="p1")]
    _, spent = graded(changed, judge := Judge(compares_group=True), tmp_path)
    assert judge.asked == [["text 4", "text 5", "text 6", "changed"]]
    assert spent.cache_hits == 4


def test_the_keys_name_what_a_grade_depends_on():
    one = sample(0)
    same = [sample(9, one.text), sample(0, one.text, policy_id="other")]
    assert {row_key(other) for other in same} == {row_key(one)}
    others = [
        sample(0, "other"),
        sample(0, domain="x"),
        sample(0, prompt_id="q"),
        sample(0, truncated=True),
        sample(0, tokens=7),
        sample(0, answer="a"),
        sample(0, rubric="r"),
        sample(0, params={"n": 1}),
    ]
    assert len({row_key(each) for each in [one, *others]}) == 9
    config = GraderConfig(grader="judge")
    assert grader_key(config, "1") == grader_key(GraderConfig(grader="judge", name="n", weight=2, chunk=9), "1")
    changed = [grader_key(GraderConfig(grader="judge", params={"n": 1}), "1"), grader_key(config, "2")]
    assert len({grader_key(config, "1"), grader_key(GraderConfig(grader="other"), "1"), *changed}) == 4


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(6)))
def test_the_key_of_a_group_does_not_hang_on_its_order(order):
    group = [sample(index, prompt_id=f"p{index % 2}") for index in range(6)]
    keys = dict(zip(range(6), row_keys(group, compares_group=True), strict=True))
    shuffled = row_keys([group[index] for index in order], compares_group=True)
    assert shuffled == [keys[index] for index in order]


@pytest.fixture
def two_graders(tmp_path, monkeypatch):
    """A module with two verifiers that write their calls down, and 12 committed rollouts of three prompts."""
    (tmp_path / "two_graders.py").write_text(
        "from pathlib import Path\n"
        "from tasks.grading.verdict import Verdict\n"
        "def note(name):\n"
        "    with Path(__file__).with_name(name).open('a') as log:\n        log.write('.')\n"
        "def one(text, answer, params):\n    note('one')\n    return Verdict(0.5, cost=0.5)\n"
        "def two(text, answer, params):\n    note('two')\n    return Verdict(0.25, cost=0.25)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import two_graders

    rollouts = committed(tmp_path, "rollouts", rollouts=rollout_rows([(f"p{i // 4}", f"text {i}") for i in range(12)]))
    batch = committed(tmp_path, "select", batch=batch_rows(3, samples=4))
    yield two_graders, rollouts, batch, tmp_path
    del sys.modules["two_graders"]


def test_a_new_version_of_one_grader_grades_just_that_one_again(two_graders):
    module, rollouts, batch, folder = two_graders
    specs = [GraderConfig(grader=f"two_graders:{name}", cached=True) for name in ("one", "two")]
    config = GradingConfig(graders=specs)

    def both():
        parts = [grade_shard(rollouts, batch, config, folder, index, 2) for index in range(2)]
        totals = Counter()
        for part in parts:
            totals.update(part.metrics)
        return pl.concat([part.tables["grades"] for part in parts]), totals

    def calls():
        return {name: len((folder / name).read_text()) for name in ("one", "two")}

    first, paid = both()
    assert calls() == {"one": 12, "two": 12}
    assert paid == {"cache_hits": 0, "cost_paid": 9.0, "cost_saved": 0}
    again, _ = both()
    assert calls() == {"one": 12, "two": 12}
    assert again.drop("latency_s", "cost").equals(first.drop("latency_s", "cost"))
    assert again["cost"].sum() == 0, "what was paid for before costs nothing"
    module.two.version = "2"
    newer, spent = both()
    assert calls() == {"one": 12, "two": 24}
    assert spent == {"cache_hits": 12, "cost_paid": 3.0, "cost_saved": 6.0}
    assert set(newer["grader_version"]) == {"two_graders:one/0", "two_graders:two/2"}


def test_a_killed_shard_pays_only_for_what_is_missing(tmp_path):
    texts = [("p0", f"text {index:03d}") for index in range(39)]
    committed(tmp_path, "rollouts", rollouts=rollout_rows([*texts, ("p0", "bad one")]))
    committed(tmp_path, "select", batch=batch_rows(1, samples=40))
    log = tmp_path / "graded.txt"
    env = {**os.environ, "GRADED": str(log), "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests' / 'support'}"}

    def run(output):
        return warm.fork([str(tmp_path)], env=env, folder=REPOSITORY, output=output, module="slow_verifier")

    with (tmp_path / "killed.log").open("w") as output:
        killed = run(output)
    while not log.exists() or len(log.read_text().splitlines()) < 18:
        assert killed.poll() is None
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "grades.parquet").exists()
    before = len(log.read_text().splitlines())
    again = run(subprocess.PIPE)
    printed, _ = again.communicate(timeout=120)
    assert again.returncode == 0, printed
    counted = Counter(log.read_text().splitlines())
    assert set(counted) == {text for _, text in texts} | {"bad one"}
    twice = [text for text, count in counted.items() if count > 1]
    assert before < 40
    assert len(twice) <= CHUNK and all(counted[text] == 2 for text in twice)
    grades = pl.read_parquet(tmp_path / "grades.parquet")
    assert grades["status"].to_list() == ["ok"] * 39 + ["failed"]
