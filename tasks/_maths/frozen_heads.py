"""Small heads over frozen states: the members of a reward model of kind "frozen", as arrays."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Arrays = dict[str, np.ndarray]
States = Float[np.ndarray, "rows features"]


@dataclass(frozen=True)
class FrozenHeads:
    """The members of a frozen reward model.

    `form` names a function of `FORMS`, `arrays` are its weights with the features' `mean` and `scale`, `score_mean`
    and `score_std` the mean and deviation of each member's scores of training answers.
    """

    form: str
    arrays: Arrays
    score_mean: Float[np.ndarray, " members"]
    score_std: Float[np.ndarray, " members"]

    def raw(self, states: States) -> Float[np.ndarray, "rows members"]:
        """The members' scores of states."""
        standardised = (states - self.arrays["mean"]) / self.arrays["scale"]
        return FORMS[self.form](self.arrays, standardised)


def standardised_heads(form: str, arrays: Arrays, states: States) -> FrozenHeads:
    """Heads with the mean and deviation of their scores of these states."""
    fresh = FrozenHeads(form, arrays, np.zeros(1), np.ones(1))
    scores = fresh.raw(states)
    deviation = scores.std(axis=0)
    return FrozenHeads(form, arrays, scores.mean(axis=0), np.where(deviation > 0, deviation, 1.0))


def _linear(arrays: Arrays, states: States) -> Float[np.ndarray, "rows members"]:
    """theta . x of each member."""
    return states @ arrays["weight"].T


def _mlp(arrays: Arrays, states: States) -> Float[np.ndarray, "rows members"]:
    """v . tanh(W x + b) of each member: `inner` (members, features, hidden), `bias` and `outer` (members, hidden)."""
    members = zip(arrays["inner"], arrays["bias"], arrays["outer"], strict=True)
    return np.stack([np.tanh(states @ inner + bias) @ outer for inner, bias, outer in members], axis=1)


FORMS: dict[str, Callable[[Arrays, States], Float[np.ndarray, "rows members"]]] = {"linear": _linear, "mlp": _mlp}
