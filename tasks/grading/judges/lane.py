"""What all graders of one endpoint share in this process: a loop in a thread, connections, the endpoint's limits."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tasks.grading.judges.config import EndpointConfig
from tasks.grading.judges.pace import Pace

LEAST_FAILURES = 20
LIMITS = ("base_url", "model", "key_variable", "concurrency", "requests_per_minute", "tokens_per_minute")


class Lane:
    """Requests to one endpoint take turns here. Its coroutines run in `loop` only."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.answered = False
        self._failures_in_a_row = 0
        self._most_failures = max(LEAST_FAILURES, 3 * endpoint.concurrency)
        self._seats = asyncio.Semaphore(endpoint.concurrency)
        self._requests, self._tokens = Pace(endpoint.requests_per_minute), Pace(endpoint.tokens_per_minute)
        limits = httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        self.client = httpx.AsyncClient(timeout=None, limits=limits)  # the caller bounds a whole try
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=f"judge {endpoint.model}", daemon=True)
        self._thread.start()

    @asynccontextmanager
    async def turn(self, tokens: float) -> AsyncIterator[None]:
        """A place among those in flight, at a time that the rates allow."""
        async with self._seats:
            now = self.loop.time()
            await asyncio.sleep(max(self._requests.reserve(1, now), self._tokens.reserve(tokens, now)))
            yield

    def pause(self, seconds: float | None) -> None:
        """The endpoint asked to be left alone for that long: nobody's request starts before."""
        if seconds:
            self._requests.pause(self.loop.time() + seconds)

    def used(self, tokens: float) -> None:
        """A request came to that many more tokens than were estimated."""
        self._tokens.correct(tokens)

    def succeeded(self) -> None:
        """The endpoint answered."""
        self.answered, self._failures_in_a_row = True, 0

    def exhausted(self) -> None:
        """All tries of a request failed."""
        self._failures_in_a_row += 1

    @property
    def given_up(self) -> bool:
        """Whether so many requests in a row failed in all their tries that asking on would only take time."""
        return self._failures_in_a_row >= self._most_failures

    def close(self) -> None:
        """End the connections, the loop and the thread."""
        asyncio.run_coroutine_threadsafe(self._wind_up(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _wind_up(self) -> None:
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.client.aclose()


_lanes: dict[tuple[object, ...], Lane] = {}
_users: dict[Lane, int] = {}
_lock = threading.Lock()


def join_lane(endpoint: EndpointConfig) -> Lane:
    """The lane of an endpoint, opened for its first user. `leave_lane` gives it back."""
    key = tuple(getattr(endpoint, name) for name in LIMITS)
    with _lock:
        lane = _lanes.get(key)
        if lane is None:
            lane = _lanes[key] = Lane(endpoint)
        _users[lane] = _users.get(lane, 0) + 1
    return lane


def leave_lane(lane: Lane) -> None:
    """One user less; the last one closes it."""
    with _lock:
        _users[lane] -= 1
        if _users[lane] > 0:
            return
        del _users[lane]
        for key in [key for key, known in _lanes.items() if known is lane]:
            del _lanes[key]
    lane.close()
