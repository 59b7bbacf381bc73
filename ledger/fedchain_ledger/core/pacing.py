"""When the leader of round 0 cuts a block: on a flush, or after a short quiet time.

One block per arriving transaction doubled the cost in a spike; a round's updates share a block.
"""

from __future__ import annotations

from fedchain_ledger.core.timing import Timing


class Pacing:
    """When work arrived that no block of ours has tried to take yet."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._first_ms: int | None = None
        self._last_ms = 0
        self._flush = False

    def arrived(self, now_ms: int, flush: bool) -> None:
        """The pool gained transactions."""
        if self._first_ms is None:
            self._first_ms = now_ms
        self._last_ms = now_ms
        self._flush = self._flush or flush

    def reset(self) -> None:
        """All that waits was tried, or nothing waits: the next arrival starts a new quiet time."""
        self._first_ms = None
        self._flush = False

    def due_ms(self, now_ms: int) -> int:
        """When the work that waits may be cut; work that no arrival announced waited before."""
        if self._flush or self._first_ms is None:
            return now_ms
        quiet = self._timing.quiet_ms
        due = min(self._last_ms + quiet, self._first_ms + quiet * self._timing.quiet_factor)
        return min(due, now_ms + quiet)  # a clock that stepped back delays no block
