"""Slow graders in their three forms, over a real folder and a real HTTP server, and what becomes of their answers."""

import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest
from graded_rollouts import batch_rows, committed, context, rollout_rows

from storage.errors import InputError, StageFailed, TransientError
from storage.records import Grade, PendingGrade, Reward
from tasks.filtering.config import FilteringConfig
from tasks.filtering.stage import filter_rollouts
from tasks.grading import stage as grading
from tasks.grading.config import BudgetConfig, GraderConfig, GradingConfig
from tasks.grading.deferred import NotTaken, answer_of, open_deferred
from tasks.grading.sample import Sample
from tasks.grading.verdict import Failure, Verdict


def sample(text, prompt_id="p0"):
    messages = [{"role": "user", "content": prompt_id}]
    return Sample("r", prompt_id, "policy", messages, text, 2, False, None, None, "", "folder", {})


class Jobs:
    """A job API that remembers what it was asked: a job is done once `scores` holds its text."""

    def __init__(self):
        self.scores, self.jobs, self.posts, self.fail_after, self.keys = {}, {}, 0, None, []

    def post(self, body, headers):
        if headers.get("Authorization") != "Bearer secret":
            return 401, {}
        self.posts += 1
        if self.fail_after is not None and self.posts > self.fail_after:
            return 503, {"busy": True}
        if body["text"] == "nonsense":
            return 200, {"no": "id"}
        self.keys.append(headers["Idempotency-Key"])
        job = f"job {len(self.jobs)}/x"
        self.jobs[job] = body["text"]
        return 200, {"id": job}

    def get(self, job):
        if job not in self.jobs:
            return 404, {"error": "unknown"}
        text = self.jobs[job]
        return (200, self.scores[text]) if text in self.scores else (200, {"status": "running"})


def test_a_job_api_whose_replies_cannot_be_read_loses_nothing():
    class Garbled(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(b"no gzip")

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Garbled) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        params = {"url": f"http://127.0.0.1:{server.server_port}/jobs"}
        grader = open_deferred(GraderConfig(grader="http_jobs", latency="slow", params=params))
        [handed] = grader.submit([sample("one")])
        assert isinstance(handed, NotTaken)
        assert "DecodingError" in handed.error
        assert grader.collect(["job"]) == {}
        server.shutdown()


@contextmanager
def serving(jobs):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*jobs.post(body, self.headers))

        def do_GET(self):
            from urllib.parse import unquote

            self.reply(*jobs.get(unquote(self.path.removeprefix("/jobs/"))))

        def reply(self, code, document):
            content = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jobs"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setenv("JOB_KEY", "secret")
    api = Jobs()
    with serving(api) as url:
        api.url = url
        yield api


def http(jobs, **changes):
    return GraderConfig(
        grader="http_jobs", latency="slow", params={"url": jobs.url, "key_env": "JOB_KEY", "at_once": 1}, **changes
    )


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        ({"score": 0.5}, Verdict(0.5)),
        (
            {"score": 1, "passed": True, "detail": {"a": 1}, "uncertainty": 0.1, "cost": 2},
            Verdict(1.0, True, {"a": 1}, 0.1, 2.0),
        ),
        ({"error": "too long", "cost": 1}, Failure("too long", cost=1.0)),
    ],
)
def test_answers_in_json(document, answer):
    assert answer_of(document) == answer


@pytest.mark.parametrize("document", [{}, [], None, {"score": "high"}, {"score": True}, "0.5"])
def test_what_is_no_answer_is_a_failure_that_shows_it(document):
    answer = answer_of(document)
    assert isinstance(answer, Failure) and answer.detail["answer"] == json.dumps(document)


def test_a_folder_takes_a_sample_once_and_gives_what_is_put_there(tmp_path):
    config = GraderConfig(grader="folder", latency="slow", params={"folder": str(tmp_path / "asked")})
    grader = open_deferred(config)
    tickets = grader.submit([sample("one"), sample("two"), sample("three")])
    assert grader.submit([sample("one")]) == tickets[:1]
    written = sorted(path.name for path in (tmp_path / "asked" / "requests").iterdir())
    assert written == sorted(f"{ticket}.json" for ticket in tickets)
    assert json.loads((tmp_path / "asked" / "requests" / written[0]).read_text())["messages"][0]["content"] == "p0"
    assert grader.collect(tickets) == {}
    answers = tmp_path / "asked" / "answers"
    (answers / f"{tickets[0]}.json").write_text('{"score": 0.75}')
    (answers / f"{tickets[1]}.json").write_text('{"score": 0.7')
    assert grader.collect(tickets) == {tickets[0]: Verdict(0.75)}
    (answers / f"{tickets[1]}.json").write_text('{"error": "illegible"}')
    assert grader.collect(tickets)[tickets[1]] == Failure("illegible")


