"""The core's named timers, on an event loop's clock. A timer that was replaced never fires."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Elapsed:
    """A timer that has run out; see `Timers.is_current`."""

    name: str
    generation: int


class Timers:
    """Timers by name, each at most once.

    Args:
        elapsed: Called from the event loop when one runs out.
    """

    def __init__(self, elapsed: Callable[[Elapsed], None]) -> None:
        self._elapsed = elapsed
        self._running: dict[str, tuple[int, asyncio.TimerHandle]] = {}

    def set(self, name: str, delay_ms: int) -> None:
        """Start a timer, or start it anew."""
        generation, old = self._running.get(name, (0, None))
        if old is not None:
            old.cancel()
        event = Elapsed(name, generation + 1)
        loop = asyncio.get_running_loop()
        handle = loop.call_later(max(0, delay_ms) / 1000, self._elapsed, event)
        self._running[name] = event.generation, handle

    def is_current(self, event: Elapsed) -> bool:
        """Whether a timer was not replaced between running out and being looked at."""
        return self._running.get(event.name, (0, None))[0] == event.generation

    def cancel(self) -> None:
        """Stop all of them."""
        for _, handle in self._running.values():
            handle.cancel()
        self._running.clear()
