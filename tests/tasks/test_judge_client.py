"""Judging over HTTP, against a real server with scripted answers: what is asked, retried, bounded, counted, kept."""

import json
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_server import Asked, Raw, completion, judge_server
from judged import graded, grader_config, sample
from pydantic import ValidationError

from flows.config import parse_config
from storage.errors import InputError
from storage.fingerprints import hashed_part
from tasks.grading.config import GraderConfig
from tasks.grading.graders import open_grader
from tasks.grading.judges.pace import Pace
from tasks.grading.verdict import Failure, Verdict


def both_met(asked: Asked) -> str:
    return asked.verdict(criteria=[{"number": 1, "met": True}, {"number": 2, "met": True}])


def only_first_met(asked: Asked) -> str:
    return asked.verdict(criteria=[{"number": 1, "met": True}, {"number": 2, "met": False}])


def texts(count: int) -> list:
    return [sample(f"answer {number}", rollout_id=f"r{number}") for number in range(count)]


def test_a_rubric_is_judged_and_paid_for():
    with judge_server(only_first_met) as server:
        prices = {"prompt_price": 2.0, "completion_price": 10.0}
        [answer] = graded(grader_config("rubric", server.url, endpoint=prices), [sample("The sea.")])
    assert isinstance(answer, Verdict)
    assert answer.score == pytest.approx(1 / 1.3)
    assert answer.cost == pytest.approx((100 * 2 + 10 * 10) / 1e6)
    assert answer.detail == {"met": [True, False], "prompt_tokens": 100, "completion_tokens": 10}
    [asked] = server.asked
    assert asked.body["model"] == "judge-1" and asked.body["temperature"] == 0.0 and asked.body["max_tokens"] == 1024
    assert "1. names the sea" in asked.system and "2. is short" in asked.system
    assert asked.parts == {"prompt": "user:\nWrite about the sea.", "answer": "The sea."}
    assert "Authorization" not in asked.headers


def test_an_implicit_rubric_and_a_reference_are_scales():
    with judge_server(lambda asked: asked.verdict(why="so", score=4)) as server:
        [implicit] = graded(grader_config("rubric", server.url, rubric="implicit"), [sample("The sea.")])
        [reference] = graded(grader_config("reference_judge", server.url), [sample("The sea.")])
        [unanswered] = graded(grader_config("reference_judge", server.url), [sample("The sea.", answer=None)])
    assert implicit.score == pytest.approx(3 / 9) and implicit.detail["said"] == 4 and implicit.detail["why"] == "so"
    assert reference.score == pytest.approx(3 / 4)
    assert "(weight 0.3)" in server.asked[0].system
    assert server.asked[1].parts["reference"] == "The sea is wide."
    assert isinstance(unanswered, Failure) and "the prompt has none" in unanswered.error and len(server.asked) == 2


@pytest.mark.parametrize(
    ("response_format", "sent"),
    [
        ("text", {}),
        ("json_object", {"response_format": {"type": "json_object"}}),
        ("json_schema", {"response_format": {"type": "json_schema"}}),
        ("structured_outputs", {"structured_outputs": {}}),
    ],
)
def test_the_form_is_forced_where_the_endpoint_can(response_format, sent):
    options = {"response_format": response_format, "extra_body": {"top_p": 1}, "token_limit": "max_completion_tokens"}
    with judge_server(both_met) as server:
        graded(grader_config("rubric", server.url, endpoint=options, temperature=None), [sample("x")])
    [asked] = server.asked
    assert asked.body["top_p"] == 1 and asked.body["max_completion_tokens"] == 1024
    assert "temperature" not in asked.body and "max_tokens" not in asked.body
    found = {name: asked.body[name] for name in ("response_format", "structured_outputs") if name in asked.body}
    schemas = [form.pop("json_schema", {}).get("schema") or form.pop("json", None) for form in found.values()]
    assert found == sent
    if response_format in ("json_schema", "structured_outputs"):
        assert schemas[0]["required"] == ["id", "criteria"] and asked.code not in json.dumps(schemas)


