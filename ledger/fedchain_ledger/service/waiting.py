"""Who waits for which transaction, and what this node still owes the others of it."""

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from fedchain_proto.errors import EvidenceError, FedchainError, RuleError, UnavailableError

Outcome: TypeAlias = bytes | RuleError | EvidenceError
"""A receipt, or why there will be none."""


class Waiting:
    """Transactions that users of this node have submitted and that are not decided yet.

    One stays until it is decided or refused, also when its submitter has gone: the others may not
    have heard of it. Bounded by the pool, which holds every one of them.
    """

    def __init__(self) -> None:
        self._envelopes: dict[bytes, bytes] = {}
        self._futures: dict[bytes, list[asyncio.Future[Outcome]]] = {}

    def __len__(self) -> int:
        return len(self._envelopes)

    def add(self, tx_id: bytes, envelope: bytes, future: asyncio.Future[Outcome]) -> None:
        """Let one more submitter wait for a transaction."""
        self._envelopes.setdefault(tx_id, envelope)
        futures = [other for other in self._futures.get(tx_id, ()) if not other.done()]
        self._futures[tx_id] = [*futures, future]

    def __contains__(self, tx_id: bytes) -> bool:
        return tx_id in self._envelopes

    def settle(self, tx_id: bytes, outcome: Outcome) -> None:
        """Tell everybody who waits for a transaction what became of it."""
        self._envelopes.pop(tx_id, None)
        for future in self._futures.pop(tx_id, ()):
            answer(future, outcome)

    def abandon(self, why: str) -> None:
        """Tell everybody that no answer will come; the outcome is unknown."""
        self._envelopes.clear()
        futures, self._futures = self._futures, {}
        for waiting in futures.values():
            for future in waiting:
                answer(future, UnavailableError(why))

    def envelopes(self) -> Sequence[bytes]:
        """List what is not decided yet, oldest first."""
        return list(self._envelopes.values())


def answer(future: asyncio.Future[Outcome], outcome: Outcome | FedchainError) -> None:
    """Answer a submitter who may have gone."""
    if future.done():
        return
    if isinstance(outcome, bytes | RuleError | EvidenceError):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
