"""A judge behind an OpenAI-compatible endpoint: bounded, paced, retried, and every token counted."""

import asyncio
import concurrent.futures
import os
import random
from collections.abc import Sequence
from typing import Any

import httpx

from storage.errors import InputError
from tasks.grading.judges.config import EndpointConfig, JudgeConfig
from tasks.grading.judges.judge import Progress, Reply
from tasks.grading.judges.lane import join_lane, leave_lane
from tasks.grading.judges.prompts import Question
from tasks.grading.judges.replies import Retry, read_response

WAIT_S = 0.5
LONGEST_BACKOFF_S = 60.0
CHARACTERS_PER_TOKEN = 4
MISCONFIGURED = (401, 403, 404)


class EndpointJudge:
    """One grader's way to an endpoint. Graders of one endpoint share its limits, across shards."""

    control_tokens: frozenset[str] = frozenset()

    def __init__(self, endpoint: EndpointConfig, judging: JudgeConfig) -> None:
        """Raises `InputError` when the key's variable is not set."""
        self.name = endpoint.model
        self._endpoint, self._judging = endpoint, judging
        self._key = key_of(endpoint)
        self._headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._lane = join_lane(endpoint)

    def answer(self, questions: Sequence[Question], progress: Progress) -> list[Reply]:
        """See `Judge.answer`."""
        done: list[int] = []
        running = asyncio.run_coroutine_threadsafe(self._answer_all(questions, done), self._lane.loop)
        try:
            while True:  # in slices, so that an exception thrown into this thread lands
                finished, _ = concurrent.futures.wait([running], timeout=WAIT_S)
                progress(len(done), len(questions), "judgements")
                if finished:
                    return running.result()
        finally:
            running.cancel()

    def close(self) -> None:
        """The connections end with the last grader that uses them."""
        leave_lane(self._lane)

    async def _answer_all(self, questions: Sequence[Question], done: list[int]) -> list[Reply]:
        replies: list[Reply] = [Reply(error="not asked")] * len(questions)
        waiting = iter(range(len(questions)))

        async def work() -> None:
            for place in waiting:
                replies[place] = await self._answer_one(questions[place])
                done.append(place)

        workers = [asyncio.create_task(work()) for _ in range(min(self._endpoint.concurrency, len(questions)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return replies

    async def _answer_one(self, question: Question) -> Reply:
        body = request_body(question, self._endpoint, self._judging)
        estimate = sum(len(message["content"]) for message in question.messages) / CHARACTERS_PER_TOKEN
        retry = Retry("")
        for attempt in range(self._endpoint.retries + 1):
            if attempt:
                await asyncio.sleep(max(_backoff_s(self._endpoint, attempt), retry.after_s or 0.0))
            if self._lane.given_up:
                return Reply(error="the endpoint failed so often in a row that it is not asked any more")
            outcome = await self._try_once(body, estimate + self._judging.max_tokens)
            if isinstance(outcome, Reply):
                self._lane.succeeded()
                return outcome
            retry = outcome
        self._lane.exhausted()
        return Reply(error=f"{retry.trouble}, after {self._endpoint.retries + 1} tries")

    async def _try_once(self, body: dict[str, Any], tokens: float) -> "Reply | Retry":
        async with self._lane.turn(tokens):
            try:
                async with asyncio.timeout(self._endpoint.timeout_s):
                    response = await self._lane.client.post(
                        f"{self._endpoint.base_url}/chat/completions", json=body, headers=self._headers
                    )
            except TimeoutError:
                return Retry(f"no answer within {self._endpoint.timeout_s:g} s")
            except httpx.RequestError as error:
                return Retry(self._without_key(f"{type(error).__name__}: {error}"))
        outcome = read_response(response)
        if isinstance(outcome, Retry):
            self._lane.pause(outcome.after_s)
            return outcome._replace(trouble=self._without_key(outcome.trouble))
        if outcome.text is None and response.status_code in MISCONFIGURED and not self._lane.answered:
            raise InputError(
                f"judge {self.name} at {self._endpoint.base_url}: {self._without_key(outcome.error)}; check "
                "judging.endpoint's base_url, model and key_variable"
            )
        if outcome.prompt_tokens is not None:
            self._lane.used(outcome.prompt_tokens + (outcome.completion_tokens or 0) - tokens)
        return outcome._replace(error=self._without_key(outcome.error))

    def _without_key(self, message: str) -> str:
        """An endpoint may repeat the key that it refuses."""
        return message.replace(self._key, "***") if self._key else message


def request_body(question: Question, endpoint: EndpointConfig, judging: JudgeConfig) -> dict[str, Any]:
    """The JSON of a chat completion's request."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [dict(message) for message in question.messages],
        endpoint.token_limit: judging.max_tokens,
    }
    if judging.temperature is not None:
        body["temperature"] = judging.temperature
    if endpoint.response_format == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif endpoint.response_format == "json_schema":
        schema = {"name": "verdict", "strict": True, "schema": question.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif endpoint.response_format == "structured_outputs":
        body["structured_outputs"] = {"json": question.schema}
    return body | endpoint.extra_body


def key_of(endpoint: EndpointConfig) -> str:
    """The key from its variable. Raises `InputError` that names the variable, never the value."""
    if endpoint.key_variable is None:
        return ""
    key = os.environ.get(endpoint.key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        found = "is not set" if not key else "holds characters that no header can"
        raise InputError(
            f"judge {endpoint.model}: the environment variable {endpoint.key_variable} {found}; it should hold the "
            f"key of {endpoint.base_url}"
        )
    return key


def _backoff_s(endpoint: EndpointConfig, attempt: int) -> float:
    """Full jitter: anything up to backoff_s, doubled with every attempt."""
    return random.uniform(0, min(LONGEST_BACKOFF_S, endpoint.backoff_s * 2 ** (attempt - 1)))