FAULTS = {
    "busy": Raw(429, "slow down", {"Retry-After": "0.05"}),
    "broken": Raw(500, "oops"),
    "unavailable": Raw(503),
    "slow": Raw(body=completion("late"), delay_s=2.0),
    "cut off": Raw(body=completion("x" * 500), cut=True),
    "no JSON": Raw(body="<html>gateway</html>"),
    "no completion": Raw(body='{"choices": []}'),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_is_tried_again(fault):
    with judge_server(lambda asked: fault if asked.attempt < 2 else both_met(asked)) as server:
        [answer] = graded(grader_config("rubric", server.url, endpoint={"timeout_s": 0.5}), [sample("x")])
    assert isinstance(answer, Verdict) and answer.score == 1.0
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_stays_fails_its_row_and_no_other(fault):
    def script(asked):
        return fault if "bad" in asked.parts["answer"] else both_met(asked)

    samples = [*texts(5), sample("bad", rollout_id="bad"), *texts(5)]
    options = {"retries": 1, "timeout_s": 0.5, "concurrency": 2}
    with judge_server(script) as server:
        answers = graded(grader_config("rubric", server.url, endpoint=options), samples)
    failed = [place for place, answer in enumerate(answers) if isinstance(answer, Failure)]
    assert failed == [5] and "after 2 tries" in answers[5].error
    assert [answer.score for answer in answers if isinstance(answer, Verdict)] == [1.0] * 10


def test_a_request_that_the_endpoint_refuses_is_not_repeated():
    def script(asked):
        return Raw(400, "too long for me") if "long" in asked.parts["answer"] else both_met(asked)

    with judge_server(script) as server:
        answers = graded(grader_config("rubric", server.url), [sample("long"), *texts(1)])
    assert "status 400: too long for me" in answers[0].error and isinstance(answers[1], Verdict)
    assert len(server.asked) == 2


def test_what_cannot_be_parsed_is_a_failure_with_its_text_and_price():
    def script(asked):
        said = {"a": "I would say it is fine.", "b": '{"id": "feed"'}[asked.parts["answer"]]
        return Raw(body=completion(said, "length" if asked.parts["answer"] == "b" else "stop"))

    with judge_server(script) as server:
        config = grader_config("rubric", server.url, endpoint={"prompt_price": 1.0})
        prose, cut = graded(config, [sample("a"), sample("b")])
    assert isinstance(prose, Failure) and prose.error.startswith("unparsable verdict")
    assert prose.detail["judge_said"] == "I would say it is fine." and prose.cost == pytest.approx(1e-4)
    assert cut.error.endswith("max_tokens cut the answer") and cut.detail["judge_said"] == '{"id": "feed"'


def test_a_judge_that_says_nothing_and_one_that_nobody_counts():
    replies = {"refused": completion(None), "uncounted": None}

    def script(asked):
        body = replies[asked.parts["answer"]]
        return Raw(body=body or completion(both_met(asked), usage=None))

    with judge_server(script) as server:
        config = grader_config("rubric", server.url, endpoint={"prompt_price": 1.0})
        refused, uncounted = graded(config, [sample("refused"), sample("uncounted")])
    assert "gave no text" in refused.error
    assert uncounted.score == 1.0 and uncounted.cost == 0.0 and "prompt_tokens" not in uncounted.detail


def test_requests_in_flight_are_bounded_over_all_graders_of_an_endpoint():
    def script(asked):
        return Raw(body=completion(both_met(asked)), delay_s=0.05)

    with judge_server(script) as server:
        config = grader_config("rubric", server.url, endpoint={"concurrency": 3})
        threads = [threading.Thread(target=graded, args=(config, texts(12))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.most_in_flight == 3 and len(server.asked) == 24


@given(
    amounts=st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 50)), min_size=1, max_size=40), limit=st.floats(10, 600)
)
def test_no_minute_holds_more_than_the_limit_and_one_start(amounts, limit):
    """Starts at (time since the one before, amount), each waiting as it is told."""
    pace, now, starts = Pace(limit), 0.0, []
    for gap, amount in amounts:
        now += gap
        starts.append((now + pace.reserve(amount, now), amount))
    assert [at for at, _ in starts] == sorted(at for at, _ in starts)
    for at, _ in starts:
        within = [amount for other, amount in starts if at <= other < at + 60 - 1e-6]
        assert sum(within) <= limit + max(within) + 1e-6


