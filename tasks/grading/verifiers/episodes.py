"""Several turns with an environment: a rollout's actions are played in it, and the return is the score.

An environment is any class with `reset` and `step` as in `Environment`. `ENVIRONMENTS` holds those by name; one's own
is named `package.module:Class`.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from storage.plugins import import_named
from tasks.grading.verdict import Verdict, checked_param, is_whole, read_once, with_defaults
from tasks.grading.verifiers.environments import Grid, Guess, Step

LONGEST_EXCERPT = 60
SHOWN_BAD_ACTIONS = 20


class Environment(Protocol):
    """A task of several turns. The same parameters, seed and actions give the same episode."""

    def reset(self, params: Mapping[str, Any], seed: int) -> str:
        """Begins an episode; the first observation. Raises `InputError` for wrong parameters."""
        ...

    def step(self, action: str) -> Step:
        """One turn. An action that can't be taken says why in `error`; it costs its turn."""
        ...


ENVIRONMENTS: dict[str, Callable[[], Environment]] = {"grid": Grid, "guess": Guess}


class _Game(NamedTuple):
    make: Callable[[], Environment]
    params: Mapping[str, Any]
    seed: int
    max_turns: int
    pass_return: float
    action: re.Pattern[str]


def episode(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:
    """The return of the episode that the text's actions make: the sum of its rewards, undiscounted.

    The text holds the whole trajectory: every action in tags, <action>up</action>, in the order of the turns; what
    stands between (thoughts, observations) is not read, for the environment's own answers count. Actions after
    `max_turns` or after the end aren't played. The detail has the turns, whether the episode ended, the last
    observation, how many actions were left over, and every bad action: its turn, its text and what is wrong with it.

    The prompt's answer, where it has one, is a JSON object of the environment's parameters, such as a map of its own.

    Params: environment (a name or package.module:Class; required), params (the environment's; {}), seed (0),
    max_turns (100), pass_return (1.0: passes from this return on), tag ("action"). A return outside [0, 1] needs the
    grader's `score_range`. Raises `ValueError`, which fails the row's grade, for an answer that is no JSON object.
    """
    game = _game(params)
    actions = [found.strip() for found in game.action.findall(text)]
    environment = game.make()
    observation = environment.reset({**game.params, **_of_prompt(answer)}, game.seed)
    total, done, turns = 0.0, False, 0
    bad = []
    for action in actions[: game.max_turns]:
        observation, reward, done, error = environment.step(action)
        turns += 1
        total += reward
        if error is not None:
            bad.append({"turn": turns, "action": action[:LONGEST_EXCERPT], "error": error})
        if done:
            break
    detail: dict[str, Any] = {"turns": turns, "done": done, "observation": observation}
    if len(actions) > turns:
        detail["left_over"] = len(actions) - turns
    if bad:
        detail |= {"bad_actions": len(bad), "bad": bad[:SHOWN_BAD_ACTIONS]}
    return Verdict(total, total >= game.pass_return, detail)


@functools.lru_cache(maxsize=4096)
def _of_prompt(answer: str | None) -> Mapping[str, Any]:
    params = json.loads(answer) if answer is not None else {}
    if not isinstance(params, dict):
        raise ValueError(
            f"verifier episode: the answer is {answer!r}; expected a JSON object of parameters, or nothing"
        )
    return params


@functools.lru_cache(maxsize=64)
def _environment(name: str) -> Callable[[], Environment]:
    if ":" in name:
        return import_named("environment", name)
    known = ", ".join(ENVIRONMENTS)
    checked_param("episode", "environment", name, name in ENVIRONMENTS, f"one of {known}, or package.module:Class")
    return ENVIRONMENTS[name]


@read_once
def _game(params: Mapping[str, Any]) -> _Game:
    defaults: dict[str, Any] = {
        "environment": None,
        "params": {},
        "seed": 0,
        "max_turns": 100,
        "pass_return": 1.0,
        "tag": "action",
    }
    chosen = with_defaults("episode", params, defaults)
    name, own, seed, turns, line, tag = chosen.values()
    checked_param("episode", "environment", name, isinstance(name, str), "the name of an environment")
    checked_param("episode", "params", own, isinstance(own, dict), "the environment's parameters")
    checked_param("episode", "seed", seed, is_whole(seed), "a whole number")
    checked_param("episode", "max_turns", turns, is_whole(turns, 1), "a whole number from 1 on")
    checked_param("episode", "pass_return", line, isinstance(line, int | float), "a number")
    checked_param("episode", "tag", tag, isinstance(tag, str) and bool(tag), "a tag's name")
    pattern = re.compile(f"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", re.DOTALL)
    return _Game(_environment(name), own, seed, turns, float(line), pattern)
