"""Worker processes under graders that hang, crash and exit: each fails its own row and no other."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import REPOSITORY
from samples import answers_of

from storage.errors import InputError
from tasks.grading.pool import WorkerPool, last_words, shared_pool
from tasks.grading.verdict import Failure, Verdict
from tasks.grading.workers import LOST_AT_MOST, MOST_ROWS, Job, grade_in_workers

ACT = "hostile_graders:act"
JOB = Job("tasks.grading.own.calls:verifiers")
LATE = "TimeoutError: no answer within 0.5 s; its worker was ended"
CASES = {
    "loop": LATE,
    "regex": LATE,
    "sleep": LATE,
    "exit": "the grader ended its worker process (exit code 3)",
    "segfault": "the grader ended its worker process (signal 11, Segmentation fault)",
    "memory": "MemoryError: ",
    "sysexit": "SystemExit: 4",
    "recursion": "RecursionError: maximum recursion depth exceeded",
    "raise": "KeyError: 'no such word'",
    "none": "TypeError: it returned NoneType 'None', expected a number or a Verdict",
    "text": "TypeError: it returned str '0.5', expected a number or a Verdict",
    "unstorable": "TypeError: Object of type set is not JSON serializable",
}


def test_what_a_grader_does_wrong_fails_its_own_row_only():
    texts = [text for name in CASES for text in (name, f"fine {name}")]
    answers = answers_of(ACT, texts, timeout_s=0.5)
    for text, answer in zip(texts, answers, strict=True):
        if text in CASES:
            assert isinstance(answer, Failure) and answer.error.startswith(CASES[text]), (text, answer)
        else:
            assert answer == Verdict(len(text) / 100), text


def test_what_functions_may_return():
    true, verdict, failure, number = answers_of(ACT, ["true", "verdict", "failure", "x"])
    assert true == Verdict(1.0, True)
    assert verdict == Verdict(1.0, True, {"why": "good"}, 0.25, 0.01)
    assert failure == Failure("not for me", {"kept": "text"}, 0.5)
    assert number == Verdict(0.01)


def test_a_stuck_workers_own_children_end_with_it():
    answers = answers_of(ACT, ["child"], timeout_s=0.5)
    assert isinstance(answers[0], Failure)
    named = [p.cmdline() for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE and p.name() == "sleep"]
    assert ["sleep", "1000"] not in named


def test_an_input_error_in_a_worker_stops_the_grading():
    with pytest.raises(InputError, match=r"^hostile: the parameter is wrong$"):
        answers_of(ACT, ["fine", "refuse", "fine"])
    with pytest.raises(InputError, match="unknown params"):
        answers_of("number", ["42"] * 5, params={"tolerence": 1})
    assert answers_of(ACT, ["fine"]) == [Verdict(0.04)]


def test_rows_of_all_sizes_come_back_in_order_and_progress_reaches_the_end():
    seen = []
    texts = ["x" * (index % 100) for index in range(3 * MOST_ROWS + 7)]
    answers = answers_of(ACT, texts, lambda done, total, label: seen.append((done, total, label)))
    assert [answer.score for answer in answers] == [len(text) / 100 for text in texts]
    assert seen[-1] == (len(texts), len(texts), "rollouts")
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert answers_of(ACT, []) == []


def test_workers_are_kept_from_one_slice_to_the_next():
    pids = {answer.score for _ in range(3) for answer in answers_of(ACT, ["pid"] * 40, score_range=None)}
    assert 1 <= len(pids) <= shared_pool().size
    assert os.getpid() not in pids


def test_slow_rows_are_shared_out_evenly():
    """Requests shrink to what fits into a tenth of a second, so no worker sits on a queue of slow rows."""
    seen = []
    answers_of("hostile_graders:slow", ["x"] * 40, lambda done, *_: seen.append(done))
    assert len(seen) >= 10


def test_threads_share_the_workers():
    texts = [f"text {index}" for index in range(300)]
    with ThreadPoolExecutor(6) as threads:
        all_answers = list(threads.map(lambda _: answers_of(ACT, texts), range(6)))
    assert all(answers == all_answers[0] for answers in all_answers)
    assert len(shared_pool()._all) <= shared_pool().size


TEXTS = st.lists(st.sampled_from(["exit", "raise", "a", "bb", "true", "none"]) | st.text(max_size=5), max_size=8)


@settings(max_examples=8, deadline=None)
@given(texts=TEXTS, seed=st.randoms())
def test_answers_depend_on_their_row_alone(texts, seed):
    order = list(range(len(texts)))
    seed.shuffle(order)
    answers = answers_of(ACT, texts)
    assert answers_of(ACT, [texts[place] for place in order]) == [answers[place] for place in order]


def test_when_most_rows_are_lost_the_rest_is_not_waited_for():
    answers = answers_of(ACT, ["exit"] * 200)
    reasons = [answer.error for answer in answers]
    lost = [reason for reason in reasons if reason.startswith("the grader ended")]
    assert LOST_AT_MOST <= len(lost) <= LOST_AT_MOST + shared_pool().size
    assert all(reason.startswith("not graded: of the") for reason in reasons if reason not in lost)


def test_many_lost_neighbours_do_not_condemn_the_others():
    """All samples of one prompt may hang, at the beginning of a slice: the others are graded."""
    answers = answers_of(ACT, ["exit"] * (LOST_AT_MOST + 5) + [f"fine {index}" for index in range(300)])
    assert [isinstance(answer, Failure) for answer in answers] == [True] * (LOST_AT_MOST + 5) + [False] * 300


def test_a_killed_idle_worker_is_replaced():
    pool = WorkerPool(1)
    row = ("exact_match", ("a", "a", {}), {})
    try:
        for _ in range(3):
            assert grade_in_workers([row], JOB, pool, lambda *_: None) == [Verdict(1.0, True)]
            os.kill(next(iter(pool._all)).pid, signal.SIGKILL)
    finally:
        pool.close()


PARENT = """
import sys
from tasks.grading.pool import shared_pool
from tasks.grading.workers import Job, grade_in_workers
row = ("hostile_graders:act", ("p", sys.argv[1]), {})
print(int(grade_in_workers([("hostile_graders:act", ("p", "pid"), {})], Job("tasks.grading.own.calls:verifiers"),
          shared_pool(), lambda *_: None)[0].score), flush=True)