def test_a_pause_and_a_correction_move_the_next_start():
    pace = Pace(60)
    assert [pace.reserve(1, 0.0), pace.reserve(1, 0.0)] == [0.0, 1.0]
    pace.correct(3)
    assert pace.reserve(1, 0.0) == 5.0
    pace.pause(100.0)
    assert pace.reserve(1, 90.0) == 10.0
    free = Pace(None)
    assert [free.reserve(1e6, 5.0), free.reserve(1, 5.0)] == [0.0, 0.0]
    free.pause(7.0)
    assert free.reserve(1, 5.0) == 2.0


def test_rates_are_kept_on_the_way_to_the_server():
    """Lower bounds only: a sleep never ends early. 600 a minute are 0.1 s apart; so are 400 tokens of 240,000."""
    with judge_server(both_met) as server:
        for limit in ({"requests_per_minute": 600}, {"tokens_per_minute": 66_000}):
            started = time.monotonic()
            graded(grader_config("rubric", server.url, endpoint=limit), texts(6))
            assert time.monotonic() - started >= 0.45


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(as_date):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)

    def script(asked):
        return Raw(429, "", {"Retry-After": later if as_date else "0.7"}) if asked.attempt == 0 else both_met(asked)

    started = time.monotonic()
    with judge_server(script) as server:
        [answer] = graded(grader_config("rubric", server.url), [sample("x")])
    assert answer.score == 1.0
    assert time.monotonic() - started >= (0.3 if as_date else 0.7)


def test_an_endpoint_that_only_fails_is_left_alone_after_a_while():
    with judge_server(lambda asked: Raw(500)) as server:
        options = {"retries": 0, "concurrency": 4}
        answers = graded(grader_config("rubric", server.url, endpoint=options), texts(60))
    assert all(isinstance(answer, Failure) for answer in answers)
    assert 20 <= len(server.asked) <= 24 and "not asked any more" in answers[-1].error


SECRET = "sk-very-secret-4711"


