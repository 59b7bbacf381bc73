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
        self._rows: tuple[JournalEntry, ...] = ()  # of the Persist that stands at ``_place``
        self._place = 0

    def emit(self, *effects: Effect) -> None:
        """Append effects as they are."""
        for effect in effects:
            self._effects.append(effect)
            if isinstance(effect, Decide):
                self._rows = ()

    def persist(self, entries: Iterable[JournalEntry]) -> None:
        """Journal rows, before anything that is emitted after this call."""
        if not self._rows:
            self._place = len(self._effects)
            self._effects.append(Persist(()))
        self._rows += tuple(entries)
        self._effects[self._place] = Persist(self._rows)

    def send(self, to: int | None, message: bytes) -> None:
        """Send a message to one peer, or to all others."""
        self._effects.append(Send(to, message))

    def take(self) -> list[Effect]:
        """What was collected, and start again."""
        effects, self._effects, self._rows = self._effects, [], ()
        return effects
