"""What a judge is: chats in, its answers out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from tasks.grading.judges.prompts import Question

Progress = Callable[[int, int, str], None]


class Reply(NamedTuple):
    """A judge's answer, or the error for which there is none. Tokens are None where nobody counted them."""

    text: str | None = None
    error: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Judge(Protocol):
    """A model that answers questions. `control_tokens` are those that its chat template writes between turns."""

    name: str
    control_tokens: frozenset[str]

    def answer(self, questions: Sequence[Question], progress: Progress) -> list[Reply]:
        """One reply a question, in their order. One that can't be answered doesn't keep the others from it.

        Raises `InputError` for a judge that no question will reach, such as one with a wrong key.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...