def test_the_key_goes_to_the_endpoint_and_nowhere_else(monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    refusals = {"fine": None, "echo": Raw(400, f"key {SECRET} has no access"), "busy": Raw(500, f"oops {SECRET}")}

    def script(asked):
        return refusals[asked.parts["answer"]] or both_met(asked)

    with judge_server(script) as server:
        options = {"key_variable": "JUDGE_KEY", "retries": 0, "concurrency": 1}
        config = grader_config("rubric", server.url, endpoint=options)
        answers = graded(config, [sample("fine"), sample("echo"), sample("busy")])
        version = open_grader(config)
        version.close()
    assert server.asked[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert "***" in answers[1].error and "***" in answers[2].error
    shown = [repr(answers), config.model_dump_json(), json.dumps(hashed_part(config)), version.version_of(sample("x"))]
    assert not any(SECRET in text for text in [*shown, caplog.text])
    assert "JUDGE_KEY" in config.model_dump_json() and "JUDGE_KEY" not in json.dumps(hashed_part(config))


def test_a_wrong_key_or_address_stops_the_stage_and_names_what_to_check(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with judge_server(lambda asked: Raw(401, f"incorrect key {SECRET}")) as server:
        config = grader_config("rubric", server.url, endpoint={"key_variable": "JUDGE_KEY"})
        with pytest.raises(InputError, match=r"status 401: incorrect key \*\*\*; check .*key_variable") as caught:
            graded(config, texts(30))
    assert SECRET not in str(caught.value)
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(InputError, match="environment variable JUDGE_KEY is not set"):
        open_grader(config)
    monkeypatch.setenv("JUDGE_KEY", "schlüssel")
    with pytest.raises(InputError, match="JUDGE_KEY holds characters") as caught:
        open_grader(config)
    assert "schlüssel" not in str(caught.value)


@given(order=st.permutations(range(6)))
@settings(deadline=None, max_examples=10)
def test_the_order_of_samples_does_not_matter(order, judged_by_length):
    samples = texts(6)
    answers = graded(judged_by_length, [samples[place] for place in order])
    expected = dict(zip([one.rollout_id for one in samples], graded(judged_by_length, samples), strict=True))
    assert {samples[place].rollout_id: answer for place, answer in zip(order, answers, strict=True)} == expected


@pytest.fixture(scope="module")
def judged_by_length():
    with judge_server(lambda asked: asked.verdict(why="", score=1 + int(asked.parts["answer"][-1]))) as server:
        yield grader_config("rubric", server.url, rubric="implicit")


def test_only_what_decides_a_verdict_is_hashed():
    def hashed(url="http://a/v1", endpoint=None, **judging):
        return hashed_part(grader_config("rubric", url, endpoint=endpoint, **judging))

    base = hashed()
    aside = {"concurrency": 2, "requests_per_minute": 5, "tokens_per_minute": 9, "retries": 1, "timeout_s": 3}
    assert hashed(endpoint={**aside, "key_variable": "K", "prompt_price": 3.0}) == base
    assert hashed(url="http://b/v1") == base
    for change in ({"endpoint": {"model": "judge-2"}}, {"temperature": 0.5}, {"points": 7}, {"instructions": "strict"}):
        assert hashed(**change) != base


ENDPOINT = {"base_url": "http://localhost:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"grader": "rubric"}, "needs judging"),
        ({"grader": "rubric", "judging": {}}, "exactly one of endpoint"),
        ({"grader": "rubric", "judging": {"endpoint": ENDPOINT, "local": {"model": "m"}}}, "exactly one of endpoint"),
        ({"grader": "rubric", "judging": {"endpoint": {"base_url": "http://a"}}}, "model\n  Field required"),
        ({"grader": "rubric", "judging": {"endpoint": ENDPOINT}, "params": {"a": 1}}, "takes no params"),
        ({"grader": "verifier", "judging": {"endpoint": ENDPOINT}}, "judging is for the graders"),
        ({"grader": "pairwise", "judging": {"endpoint": ENDPOINT}}, "set from_iteration to 1"),
        ({"grader": "rubric", "judging": {"local": {"model": "champion"}}}, "the champion changes"),
        ({"grader": "rubric", "judge": True, "judging": {"endpoint": ENDPOINT}}, "give the judge a pass_score"),
        ({"grader": "rubric", "judging": {"endpoint": {**ENDPOINT, "base_url": "localhost:1"}}}, "expected http://"),
        (
            {"grader": "rubric", "judging": {"endpoint": ENDPOINT, "criteria": [{"criterion": "x", "level": "vital"}]}},
            "level 'vital' is unknown; expected essential, important, optional, pitfall",
        ),
        (
            {"grader": "rubric", "judging": {"endpoint": ENDPOINT, "criteria": [{"criterion": "x", "weight": -1}]}},
            "no criterion has a positive weight",
        ),
    ],
)
def test_what_is_missing_is_named_when_the_run_file_is_read(spec, message):
    with pytest.raises(ValidationError, match=message):
        GraderConfig(**spec)


def test_an_address_with_a_secret_in_it_is_refused():
    for address in (f"https://user:{SECRET}@host/v1", f"https://host/v1?key={SECRET}"):
        judging = {"endpoint": {"base_url": address, "model": "m"}}
        document = {"campaign": "c", "model": {"path": "m"}, "curate": {"sources": [{"generator": "haiku"}]}}
        with pytest.raises(InputError, match="key_variable instead") as caught:
            parse_config(document | {"grading": {"graders": [{"grader": "rubric", "judging": judging}]}}, "run.yaml")
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        ({"grader": f"http://user:{SECRET}@host/grade", "name": "mine"}, "params.headers instead"),
        ({"grader": f"http://host/grade?key={SECRET}", "name": "mine"}, "params.headers instead"),
        ({"grader": f"http://host/grade#{SECRET}", "name": "mine"}, "params.headers instead"),
        ({"grader": "http://host/grade"}, "needs a name"),
        ({"grader": "http:///grade", "name": "mine"}, "expected http://"),
        *[({"name": name}, "can't be a metric's") for name in ("http://x", "a?b", "/a", "a/", "a=b", "../a", "é")],
        (
            {"grader": "http_jobs", "latency": "slow", "params": {"url": f"https://host/jobs?key={SECRET}"}},
            "params.key_env instead",
        ),
        (
            {"grader": "http_jobs", "latency": "slow", "params": {"url": f"https://{SECRET}@host/jobs"}},
            "params.key_env instead",
        ),
    ],
)
def test_addresses_of_graders_hold_no_secret_and_names_are_metrics(grader, message):
    document = {"campaign": "c", "model": {"path": "m"}, "curate": {"sources": [{"generator": "haiku"}]}}
    graders = [{"grader": "haiku"}, grader]
    with pytest.raises(InputError, match=message) as caught:
        parse_config(document | {"grading": {"graders": graders}}, "run.yaml")
    assert SECRET not in str(caught.value)
