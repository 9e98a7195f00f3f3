"""Graders of one's own by every form: functions, async functions, classes, a real endpoint, real commands."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from samples import MESSAGES, answers_of, sample

from storage.errors import InputError
from tasks.grading.config import GraderConfig
from tasks.grading.graders import open_grader, version_of_grader
from tasks.grading.own.batches import from_json
from tasks.grading.verdict import Failure, Verdict

TEXTS = ["one", "three", "loop", "exit", "raise", "five5"]


def errors(answers):
    return [answer.error if isinstance(answer, Failure) else None for answer in answers]


def test_parameters_are_filled_by_name():
    (answer,) = answers_of("hostile_graders:named", ["x"])
    expected = dict(prompt="What is 6 x 7?", answer="42", messages=MESSAGES, domain="maths", rubric=None)
    assert answer == Verdict(1.0, detail=expected)
    assert answers_of("hostile_graders:with_params", ["x"], params={"score": 0.25}) == [Verdict(0.25)]


@pytest.mark.parametrize(
    ("grader", "params", "message"),
    [
        (
            "hostile_graders:unnamed",
            {},
            r"has the parameters \(a, b\), expected \(prompt, completion, .* or \(text, answ",
        ),
        ("hostile_graders:unfilled", {}, "nothing fills 'mood', give it a default"),
        ("hostile_graders:act", {"score": 1}, "takes no params"),
        ("hostile_graders:CASES", {}, "has no attribute 'CASES'"),
        ("hostile_graders:ACTS", {}, "is a dict; name a function or a class"),
        ("hostile_graders:NoBatches", {}, "without a method grade_batch"),
        ("hostile_graders:Batches", {"lag": "x"}, "don't fit its constructor: missing a required argument: 'log'"),
        ("hostile_graders:Unmakeable", {}, "OSError: no weights here"),
        ("hostile_graders:Deadly", {}, "doesn't start: the grader ended its worker process .exit code 5"),
        ("no_such_module_here:f", {}, "can't be imported"),
        ("nope", {}, "no verifier 'nope'"),
        ("http://host/", {"headers": {"Authorization": "NOT_SET_ANYWHERE"}}, "environment variables that aren't set"),
        ("command", {}, "params.run is None, expected a list"),
        ("command", {"run": ["./no-such-program"]}, "'./no-such-program' is no program here"),
    ],
)
def test_what_cannot_grade_is_refused(grader, params, message):
    with pytest.raises(InputError, match=message) as raised:
        answers_of(grader, ["x"], params=params)
    assert "secret" not in str(raised.value)


def test_an_async_function_is_bounded_in_number():
    answers = answers_of("hostile_graders:how_many_at_once", ["x"] * 40, concurrency=8)
    assert max(answer.score for answer in answers) == 8


def test_what_async_functions_do_wrong_fails_their_own_rows():
    texts = [*TEXTS, "sleep", "sysexit", "none", "true"] + ["abcd"] * 20
    answers = answers_of("hostile_graders:act_async", texts, timeout_s=1.0, concurrency=6)
    found = dict(zip(texts, errors(answers), strict=True))
    assert found["loop"] == "TimeoutError: no answer within 1 s; its worker was ended"
    assert found["exit"] == "the grader ended its worker process (exit code 3)"
    assert found["raise"] == "KeyError: 'no such word'"
    assert found["sleep"] == "TimeoutError: no answer within 1 s; it was cancelled"
    assert found["none"].startswith("TypeError: it returned NoneType")
    assert [found[text] for text in ("one", "three", "five5", "true", "abcd")] == [None] * 5
    assert (
        errors(answers_of("hostile_graders:stubborn", ["x", "y"], timeout_s=0.3))
        == [found["sleep"].replace("1", "0.3")] * 2
    )
    with pytest.raises(InputError, match="the parameter is wrong"):
        answers_of("hostile_graders:act_async", ["one", "refuse"])


def test_a_class_is_made_once_and_called_in_batches(tmp_path):
    log = tmp_path / "log"
    params = {"log": str(log), "bonus": 0.5}
    answers = answers_of("hostile_graders:Batches", ["xx"] * 10, batch_size=4, params=params)
    assert answers == [Verdict(0.52)] * 10
    assert log.read_text().split() == ["made", "4", "4", "2"]
    assert answers_of("hostile_graders:AsyncBatches", ["a", "b"]) == [Verdict(1.0, True)] * 2


def test_a_batch_that_fails_is_tried_one_by_one(tmp_path):
    params = {"log": str(tmp_path / "log")}
    answers = answers_of("hostile_graders:Batches", [*TEXTS, "few"], timeout_s=0.3, batch_size=3, params=params)
    assert errors(answers) == [
        None,
        None,
        "TimeoutError: no answer within 0.3 s; its worker was ended",
        "the grader ended its worker process (exit code 3)",
        "KeyError: 'no such word'",
        None,
        "ValueError: grade_batch gave 0 scores to 1 samples",
    ]


def test_versions():
    for grader, version, params in [
        ("hostile_graders:act", "0", {}),
        ("hostile_graders:Batches", "7", {"log": "x"}),
        ("http://127.0.0.1:1/x", "5", {"version": 5}),
        ("command", "2", {"version": 2, "run": ["sh"]}),
        ("number", "1", {}),
    ]:
        spec = GraderConfig(grader=grader, name="graded", params=params)
        opened = open_grader(spec)
        assert version_of_grader(spec) == version
        assert opened.version_of(sample("x", verifier=grader)).endswith(f"/{version}")
        opened.close()


class Endpoint:
    """A real server that answers by a function of (samples, requests so far): status, body, headers."""

    def __init__(self, respond):
        self.requests, self.headers = [], []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["samples"]
                with lock:
                    outer.requests.append(asked)
                    outer.headers.append(dict(self.headers))
                    count = len(outer.requests)
                status, body, headers = respond(asked, count)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/grade"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def lengths(asked, count=0):
    return 200, {"scores": [len(each["completion"]) / 100 for each in asked]}, {}


def test_an_endpoint_gets_samples_and_answers_scores(monkeypatch):
    monkeypatch.setenv("OWN_GRADER_KEY", "Bearer abc")
    params = {"headers": {"Authorization": "OWN_GRADER_KEY"}, "strict": True, "version": 3}
    with Endpoint(lengths) as endpoint:
        answers = answers_of(endpoint.address, ["x" * n for n in range(10)], batch_size=4, params=params)
    assert answers == [Verdict(n / 100) for n in range(10)]
    assert sorted(len(asked) for asked in endpoint.requests) == [2, 4, 4]
    sent = next(each for asked in endpoint.requests for each in asked if each["completion"] == "x")
    assert sent == {
        "prompt": "What is 6 x 7?",
        "completion": "x",
        "answer": "42",
        "messages": MESSAGES,
        "domain": "maths",
        "rubric": None,
        "params": {"strict": True},
    }
    assert endpoint.headers[0]["Authorization"] == "Bearer abc"


def test_one_answer_per_request_and_all_that_it_may_say():
    full = {"score": True, "detail": {"a": 1}, "why": "b", "cost": 0.2, "uncertainty": 0.1}
    said = {"a": 0.5, "b": full, "c": {"error": "no idea", "cost": 0.1}, "d": "good", "e": None, "f": {"score": "1"}}
    with Endpoint(lambda asked, count: (200, said[asked[0]["completion"]], {})) as endpoint:
        answers = answers_of(endpoint.address, list(said), batch_size=1)
    assert answers[0] == Verdict(0.5)
    assert answers[1] == Verdict(1.0, True, {"a": 1, "why": "b"}, 0.1, 0.2)
    assert answers[2] == Failure("no idea", {}, 0.1)
    assert all(isinstance(answer, Failure) and "ValueError" in answer.error for answer in answers[3:])


def test_a_busy_endpoint_is_asked_again():
    def respond(asked, count):
        return lengths(asked) if count > 3 else (429 if count < 3 else 503, b"later", {"Retry-After": "0"})

    with Endpoint(respond) as endpoint:
        assert answers_of(endpoint.address, ["xy"]) == [Verdict(0.02)]
        assert len(endpoint.requests) == 4
    with Endpoint(lambda asked, count: (503, b"down", {"Retry-After": "0"})) as endpoint:
        assert errors(answers_of(endpoint.address, ["x", "y"], retries=2)) == ["HTTP 503: down"] * 2
        assert len(endpoint.requests) == 3


def test_what_an_endpoint_does_wrong_fails_the_rows_that_it_happens_to():
    def respond(asked, count):
        words = [each["completion"] for each in asked]
        if "slow" in words:
            time.sleep(len(words) * 0.5 + 1)
        if "bad" in words:
            return 422, b"bad sample", {}
        if "short" in words:
            return 200, {"scores": []}, {}
        return (200, b"<html>", {}) if "html" in words else lengths(asked)

    texts = ["fine", "slow", "bad", "short", "html", "good"]
    with Endpoint(respond) as endpoint:
        answers = answers_of(endpoint.address, texts, batch_size=3, timeout_s=0.5)
    assert errors(answers) == [
        None,
        "TimeoutError: no answer within 0.5 s",
        "HTTP 422: bad sample",
        "the endpoint answered 0 scores, expected a list `scores` of 1",
        "the answer is no JSON: <html>",
        None,
    ]


def test_an_endpoint_that_refuses_stops_the_grading_and_one_that_is_away_fails_the_rows():
    refused = pytest.raises(InputError, match=r"answers HTTP 401: who are you; check the address and params\.headers")
    with Endpoint(lambda asked, count: (401, b"who are you", {})) as endpoint, refused:
        answers_of(endpoint.address, ["x"])
    with Endpoint(lambda asked, count: (200, b"no gzip", {"Content-Encoding": "gzip"})) as garbled:
        assert "DecodingError" in errors(answers_of(garbled.address, ["x"], retries=0))[0]
    gone = answers_of(endpoint.address, ["x"] * 100, batch_size=1, retries=1)
    assert all("ConnectError" in answer.error for answer in gone)


def test_requests_to_an_endpoint_run_at_once_up_to_the_bound():
    running, most, lock = [0], [0], threading.Lock()

    def respond(asked, count):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.1)
        with lock:
            running[0] -= 1
        return lengths(asked)

    with Endpoint(respond) as endpoint:
        answers_of(endpoint.address, ["x"] * 30, batch_size=1, concurrency=5)
    assert most[0] == 5


COMMAND = """#!/usr/bin/env python3
import json, sys, time
samples = [json.loads(line) for line in sys.stdin]
for each in samples:
    word = each["completion"]
    if word == "sleep": time.sleep(1000)
    if word == "exit": sys.exit("no such luck")
    if word == "missing": continue
    if word == "surplus": print(0)
    if word == "flood":
        while True: print("x" * 100000)
    said = {"score": len(word) / 100, "args": sys.argv[1:], "p": each["params"]}
    print("what" if word == "words" else json.dumps(said))
