"""Episodes: actions out of a text, played in an environment."""

import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verifying import verify

from storage.errors import InputError
from tasks.grading.verifiers.environments import Grid, Guess, Step, crossing

MAP = ["S.#", "..O", "#.G"]


def said(*actions: str) -> str:
    return "\n".join(f"I look around. <action>{action}</action>\nobservation: whatever" for action in actions)


@pytest.mark.parametrize(
    ("actions", "score", "done", "turns"),
    [
        (["down", "right", "down", "right"], 1, True, 4),
        (["right", "down", "down", "right"], 1, True, 4),
        (["DOWN", " right ", "down", "right"], 1, True, 4),
        (["down", "right", "right", "down"], 0, True, 3),  # into the pit
        (["down", "right", "down"], 0, False, 3),
        ([], 0, False, 0),
        (["up", "left", "down", "right", "down", "right"], 1, True, 6),
        (["right", "right", "down", "down", "right"], 1, True, 5),  # the second meets the wall
        (["down", "right", "down", "right", "up"], 1, True, 4),
        (["fly", "down", "right", "down", "right"], 1, True, 5),
    ],
)
def test_a_grid_is_crossed_or_not(actions, score, done, turns):
    verdict = verify("episode", said(*actions), environment="grid", params={"map": MAP})
    assert (verdict.score, verdict.passed) == (score, score == 1)
    assert (verdict.detail["done"], verdict.detail["turns"]) == (done, turns)


def test_bad_actions_are_described_one_by_one():
    text = said("up", "jump", "down", "right", "down", "right", "left", "left")
    detail = verify("episode", text, environment="grid", params={"map": MAP}).detail
    assert detail["bad_actions"] == 2 and detail["left_over"] == 2
    assert detail["bad"] == [
        {"turn": 1, "action": "up", "error": "a wall or the edge is at row -1, column 0"},
        {"turn": 2, "action": "jump", "error": "no such action; there are up, down, left, right"},
    ]
    assert detail["observation"] == "row 2, column 2: G"


def test_turns_can_cost_and_can_be_few():
    text = said("down", "right", "down", "right")
    costly = verify("episode", text, environment="grid", params={"map": MAP, "step_cost": 0.1}, pass_return=0.5)
    assert costly.score == pytest.approx(0.6) and costly.passed
    short = verify("episode", text, environment="grid", params={"map": MAP}, max_turns=3)
    assert short.score == 0 and short.detail["left_over"] == 1


def test_a_prompt_brings_its_own_map_as_its_answer():
    assert verify("episode", said("right", "right"), '{"map": ["S.G"]}', environment="grid").passed
    assert not verify("episode", said("right", "right"), '{"map": ["S..G"]}', environment="grid").passed
    for answer in ("S.G", "[1]"):
        with pytest.raises(ValueError, match=r"JSON object|Expecting value"):
            verify("episode", "x", answer, environment="grid")


@pytest.mark.parametrize(
    ("guesses", "score", "last"),
    [
        (["50", "75", "62"], 1, "right"),
        (["62"], 1, "right"),
        (["61", "63"], 0, "lower"),
        (["1", "2", "3", "4", "62"], 0, "higher"),  # four guesses are all
        (["1", "2", "3", "62"], 1, "right"),
        (["sixty-two"], 0, "not understood"),
        (["101"], 0, "not understood"),
        (["٦٢"], 0, "not understood"),
        (["-62"], 0, "not understood"),
        ([], 0, "a number from 1 to 100; 4 guesses"),
    ],
)
def test_guess(guesses, score, last):
    verdict = verify("episode", said(*guesses), environment="guess", params={"number": 62, "guesses": 4})
    assert verdict.score == score
    assert verdict.detail["observation"] == last


def test_the_seed_makes_the_episode():
    def found(seed):
        everything = said(*map(str, range(1, 101)))
        return verify("episode", everything, environment="guess", seed=seed, params={"guesses": 100}).detail["turns"]

    assert found(1) == found(1)
    assert len({found(seed) for seed in range(10)}) > 5


@given(seed=st.integers(0, 10**6), size=st.integers(2, 9), walls=st.floats(0, 0.3))
def test_every_made_map_can_be_crossed_by_its_shortest_way(seed, size, walls):
    params = {"size": size, "walls": walls}
    rows = Grid().reset(params, seed).splitlines()
    way = crossing(rows)
    verdict = verify("episode", said(*way), environment="grid", params=params, seed=seed)
    assert verdict.passed and verdict.detail["turns"] == len(way) and "bad" not in verdict.detail
    assert not verify("episode", said(*way[:-1]), environment="grid", params=params, seed=seed).passed


@given(guesses=st.lists(st.integers(1, 100), max_size=12), seed=st.integers(0, 99))
def test_an_episode_is_the_same_whenever_it_is_played(guesses, seed):
    text = said(*map(str, guesses))
    first = verify("episode", text, environment="guess", seed=seed)
    assert verify("episode", text, environment="guess", seed=seed) == first
    environment, total = Guess(), 0.0
    environment.reset({}, seed)
    for guess in guesses[:7]:
        step = environment.step(str(guess))
        total += step.reward
        if step.done:
            break
    assert first.score == total


def test_ones_own_environment(monkeypatch):
    class Echo:
        def reset(self, params, seed):
            self.word = params["word"]
            return "say it"

        def step(self, action):
            return Step("ok", 0.5, False) if action == self.word else Step("no", -0.25, True)

    module = ModuleType("own_environments")
    module.Echo = Echo
    monkeypatch.setitem(sys.modules, "own_environments", module)
    name = "own_environments:Echo"
    assert verify("episode", said("a", "a"), environment=name, params={"word": "a"}).score == 1.0
    assert verify("episode", said("a", "b", "a"), environment=name, params={"word": "a"}).score == 0.25


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "params.environment is None"),
        ({"environment": "chess"}, "one of grid, guess, or package.module:Class"),
        ({"environment": "nowhere:Game"}, "environment 'nowhere:Game' can't be imported"),
        ({"environment": "grid", "seed": -1}, "params.seed is -1"),
        ({"environment": "grid", "max_turns": 0}, "params.max_turns is 0"),
        ({"environment": "grid", "params": [1]}, "params.params"),
        ({"environment": "grid", "params": {"map": ["S#G"]}}, "a way from S to G"),
        ({"environment": "grid", "params": {"map": ["..."]}}, "a way from S to G"),
        ({"environment": "grid", "params": {"maps": ["SG"]}}, "unknown params"),
        ({"environment": "grid", "params": {"walls": 0.9}}, "params.params.walls"),
        ({"environment": "guess", "params": {"low": 5, "high": 4}}, "at least low"),
        ({"environment": "guess", "params": {"number": 0}}, r"in \[1, 100\]"),
        ({"environment": "guess", "turns": 3}, "unknown params"),
    ],
)
def test_wrong_params_are_refused(params, message):
    with pytest.raises(InputError, match=message):
        verify("episode", said("up"), **params)
