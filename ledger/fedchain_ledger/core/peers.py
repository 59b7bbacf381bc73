"""Who is behind, who is ahead, and how often we answer: R6's courtesy, bounded per peer.

Serving a laggard starts with one block and doubles as long as it asks for exactly what comes
next: one block from everybody tells an idle laggard, and one chosen peer then feeds it fast.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fedchain_ledger.core.timing import Timing

MAX_WINDOW = 16  # blocks on their way to one laggard
MAX_PEERS = 1024  # validators and observers; the transport admits fewer
_REMEMBERED = 8


@dataclass
class _Served:
    upto: int
    window: int
    at_ms: int


class Peers:
    """Rate limits and last words, per peer; a clock that steps back only resets a limit."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._served: dict[int, _Served] = {}
        self._answered: dict[tuple[str, int], int] = {}
        self._decided: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        self._reached: dict[int, int] = {}

    def may_answer(self, kind: str, peer: int, now_ms: int) -> bool:
        """Whether ``peer`` may have an answer of this kind now; counts it as given if so."""
        last = self._answered.get((kind, peer))
        if last is not None and 0 <= now_ms - last < self._timing.answer_ms:
            return False
        self._answered[kind, peer] = now_ms
        return True

    def decided(self, height: int, now_ms: int) -> None:
        """We decided a height."""
        self._decided.append((height, now_ms))

    def at(self, peer: int, height: int) -> None:
        """A peer worked at this height."""
        self._reached[peer] = max(height, self._reached.get(peer, 0))

    def lags(self, peer: int, height: int, now_ms: int) -> bool:
        """Whether a vote for a decided height shows a laggard, not a vote that was under way."""
        if self._reached.get(peer, 0) > height:
            return False
        for decided, at_ms in self._decided:
            if decided == height:
                return not 0 <= now_ms - at_ms < self._timing.laggard_ms
        return True

    def serve(self, peer: int, has: int, tip: int, now_ms: int) -> range:
        """Heights to send to a peer that has decided ``has`` < ``tip``; empty when it must wait."""
        served = self._served.get(peer)
        if served is not None and has == served.upto:
            window = min(2 * served.window, MAX_WINDOW)
        elif served is None or not 0 <= now_ms - served.at_ms < self._timing.answer_ms:
            window = 1
        else:
            return range(0)
        upto = min(has + window, tip)
        self._served[peer] = _Served(upto, window, now_ms)
        return range(has + 1, upto + 1)
