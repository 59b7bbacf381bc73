"""The effects of one ``handle``, in the order in which the shell must run them."""

from __future__ import annotations

from collections.abc import Iterable

from fedchain_ledger.core.effects import Decide, Effect, JournalEntry, Persist, Send


class Outbox:
    """Collects effects; joins what is journaled between two decisions into one transaction.

    Moving a ``Persist`` forward, before messages that do not need it, keeps every vote durable
    before it is audible and saves an fsync.
    """

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._persist_at: int | None = None

    def emit(self, *effects: Effect) -> None:
        """Append effects as they are."""
        for effect in effects:
            self._effects.append(effect)
            if isinstance(effect, Decide):
                self._persist_at = None

    def persist(self, entries: Iterable[JournalEntry]) -> None:
        """Journal rows, before anything that is emitted after this call."""
        rows = tuple(entries)
        if not rows:
            return
        if self._persist_at is None:
            self._persist_at = len(self._effects)
            self._effects.append(Persist(rows))
            return
        earlier = self._effects[self._persist_at]
        if not isinstance(earlier, Persist):
            raise AssertionError("the outbox lost its place")
        self._effects[self._persist_at] = Persist(earlier.entries + rows)

    def send(self, to: int | None, message: bytes) -> None:
        """Send a message to one peer, or to all others."""
        self._effects.append(Send(to, message))

    def take(self) -> list[Effect]:
        """What was collected, and start again."""
        effects, self._effects, self._persist_at = self._effects, [], None
        return effects
