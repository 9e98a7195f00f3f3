"""A policy that answers by its prompt's word: `easy` always right, `hard` never, `mixed` every other sample.

The engine of rounds' tests, `name: scripted_policy:ScriptedPolicy`; `calls` holds the samples of each generation.
"""

from collections.abc import Sequence

from rule_engine import RuleEngine

from tasks._engines.protocol import Completion, Progress, SamplingParams

ANSWER = "7"
calls: list[int] = []
dies_at: list[int] = []


class ScriptedPolicy(RuleEngine):
    """Ends its process's work, by an exception, at the generations that `dies_at` names (counted from 1)."""

    name = "scripted policy"

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        sampling: SamplingParams,
        seed: int,
        on_progress: Progress,
    ) -> list[list[Completion]]:
        calls.append(sum(samples))
        if len(calls) in dies_at:
            raise RuntimeError(f"generation {len(calls)} was cut off")
        return [
            [answer(self.read(prompt), index) for index in range(n)] for prompt, n in zip(prompts, samples, strict=True)
        ]


def answer(prompt: str, index: int) -> Completion:
    """The sample of that index within one generation."""
    right = "easy" in prompt or ("mixed" in prompt and index % 2 == 0)
    return Completion((5, 6, 2), (-0.5, -0.5, -0.1), ANSWER if right else "0", "stop")