grade_in_workers([row], Job("tasks.grading.own.calls:verifiers", timeout_s=1000), shared_pool(), lambda *_: None)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, None])
def test_workers_end_with_their_parent_however_it_ends(how):
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests/support")])
    command = [sys.executable, "-c", PARENT, "sleep" if how else "fine"]
    env = {**os.environ, "PYTHONPATH": paths}
    parent = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    if how:
        parent.send_signal(how)
    parent.wait(20)
    worker.wait(20)


def test_a_stuck_row_is_found_in_the_log(caplog):
    answers_of(ACT, ["sleep"], timeout_s=0.3)
    assert "was stuck" in caplog.text and "hostile_graders.py" in caplog.text
    assert last_words("noise\nThread 1 (most recent call first):\n  File a\n  File b") == "  File a\n  File b"


def test_time_without_a_core_is_not_the_rows_own():
    """Eight others want the one core that the worker may use: its 0.4 s take more than the limit by the clock."""
    allowed = os.sched_getaffinity(0)
    busy = [sys.executable, "-c", "while True: pass"]
    pool = WorkerPool(1)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        # In sessions of their own: a system may share its cores out by session.
        others = [subprocess.Popen(busy, start_new_session=True) for _ in range(8)]
        row = ("hostile_graders:act", ("p", "compute"), {})
        answers = grade_in_workers([row], replace(JOB, timeout_s=1.0), pool, lambda *_: None)
    finally:
        os.sched_setaffinity(0, allowed)
        for other in others:
            other.kill()
            other.wait()
        pool.close()
    assert answers == [Verdict(0.07)]


def test_workers_import_nothing_heavy():
    script = "import sys, tasks.grading.worker, tasks.grading.own.calls\nprint([n for n in HEAVY if n in sys.modules])"
    heavy = "HEAVY = ['torch', 'numpy', 'polars', 'pydantic', 'prefect', 'mlflow', 'transformers', 'httpx']\n"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", heavy + script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_limit_is_a_rows_not_a_requests():
    started = time.monotonic()
    answers = answers_of("hostile_graders:slow", ["x"] * 30, timeout_s=0.4)
    assert answers == [Verdict(0.5)] * 30
    assert time.monotonic() - started > 0.4
