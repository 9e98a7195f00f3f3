"""Graders whose answers come from a judge."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from storage.errors import InputError
from storage.fingerprints import digest, hashed_part
from tasks.grading.config import GraderConfig
from tasks.grading.judges.accounting import dollars, tokens_of
from tasks.grading.judges.client import EndpointJudge
from tasks.grading.judges.config import JudgeConfig
from tasks.grading.judges.injection import signs_of_injection
from tasks.grading.judges.judge import Judge, Progress, Reply
from tasks.grading.judges.pairwise import (
    Result,
    Tally,
    combined,
    meetings,
    met_by_text,
    pair_choice,
    pair_question,
    pooled,
    seed_of,
    tallies,
)
from tasks.grading.judges.parsing import Unparsable
from tasks.grading.judges.prompts import TEMPLATE_VERSION, Question
from tasks.grading.judges.reference import reference_question, reference_verdict
from tasks.grading.judges.rubric import rubric_question, rubric_verdict
from tasks.grading.resources import Resources
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Failure, Verdict

KEPT_CHARACTERS = 4000


class Kind(NamedTuple):
    """How one sample is judged: what is asked, and what the answer stands for."""

    question: Callable[[Sample, JudgeConfig, Iterable[str]], Question]
    verdict: Callable[[str, Question, Sample, JudgeConfig], Verdict]


KINDS = {
    "rubric": Kind(rubric_question, rubric_verdict),
    "reference_judge": Kind(reference_question, reference_verdict),
}


def open_judge(config: GraderConfig, resources: Resources) -> "SampleJudge | PairwiseJudge":
    """The judging grader that a configuration names. Raises `InputError` for one without its key or its model."""
    if config.judging is None:
        raise InputError(f"grader {config.label}: judging is missing")
    judge = _open(config, config.judging, resources)
    if config.grader == "pairwise":
        return PairwiseJudge(judge, config.judging)
    return SampleJudge(config.grader, judge, config.judging)


def judge_version(grader: str, judging: JudgeConfig, model: str) -> str:
    """What decides a verdict besides the material: the wording's version, the model, and how it is asked.

    `model` is the endpoint's name for it, or the fingerprint of a local one's weights.
    """
    return f"{grader}/{TEMPLATE_VERSION}/{model}/{digest(hashed_part(judging))[:8]}"


def judge_rules(judging: JudgeConfig) -> str:
    """What decides a verdict besides configuration and inputs: the wording, and what `auto` comes to here."""
    if judging.local is None:
        return TEMPLATE_VERSION
    from tasks._engines import pool  # loads torch

    engine = judging.local.engine
    return "/".join([TEMPLATE_VERSION, pool.choose(engine), pool.adapter_mode(engine), pool.served_dtype(engine)])


def _open(config: GraderConfig, judging: JudgeConfig, resources: Resources) -> Judge:
    if judging.endpoint is not None:
        return EndpointJudge(judging.endpoint, judging)
    if judging.local is None:
        raise InputError(f"grader {config.label}: judging names no model")
    from tasks.grading.judges.local import LocalJudge  # loads torch

    served = resources.served(config.label, judging.local.engine)
    return LocalJudge(served, judging.local.engine, judging)


class SampleJudge:
    """Judges every sample by itself: by a rubric, or against the prompt's reference answer."""

    compares_group = False
    paid = True

    def __init__(self, grader: str, judge: Judge, judging: JudgeConfig) -> None:
        self._kind, self._judge, self._judging = KINDS[grader], judge, judging
        self._version = judge_version(grader, judging, judge.name)

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 one judge for all
        """See `judge_version`."""
        return self._version

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """One answer a sample; a failure for one that can't be asked about, and for a verdict that can't be read."""
        asked = [self._question(sample) for sample in samples]
        questions = [question for question in asked if isinstance(question, Question)]
        replies = iter(self._judge.answer(questions, progress) if questions else [])
        return [
            self._graded(sample, question, next(replies)) if isinstance(question, Question) else question
            for sample, question in zip(samples, asked, strict=True)
        ]

    def close(self) -> None:
        """Leave the judge."""
        self._judge.close()

    def _question(self, sample: Sample) -> Question | Failure:
        try:
            return self._kind.question(sample, self._judging, self._judge.control_tokens)
        except ValueError as error:
            return Failure(str(error))

    def _graded(self, sample: Sample, question: Question, reply: Reply) -> Answer:
        detail = {**tokens_of([reply]), **_suspicion(sample)}
        cost = dollars(reply, self._judging.prices)
        if reply.text is None:
            return Failure(f"no verdict: {reply.error}", detail, cost)
        try:
            verdict = self._kind.verdict(reply.text, question, sample, self._judging)
        except Unparsable as error:
            return Failure(f"unparsable verdict: {error}{_cut(reply)}", {**detail, **_kept(reply)}, cost)
        return Verdict(verdict.score, verdict.passed, {**verdict.detail, **detail}, verdict.uncertainty, cost)


