"""What a grader sees of a rollout. Light: worker processes that grade import it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """A rollout, its prompt, and the parameters of whoever grades it.

    `verifier` names the function that grades: the prompt's own, or the configuration's. `params` are the prompt's own
    under those of the configuration; they aren't to be changed. `tokens` counts the response's.
    """

    rollout_id: str
    prompt_id: str
    policy_id: str
    messages: Sequence[Mapping[str, str]]
    text: str
    tokens: int
    truncated: bool
    answer: str | None
    rubric: str | None
    domain: str
    verifier: str
    params: Mapping[str, Any]

    @property
    def content(self) -> tuple[str, str, bool, int]:
        """What a grade depends on besides the grader: equal outputs to one prompt get one grade."""
        return self.prompt_id, self.text, self.truncated, self.tokens
