"""The grader `majority`: the samples of a prompt vote, and who answers as most do is right (TTRL, arXiv 2504.16084).

No reference is needed. Self-consistency says how sure the policy is, not that it is right: the share is told beside
the score.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from storage.errors import InputError
from tasks.grading.answers import Extractor, extractor
from tasks.grading.config import GraderConfig
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Failure, Verdict, with_defaults

VERSION = "1"
DEFAULTS = {
    "answer": "final",
    "pattern": None,
    "ignore_case": True,
    "ties": "none",
    "min_share": 0.0,
    "truncated_vote": False,
}
TIES = ("none", "all")


class MajorityGrader:
    """1 for the samples whose answer is the majority's, else 0.

    Params: answer (final: what is boxed, else the last number, else the whole text; number, boxed, regex with
    `pattern`, text), ignore_case (of regex and text, true), ties (none: several answers with the most votes are no
    majority; all: each of them counts), min_share (0: the least share of the votes that is a majority),
    truncated_vote (false: a text that was cut by the limit has no final answer to vote with).

    `detail` holds the answer, its votes, the majority's `share` of the votes and `voters`. `uncertainty` is the
    standard deviation of one vote for the majority, sqrt(share (1 - share)). A sample without an answer doesn't vote
    and scores 0; one whose text the pattern can't be done with in a second doesn't vote either, and is a failure.
    """

    compares_group = True
    rule_version = VERSION

    def __init__(self, config: GraderConfig) -> None:
        self._chosen = with_defaults("majority", config.params, DEFAULTS)
        if self._chosen["ties"] not in TIES:
            raise InputError(f"majority: params.ties is {self._chosen['ties']!r}, expected one of {', '.join(TIES)}")
        self._answer_of = extractor("majority", self._chosen)

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 the rule is one for all
        """`majority/version`."""
        return f"majority/{VERSION}"

    def grade_batch(self, samples: Sequence[Sample], progress: Any) -> list[Answer]:  # noqa: ARG002 takes no time
        """One answer a sample, whatever their order."""
        answers = [_extracted(self._answer_of, sample.text) for sample in samples]
        votes: dict[str, Counter[str]] = {}
        for sample, answer in zip(samples, answers, strict=True):
            counted = votes.setdefault(sample.prompt_id, Counter())
            if isinstance(answer, str) and (self._chosen["truncated_vote"] or not sample.truncated):
                counted[answer] += 1
        return [
            answer if isinstance(answer, Failure) else verdict(answer, votes[sample.prompt_id], self._chosen)
            for sample, answer in zip(samples, answers, strict=True)
        ]

    def close(self) -> None:
        """Nothing is held."""


def _extracted(answer_of: Extractor, text: str) -> str | Failure | None:
    try:
        return answer_of(text)
    except TimeoutError as error:
        return Failure(f"TimeoutError: params.pattern: {error}")


def verdict(answer: str | None, votes: Mapping[str, int], params: Mapping[str, Any]) -> Verdict:
    """What one sample gets from its group's votes."""
    voters, most = sum(votes.values()), max(votes.values(), default=0)
    winners = sum(count == most for count in votes.values()) if most else 0
    share = most / voters if voters else 0.0
    decided = most > 0 and share >= params["min_share"] and (winners == 1 or params["ties"] == "all")
    member = decided and answer is not None and votes.get(answer, 0) == most
    detail = {"answer": answer, "votes": votes.get(answer, 0) if answer else 0, "share": share, "voters": voters}
    if winners > 1:
        detail["tied"] = winners
    return Verdict(float(member), member, detail, uncertainty=math.sqrt(share * (1 - share)))
