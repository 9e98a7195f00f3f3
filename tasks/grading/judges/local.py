"""A judge that an engine of this process serves: the policy's champion, or another model."""

from collections.abc import Sequence

from tasks._engines import pool
from tasks._engines.chat import load_tokenizer, render
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import Completion, SamplingParams, ServedModel
from tasks.grading.judges.config import JudgeConfig
from tasks.grading.judges.judge import Progress, Reply
from tasks.grading.judges.prompts import Question


class LocalJudge:
    """A served model. The engine is taken while it answers, and left to others between."""

    def __init__(self, served: ServedModel, engine: EngineConfig, judging: JudgeConfig) -> None:
        self.name = served.policy_id
        self._served, self._engine, self._judging = served, engine, judging
        self._tokenizer = load_tokenizer(served.tokenizer)
        added = (str(token) for token in self._tokenizer.get_added_vocab())
        self.control_tokens = frozenset([*self._tokenizer.all_special_tokens, *added])

    def answer(self, questions: Sequence[Question], progress: Progress) -> list[Reply]:
        """See `Judge.answer`. Raises `TransientError` when the engine fails."""
        prompts = [render(self._tokenizer, question.messages) for question in questions]
        room = self._engine.max_model_len - self._judging.max_tokens
        fitting = [place for place, prompt in enumerate(prompts) if len(prompt) <= room]
        replies = [Reply(error=f"the question is {len(prompt)} tokens, expected at most {room}") for prompt in prompts]
        if not fitting:
            return replies
        sampling = SamplingParams(self._judging.max_tokens, self._judging.temperature or 0.0)
        with pool.acquire(self._engine, self._served) as engine:
            said = engine.generate(
                [prompts[place] for place in fitting],
                [1] * len(fitting),
                sampling,
                self._judging.seed,
                lambda done, total: progress(done, total, "judgements"),
            )
        for place, [completion] in zip(fitting, said, strict=True):
            replies[place] = _reply(completion, len(prompts[place]))
        return replies

    def close(self) -> None:
        """The pool keeps the engine for whoever comes next."""


def _reply(completion: Completion, prompt_tokens: int) -> Reply:
    counted = (prompt_tokens, len(completion.token_ids))
    if completion.finish_reason == "abort":
        return Reply(None, "the engine aborted the answer", "abort", *counted)
    return Reply(completion.text, "", completion.finish_reason, *counted)
