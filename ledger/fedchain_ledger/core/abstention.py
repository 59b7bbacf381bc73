"""A validator whose journal is lost signs nothing for a while, lest it contradict itself.

It cannot know what it had signed, so it stays silent up to height max + 2, where max is the
highest of q OTHER validators' certified tips: what it signed before the loss was at most one
height above a tip that q validators had made, and any q others include an honest one of those
or of their successors. With n <= 2 there are no q others: it needs a new key.

A tip counts as certified once this validator has itself verified certificates that far.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedchain_ledger.core.effects import FOR_EVER, JournalEntry, JournalType

MARGIN = 2


class Abstention:
    """Whether this validator may sign; survives restarts through rows of type LOST."""

    def __init__(self, entries: Iterable[JournalEntry]) -> None:
        self._claims: dict[int, int] = {}
        self._rows = 0
        self._lost = False
        self._until = 0
        for entry in sorted(entries, key=lambda entry: entry.round):
            if entry.type == JournalType.LOST:
                self._apply(entry)

    @property
    def waiting(self) -> bool:
        """Whether the height to stay silent to is not known yet."""
        return self._lost

    def silent_at(self, height: int) -> bool:
        """Whether nothing may be signed at this height."""
        return self._lost or height <= self._until

    def begin(self) -> JournalEntry | None:
        """The journal was found to be lost: the row that says so, None if that is known."""
        if self._lost:
            return None
        self._claims = {}
        return self._apply(JournalEntry(FOR_EVER, self._rows, JournalType.LOST, b""))

    def claim(self, validator: int, height: int) -> None:
        """Another validator says that its tip is at this height."""
        if self._lost:
            self._claims[validator] = max(height, self._claims.get(validator, 0))

    def settle(self, tip: int, quorum: int) -> JournalEntry | None:
        """Given the certified height ``tip``, the row that ends the wait, once q others count."""
        certified = [height for height in self._claims.values() if height <= tip]
        if not self._lost or len(certified) < quorum:
            return None
        until = max(certified) + MARGIN
        data = until.to_bytes(8, "little")
        return self._apply(JournalEntry(FOR_EVER, self._rows, JournalType.LOST, data))

    def _apply(self, entry: JournalEntry) -> JournalEntry:
        """Rows in order of ``round``: empty data means lost, 8 bytes the height to wait for."""
        self._rows = entry.round + 1
        self._lost = not entry.data
        if entry.data:
            self._until = max(self._until, int.from_bytes(entry.data, "little"))
        return entry