class PairwiseJudge:
    """Compares the samples of each prompt in pairs, in both orders, and gives each its win rate."""

    compares_group = True
    paid = True

    def __init__(self, judge: Judge, judging: JudgeConfig) -> None:
        self._judge, self._judging = judge, judging
        self._version = judge_version("pairwise", judging, judge.name)

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 one judge for all
        """See `judge_version`."""
        return self._version

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """One answer a sample: its win rate among those of its prompt, however they are ordered.

        Equal texts tie without being asked about, and two texts are compared once however often they meet. Equal texts
        have one win rate, over what all of them met: answers are kept by text.
        """
        groups = _groups(samples)
        questions = {key: question for group in groups for key, question in self._questions(group, samples)}
        replies = self._judge.answer(list(questions.values()), progress) if questions else []
        rounds = {
            key: _Round(question, reply) for (key, question), reply in zip(questions.items(), replies, strict=True)
        }
        answers: dict[int, Answer] = {}
        for group in groups:
            answers |= self._group_answers(group, samples, rounds)
        return [answers[place] for place in range(len(samples))]

    def close(self) -> None:
        """Leave the judge."""
        self._judge.close()

    def _meetings(self, group: list[int], samples: Sequence[Sample]) -> list[tuple[int, int]]:
        seed = seed_of(self._judging, samples[group[0]].prompt_id)
        return meetings(len(group), self._judging.opponents, seed)

    def _questions(self, group: list[int], samples: Sequence[Sample]) -> Iterable[tuple["_Key", Question]]:
        for i, j in self._meetings(group, samples):
            one, other = samples[group[i]], samples[group[j]]
            if one.text == other.text:
                continue
            for first, second in ((one, other), (other, one)):
                question = pair_question(first, second, self._judging, self._judge.control_tokens)
                yield (first.prompt_id, first.text, second.text), question

    def _group_answers(
        self, group: list[int], samples: Sequence[Sample], rounds: "dict[_Key, _Round]"
    ) -> dict[int, Answer]:
        if len(group) == 1:
            return {group[0]: Failure("the prompt has one sample, so there is nothing to compare it with")}
        results: list[Result] = []
        held = [_Held() for _ in group]
        for i, j in self._meetings(group, samples):
            one, other = samples[group[i]], samples[group[j]]
            if one.text == other.text:
                results.append(((i, j), 0.5, False))
                continue
            forward = rounds[one.prompt_id, one.text, other.text]
            backward = rounds[one.prompt_id, other.text, one.text]
            results.append(((i, j), *combined(forward.choice, backward.choice)))
            held[i].charge(forward)
            held[j].charge(backward)
            for own in (held[i], held[j]):
                own.failure = own.failure or forward.failure or backward.failure
        texts = [samples[place].text for place in group]
        counted = pooled(tallies(len(group), results), texts)
        failures, met = _first_failures(held, texts), met_by_text(results, texts)
        return {
            place: _win_rate(tally, own, failures.get(text, {}), samples[place], self._judging.prices, met.get(text))
            for place, tally, own, text in zip(group, counted, held, texts, strict=True)
        }


_Key = tuple[str, str, str]  # prompt, text as A, text as B


class _Round:
    """One question and what came of it."""

    def __init__(self, question: Question, reply: Reply) -> None:
        self.reply, self.charged = reply, False
        self.choice: str | None = None
        self.failure: dict[str, Any] = {}
        if reply.text is None:
            self.failure = {"error": f"no verdict: {reply.error}"}
            return
        try:
            self.choice = pair_choice(reply.text, question)
        except Unparsable as error:
            self.failure = {"error": f"unparsable verdict: {error}{_cut(reply)}", **_kept(reply)}


class _Held:
    """What one sample of a group is charged for, and the first of its comparisons that failed."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.failure: dict[str, Any] = {}

    def charge(self, once: _Round) -> None:
        """The round in which the sample stood as A. One that several meetings need is paid for once."""
        if not once.charged:
            self.replies.append(once.reply)
        once.charged = True


def _first_failures(held: Sequence[_Held], texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Text -> the first of its comparisons that failed, whichever of the equal texts met it."""
    failures: dict[str, dict[str, Any]] = {}
    for own, text in zip(held, texts, strict=True):
        if own.failure:
            failures.setdefault(text, own.failure)
    return failures


def _win_rate(
    tally: Tally,
    held: _Held,
    failure: dict[str, Any],
    sample: Sample,
    prices: tuple[float, float],
    met: list[dict[str, Any]] | None,
) -> Answer:
    known = {**tally._asdict(), **({"met": met} if met else {}), **tokens_of(held.replies), **_suspicion(sample)}
    cost = sum(dollars(reply, prices) for reply in held.replies)
    if not tally.played:
        error = failure.get("error", "no comparison")
        return Failure(f"none of {tally.failed} comparisons has a result: {error}", {**failure, **known}, cost)
    if failure:
        known["first_failure"] = failure
    return Verdict(tally.rate, detail=known, uncertainty=tally.uncertainty, cost=cost)


def _groups(samples: Sequence[Sample]) -> list[list[int]]:
    """The places of each prompt's samples, in the order of their ids: what meets whom hangs on no other order."""
    groups: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        groups.setdefault(sample.prompt_id, []).append(place)
    return [sorted(group, key=lambda place: samples[place].rollout_id) for group in groups.values()]


def _suspicion(sample: Sample) -> dict[str, Any]:
    signs = signs_of_injection(sample.text)
    return {"suspected_injection": True, "injection_signs": signs} if signs else {}


def _kept(reply: Reply) -> dict[str, Any]:
    return {"judge_said": (reply.text or "")[:KEPT_CHARACTERS]}


def _cut(reply: Reply) -> str:
    return "; max_tokens cut the answer" if reply.finish_reason == "length" else ""
