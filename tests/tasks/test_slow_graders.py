"""Slow graders in their three forms, over a real folder and a real HTTP server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from slow_iterations import OWN, own_cluster
from slow_jobs import Jobs, http, serving

from storage.errors import InputError
from tasks.grading.config import GraderConfig
from tasks.grading.deferred import NotTaken, answer_of, open_deferred
from tasks.grading.sample import Sample
from tasks.grading.verdict import Failure, Verdict


def sample(text, prompt_id="p0"):
    messages = [{"role": "user", "content": prompt_id}]
    return Sample("r", prompt_id, "policy", messages, text, 2, False, None, None, "", "folder", {})


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


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setenv("JOB_KEY", "secret")
    api = Jobs()
    with serving(api) as url:
        api.url = url
        yield api


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
    with own_cluster(tmp_path, monkeypatch) as cluster:
        yield cluster


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