def test_a_job_api_over_http(jobs):
    grader = open_deferred(http(jobs))
    tickets = grader.submit([sample("one"), sample("two"), sample("nonsense")])
    assert tickets[:2] == ["job 0/x", "job 1/x"] and "gave no id" in tickets[2].error
    assert len(set(jobs.keys)) == 2
    assert grader.collect(tickets[:2]) == {}
    jobs.scores = {"two": {"score": 0.25, "cost": 0.5}}
    assert grader.collect(tickets[:2]) == {"job 1/x": Verdict(0.25, cost=0.5)}
    assert "knows no job" in grader.collect(["nobody"])["nobody"].error
    jobs.fail_after = 0
    assert isinstance(grader.submit([sample("three")])[0], NotTaken)


def test_a_job_api_that_is_away_loses_nothing(jobs, monkeypatch):
    away = GraderConfig(grader="http_jobs", latency="slow", params={"url": "http://127.0.0.1:9/jobs"})
    grader = open_deferred(away)
    assert isinstance(grader.submit([sample("one")])[0], NotTaken)
    assert grader.collect(["job"]) == {}
    monkeypatch.setenv("JOB_KEY", "wrong")
    with pytest.raises(InputError, match="refuses access"):
        open_deferred(http(jobs)).submit([sample("one")])
    monkeypatch.delenv("JOB_KEY")
    with pytest.raises(InputError, match="JOB_KEY"):
        open_deferred(http(jobs))


@pytest.fixture
def one_of_my_own(tmp_path, monkeypatch):
    (tmp_path / "cluster.py").write_text(
        "class Cluster:\n"
        "    version = '7'\n"
        "    asked, answers = [], {}\n"
        "    def __init__(self, queue='short'):\n        self.queue = queue\n"
        "    def submit(self, samples):\n"
        "        Cluster.asked += [sample.text for sample in samples]\n"
        "        return [f'{self.queue}:{sample.text}' for sample in samples]\n"
        "    def collect(self, tickets):\n"
        "        return {t: Cluster.answers[t] for t in tickets if t in Cluster.answers}\n"
        "class Half:\n    def submit(self, samples):\n        return []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import cluster

    yield cluster.Cluster
    del sys.modules["cluster"]


OWN = GraderConfig(grader="cluster:Cluster", name="slow", latency="slow", chunk=4)


def test_slow_graders_that_cannot_be_made_are_named(one_of_my_own):
    assert open_deferred(OWN).queue == "short"
    for grader, params, message in [
        ("cluster:Nobody", {}, "can't be imported"),
        ("cluster:Cluster", {"lane": 1}, "can't be made with params"),
        ("cluster:Half", {}, "no method collect"),
        ("folder", {}, "params.folder is None"),
        ("http_jobs", {"url": "ftp://x"}, "expected an address"),
        ("http_jobs", {"speed": 1}, "unknown params"),
    ]:
        with pytest.raises(InputError, match=message):
            open_deferred(GraderConfig(grader=grader, latency="slow", params=params))


class Iterations:
    """The stages of a few iterations, without Prefect: two prompts of three rollouts in each."""

    def __init__(self, folder, spec, **changes):
        self.folder, self.made = folder, {}
        self.config = GradingConfig(graders=[GraderConfig(weight=0.5), spec], **changes)

    def ask(self, iteration, texts=None, before=None, fresh=None):
        prefix = fresh or f"i{iteration}r"
        texts = texts or [(f"p{index // 3}", f"text {iteration} {index}") for index in range(6)]
        root, name = str(self.folder / "root"), f"{iteration}x{len(self.made)}"
        rollouts = committed(
            self.folder, "rollouts", name, root, rollouts=rollout_rows(texts, iteration=iteration, prefix=prefix)
        )
        ids = [f"{prefix}{index}" for index in range(len(texts))]
        rewards = pl.DataFrame(
            {
                "rollout_id": ids,
                "reward": [float(index % 2) if prompt == "p0" else 1.0 for index, (prompt, _) in enumerate(texts)],
                "components": [[]] * len(ids),
                "complete": True,
                "passed": None,
            },
            schema=Reward.create_empty().schema,
        )
        grades = pl.DataFrame(
            [(each, "verifier", "v/1", "ok", 0.5, None, None, "{}", 0.0, 0.0, "policy") for each in ids],
            schema=Grade.create_empty().schema,
            orient="row",
        )
        instant = committed(self.folder, "grading", name, root, rewards=rewards, grades=grades)
        batch = committed(self.folder, "select", name, root, batch=batch_rows(2, samples=3))
        arguments = dict(rollouts=rollouts, batch=batch, grading=instant, pending=before)
        outputs = grading.ask_slow.function(
            **arguments, config=self.config.asking(iteration), seed=3, context=context(self.folder, iteration)
        )
        asked = committed(self.folder, "slow_grading", name, root, **outputs.tables)
        self.made[iteration] = (rollouts, batch, instant, asked)
        return outputs, asked

    def settle(self, iteration, late=()):
        rollouts, batch, instant, asked = self.made[iteration]
        return grading.settle.function(
            rollouts=rollouts, batch=batch, grading=instant, asked=asked, late=list(late), config=self.config
        )


def statuses(frame):
    return frame.sort("rollout_id")["status"].to_list()


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
