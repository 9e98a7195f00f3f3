"""A rate limit as a queue of starting times, pure: whoever waits as told keeps to it."""

SECONDS_PER_MINUTE = 60.0


class Pace:
    """Spaces starts evenly, so that no minute holds more than the limit and one start's amount besides."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval_s = SECONDS_PER_MINUTE / per_minute if per_minute else 0.0
        self._free_at = float("-inf")

    def reserve(self, amount: float, now: float) -> float:
        """Take the next start for `amount` of what is limited. Gives how long to wait for it, in seconds."""
        start = max(now, self._free_at)
        self._free_at = start + amount * self._interval_s
        return start - now

    def correct(self, amount: float) -> None:
        """An earlier start came to that much more (below 0: less) than was reserved."""
        self._free_at += amount * self._interval_s

    def pause(self, until: float) -> None:
        """No further start before that time."""
        self._free_at = max(self._free_at, until)
