"""An endpoint's HTTP response as a judge's reply, or as a reason to try again."""

import json
import time
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx

from tasks.grading.judges.judge import Reply

PASSING = (408, 409, 425, 429)
LONGEST_RETRY_AFTER_S = 600.0
SHOWN = 300


class Retry(NamedTuple):
    """A fault that may pass, and after how many seconds the endpoint wants to be asked again, if it says."""

    trouble: str
    after_s: float | None = None


def read_response(response: httpx.Response) -> Reply | Retry:
    """The reply in a response. A status that may pass, and a body that is cut or malformed, are to be tried again."""
    status = response.status_code
    if status in PASSING or status >= 500:
        return Retry(f"status {status}: {_excerpt(response)}", _retry_after_s(response))
    if status != httpx.codes.OK:
        return Reply(error=f"status {status}: {_excerpt(response)}")
    try:
        found = json.loads(response.content)
        choice = found["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        counted = found.get("usage") or {}
        tokens = _count(counted.get("prompt_tokens")), _count(counted.get("completion_tokens"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Retry(f"no chat completion: {_excerpt(response)}")
    reason = choice.get("finish_reason")
    reason = reason if isinstance(reason, str) else None
    if not isinstance(content, str):
        return Reply(None, f"the judge gave no text: {str(refusal or reason)[:SHOWN]}", reason, *tokens)
    return Reply(content, "", reason, *tokens)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _excerpt(response: httpx.Response) -> str:
    text = " ".join(response.text.split())
    return text[:SHOWN] or response.reason_phrase


def _retry_after_s(response: httpx.Response) -> float | None:
    """Retry-After (RFC 9110, section 10.2.3): seconds or a date; at most ten minutes."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value) if value.replace(".", "", 1).isdigit() else _seconds_until(value)
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _seconds_until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
