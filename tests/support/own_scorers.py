"""Scorers of steps, for the grader `process`: worker processes import them."""

import os


def rising(messages, steps):
    """Each prefix a little better; it sees the prompt."""
    if "raise" in steps[0]:
        raise KeyError("no model")
    return [0.5 + 0.25 * i for i, _ in enumerate(steps)][: 1 if "short" in steps[0] else None]


rising.version = "7"


def nan(messages, steps):
    """No numbers."""
    return [float("nan")] * len(steps)


def hostile(messages, steps):
    """Ends its process, never ends, or is fine."""
    if steps[0] == "exit":
        os._exit(3)
    while steps[0] == "loop":
        pass
    return [1.0] * len(steps)
