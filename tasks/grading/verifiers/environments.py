"""Two environments in text: a grid to cross, and a number to guess."""

import random
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from storage.errors import InputError
from tasks.grading.verdict import checked_param, is_share, is_whole, with_defaults

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
START, GOAL, WALL, PIT, FLOOR = "S", "G", "#", "O", "."
LARGEST_SIDE = 64
# With more walls hardly any large map can be crossed.
LARGEST_WALLS = 0.3
Place = tuple[int, int]


class Step(NamedTuple):
    """What an environment answers to an action; `error` says why it couldn't be taken."""

    observation: str
    reward: float
    done: bool
    error: str | None = None


class Grid:
    """A grid of cells: S start, G goal, # wall, O pit, . floor. Actions: up, down, left, right.

    The goal is worth 1 and ends the episode, a pit ends it with nothing, every turn costs `step_cost`. A move into a
    wall or over the edge is a bad action: nothing moves. Params: map (rows of cells), or size (8) and walls (0.25,
    share) for one that the seed makes and that can be crossed; step_cost (0).
    """

    def reset(self, params: Mapping[str, Any], seed: int) -> str:
        """The map; the walker stands on S."""
        chosen = with_defaults("episode", params, {"map": None, "size": 8, "walls": 0.25, "step_cost": 0.0})
        checked_param("episode", "params.step_cost", chosen["step_cost"], is_share(chosen["step_cost"]), "in [0, 1]")
        self._cost = float(chosen["step_cost"])
        self._rows = _checked_map(chosen["map"]) if chosen["map"] is not None else _made_map(chosen, seed)
        self._place = _find(self._rows, START)
        return "\n".join(self._rows)

    def step(self, action: str) -> Step:
        """One move."""
        move = MOVES.get(action.strip().lower())
        if move is None:
            return Step(self._seen(), -self._cost, False, f"no such action; there are {', '.join(MOVES)}")
        there = (self._place[0] + move[0], self._place[1] + move[1])
        if _cell(self._rows, there) == WALL:
            return Step(self._seen(), -self._cost, False, f"a wall or the edge is at row {there[0]}, column {there[1]}")
        self._place = there
        cell = _cell(self._rows, there)
        reward = (1.0 if cell == GOAL else 0.0) - self._cost
        return Step(self._seen(), reward, cell in (GOAL, PIT))

    def _seen(self) -> str:
        return f"row {self._place[0]}, column {self._place[1]}: {_cell(self._rows, self._place)}"


class Guess:
    """A whole number to find. Actions: a guess; the answer is higher, lower or right.

    The right guess is worth 1 and ends the episode; after `guesses` it ends with nothing. What isn't a number of the
    range is a bad action and costs a guess. Params: low (1), high (100), guesses (7), number (none: the seed draws it).
    """

    def reset(self, params: Mapping[str, Any], seed: int) -> str:
        """The range and the number of guesses."""
        chosen = with_defaults("episode", params, {"low": 1, "high": 100, "guesses": 7, "number": None})
        for name in ("low", "high", "guesses"):
            checked_param("episode", f"params.{name}", chosen[name], is_whole(chosen[name]), "a whole number")
        self._low, self._high, self._left = chosen["low"], chosen["high"], chosen["guesses"]
        checked_param("episode", "params.high", self._high, self._high >= self._low, f"at least low, {self._low}")
        drawn = random.Random(seed).randint(self._low, self._high)
        self._number = drawn if chosen["number"] is None else chosen["number"]
        fits = is_whole(self._number) and self._low <= self._number <= self._high
        checked_param("episode", "params.number", self._number, fits, f"in [{self._low}, {self._high}]")
        return f"a number from {self._low} to {self._high}; {self._left} guesses"

    def step(self, action: str) -> Step:
        """One guess."""
        self._left -= 1
        over = self._left <= 0
        text = action.strip()
        if not (text.isdecimal() and text.isascii() and len(text) < 20 and self._low <= int(text) <= self._high):
            return Step("not understood", 0.0, over, f"expected a whole number from {self._low} to {self._high}")
        guess = int(text)
        if guess == self._number:
            return Step("right", 1.0, True)
        return Step("higher" if guess < self._number else "lower", 0.0, over)


def crossing(rows: list[str]) -> list[str] | None:
    """The actions of a shortest way from start to goal round walls and pits; None where there is none."""
    start = _find(rows, START)
    before: dict[Place, tuple[Place, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        place = queue.popleft()
        if _cell(rows, place) == GOAL:
            return _actions_to(place, before)
        for name, (down, right) in MOVES.items():
            there = (place[0] + down, place[1] + right)
            if there not in before and _cell(rows, there) not in (WALL, PIT):
                before[there] = (place, name)
                queue.append(there)
    return None


def _actions_to(place: Place, before: Mapping[Place, tuple[Place, str] | None]) -> list[str]:
    actions = []
    step = before[place]
    while step is not None:
        place, name = step
        actions.append(name)
        step = before[place]
    return actions[::-1]


def _cell(rows: list[str], place: Place) -> str:
    row, column = place
    return rows[row][column] if 0 <= row < len(rows) and 0 <= column < len(rows[row]) else WALL


def _find(rows: list[str], cell: str) -> Place:
    return next((row, line.index(cell)) for row, line in enumerate(rows) if cell in line)


def _checked_map(given: Any) -> list[str]:
    rows = given.splitlines() if isinstance(given, str) else given
    if isinstance(rows, list) and rows and all(isinstance(row, str) for row in rows):
        cells = "".join(rows)
        known = set(cells) <= {START, GOAL, WALL, PIT, FLOOR}
        if known and cells.count(START) == 1 and GOAL in cells and crossing(rows) is not None:
            return rows
    raise InputError(
        f"verifier episode: params.map is {given!r}; expected rows of S (one), G, #, O and . with a way from S to G"
    )


def _made_map(chosen: Mapping[str, Any], seed: int) -> list[str]:
    """A square map from corner to corner; walls are drawn until it can be crossed."""
    size, walls = chosen["size"], chosen["walls"]
    checked_param("episode", "params.size", size, is_whole(size, 2) and size <= LARGEST_SIDE, f"2 to {LARGEST_SIDE}")
    checked_param("episode", "params.walls", walls, is_share(walls) and walls <= LARGEST_WALLS, "a share up to 0.3")
    draw = random.Random(seed)
    while True:
        cells = [[WALL if draw.random() < walls else FLOOR for _ in range(size)] for _ in range(size)]
        cells[0][0], cells[-1][-1] = START, GOAL
        rows = ["".join(row) for row in cells]
        if crossing(rows) is not None:
            return rows