"""


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "grade it.py"
    path.write_text(COMMAND)
    path.chmod(0o755)
    return [str(path), "$(touch no-shell)", "; exit 1"]


def test_a_command_answers_line_by_line_and_no_shell_reads_its_arguments(command):
    answers = answers_of("command", ["x", "yy", "zzz"], batch_size=2, params={"run": command, "depth": 2})
    detail = {"args": command[1:], "p": {"depth": 2}}
    assert answers == [Verdict(n / 100, detail=detail) for n in (1, 2, 3)]


def test_what_a_command_does_wrong_fails_its_own_rows(command):
    texts = ["fine", "exit", "missing", "surplus", "sleep", "words", "flood", "good"]
    found = errors(answers_of("command", texts, batch_size=4, timeout_s=2.0, params={"run": command}))
    assert found[0] is None and found[7] is None
    assert found[1] == "command: exit code 1; standard error ends: 'no such luck\\n'"
    assert found[2].startswith("command: it gave 0 lines to 1 samples")
    assert found[3].startswith("command: it gave 2 lines to 1 samples")
    assert found[4].startswith("command: TimeoutError: no answer within 2 s")
    assert found[5].startswith("ValueError: it answered 'what'")
    assert "wrote more than 64 MiB" in found[6] or "TimeoutError" in found[6]


def test_json_that_is_no_answer_is_a_failure():
    for value in (
        [1],
        "1",
        None,
        {},
        {"score": None},
        {"score": [1]},
        {"score": 1, "cost": "dear"},
        {"score": 1, "detail": 3},
    ):
        assert isinstance(from_json(value), Failure), value
