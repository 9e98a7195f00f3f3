"""Graders that do what graders do wrong: workers import them by name. The completion says what to do."""

import asyncio
import contextlib
import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from storage.errors import InputError
from tasks.grading.verdict import Failure, Verdict


def _loop():
    while True:
        pass


def _compute():
    until = time.process_time() + 0.4
    while time.process_time() < until:
        pass


ACTS = {
    "loop": _loop,
    "compute": _compute,
    "regex": lambda: re.match(r"(a+)+$", "a" * 50 + "b"),  # C code that holds the interpreter's lock
    "sleep": lambda: time.sleep(1000),
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "memory": lambda: "x" * (1 << 62),
    "sysexit": lambda: sys.exit(4),
    "recursion": lambda: ACTS["recursion"](),
    "raise": lambda: {}["no such word"],
    "refuse": lambda: (_ for _ in ()).throw(InputError("hostile: the parameter is wrong")),
    "child": lambda: (subprocess.Popen(["sleep", "1000"]), time.sleep(1000)),
}
RETURNS = {
    "none": None,
    "text": "0.5",
    "verdict": Verdict(1, True, {"why": "good"}, 0.25, 0.01),
    "failure": Failure("not for me", {"kept": "text"}, 0.5),
    "unstorable": Verdict(1.0, detail={"why": {1, 2}}),
    "true": True,
}


def act(prompt, completion):
    word = completion.split(":")[0]
    if word in ACTS:
        ACTS[word]()
    if word == "pid":
        return os.getpid()
    if word == "noise":
        print("x" * 1000)
    return RETURNS.get(word, len(completion) / 100)


def slow(prompt, completion):
    time.sleep(0.05)
    return 0.5


async def act_async(prompt, completion):
    if completion in ACTS and completion != "sleep":
        ACTS[completion]()
    await asyncio.sleep(1000 if completion == "sleep" else 0.05)
    return RETURNS.get(completion, len(completion) / 100)


async def stubborn(prompt, completion):
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)


RUNNING = 0


async def how_many_at_once(prompt, completion):
    global RUNNING
    RUNNING += 1
    await asyncio.sleep(0.05)
    seen, RUNNING = RUNNING, RUNNING - 1
    return seen


def named(prompt, completion, /, answer, *, messages, domain, rubric=None, params=None, mood="calm"):
    return Verdict(1.0, detail=dict(prompt=prompt, answer=answer, messages=messages, domain=domain, rubric=rubric))


def with_params(_prompt, completion, params):
    return params["score"]


class Batches:
    version = 7

    def __init__(self, log, bonus=0.0):
        self.log, self.bonus = Path(log), bonus
        with self.log.open("a") as file:
            file.write("made\n")

    def grade_batch(self, prompts, completions, answers, domains):
        assert len(prompts) == len(completions) == len(answers) == len(domains)
        with self.log.open("a") as file:
            file.write(f"{len(completions)}\n")
        for completion in completions:
            if completion in ACTS:
                ACTS[completion]()
        if "few" in completions:
            return []
        return [len(completion) / 100 + self.bonus for completion in completions]


class AsyncBatches:
    async def grade_batch(self, prompts, completions):
        await asyncio.sleep(0)
        return [True for _ in completions]


class Unmakeable:
    def __init__(self):
        raise OSError("no weights here")

    def grade_batch(self, prompts, completions):
        return []


class Deadly(Unmakeable):
    def __init__(self):
        os._exit(5)


def unnamed(a, b):
    return 0.0


def unfilled(prompt, completion, mood):
    return 0.0


class NoBatches:
    pass
