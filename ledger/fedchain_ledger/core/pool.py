"""What waits to be decided: bounded, first come first served.

Knows sizes and signers, not rules: `chain.Chain` lets in only what the policy would let into the
next block after everything that waits before it. So of one natural key (one member's update of
one round, say) one transaction waits at most.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from fedchain_ledger.core.verification import Verified
from fedchain_proto.errors import RuleError, UnavailableError

# A transaction that stood through so many blocks with room for it was overlooked by the leader.
_OVERLOOKED = 2


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds on what waits. A cohort of 4,096 and its admissions fit; a flooding member does not.

    Attributes:
        transactions: Most of all.
        bytes: Most bytes of all envelopes.
        signer_transactions: Most of one signer.
        signer_bytes: Most bytes of one signer.
    """

    transactions: int = 10_000
    bytes: int = 64 << 20
    signer_transactions: int = 64
    signer_bytes: int = 4 << 20


class Pool:
    """Transactions in the order in which they came.

    Args:
        limits: Its bounds.
        exempt: Key ids to which the bounds of one signer do not apply: the admission keys, which
            may have thousands of members to let in at once.
    """

    def __init__(self, limits: PoolLimits, exempt: Collection[bytes]) -> None:
        self._limits = limits
        self._exempt = frozenset(exempt)
        self._waiting: dict[bytes, Verified] = {}
        self._passed_over: dict[bytes, int] = {}
        self._bytes = 0
        self._signer_count: Counter[bytes] = Counter()
        self._signer_bytes: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Verified]:
        """In order of arrival; the pool may change meanwhile."""
        return iter(list(self._waiting.values()))

    def get(self, tx_id: bytes) -> Verified | None:
        """Return what waits under a transaction id."""
        return self._waiting.get(tx_id)

    def check_room(self, verified: Verified) -> None:
        """Check that one more would fit.

        Raises:
            UnavailableError: It would not, now; later it may.
        """
        size = len(verified.signed.raw)
        limits = self._limits
        if len(self) >= limits.transactions or self._bytes + size > limits.bytes:
            raise UnavailableError("too much waits to be decided; submit it again later")
        for signer, _ in verified.signed.signatures:
            if signer in self._exempt:
                continue
            count, total = self._signer_count[signer], self._signer_bytes[signer]
            if count >= limits.signer_transactions or total + size > limits.signer_bytes:
                raise UnavailableError("too much of one signer waits; submit it again later")

    def add(self, verified: Verified) -> None:
        """Let one wait, behind all others. `check_room` has said that it fits."""
        tx_id = verified.signed.tx_id
        self._waiting[tx_id] = verified
        self._passed_over[tx_id] = 0
        self._count(verified, 1)

    def remove(self, tx_id: bytes) -> None:
        """Take one out, if it waits here."""
        verified = self._waiting.pop(tx_id, None)
        if verified is not None:
            del self._passed_over[tx_id]
            self._count(verified, -1)

    def pass_over(self, room: int) -> None:
        """Note that a block was decided in which `room` more bytes of envelopes would have fit."""
        for tx_id, verified in self._waiting.items():
            if len(verified.signed.raw) <= room:
                self._passed_over[tx_id] += 1

    def overlooked(self) -> bool:
        """Whether something stood through two decided blocks with room for it."""
        return any(times >= _OVERLOOKED for times in self._passed_over.values())

    def _count(self, verified: Verified, sign: int) -> None:
        size = len(verified.signed.raw) * sign
        self._bytes += size
        for signer, _ in verified.signed.signatures:
            self._signer_count[signer] += sign
            self._signer_bytes[signer] += size
            if not self._signer_count[signer]:
                del self._signer_count[signer], self._signer_bytes[signer]


class WaitingRoom:
    """Genuine transactions that came before the block that they build on; kept for a few blocks.

    Between validators, a gossiped update may overtake the block that opens its round. Bounded by
    number, bytes and signer, the oldest giving way: its owner will submit it again.
    """

    _MOST = 1024
    _MOST_BYTES = 16 << 20
    _MOST_OF_SIGNER = 16
    _BLOCKS = 3

    def __init__(self) -> None:
        self._waiting: dict[bytes, Verified] = {}
        self._blocks_seen: dict[bytes, int] = {}
        self._of_signer: Counter[bytes] = Counter()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, verified: Verified) -> None:
        """Keep one, unless it is here or its signer has too many here."""
        signed = verified.signed
        if signed.tx_id in self._waiting:
            return
        if self._of_signer[_signer(verified)] >= self._MOST_OF_SIGNER:
            return
        self._waiting[signed.tx_id] = verified
        self._blocks_seen[signed.tx_id] = 0
        self._of_signer[_signer(verified)] += 1
        self._bytes += len(signed.raw)
        while len(self) > self._MOST or self._bytes > self._MOST_BYTES:
            self._drop(next(iter(self._waiting)))

    def retry(self, enter: Callable[[Verified], None], *, new_block: bool) -> None:
        """Offer everything again, oldest first.

        Args:
            enter: Lets one into the pool, or raises RuleError or UnavailableError.
            new_block: The tip has moved; what fails after a few moves is given up.
        """
        for tx_id, verified in list(self._waiting.items()):
            try:
                enter(verified)
            except (RuleError, UnavailableError):
                self._blocks_seen[tx_id] += new_block
                if self._blocks_seen[tx_id] < self._BLOCKS:
                    continue
            self._drop(tx_id)

    def _drop(self, tx_id: bytes) -> None:
        verified = self._waiting.pop(tx_id)
        del self._blocks_seen[tx_id]
        self._bytes -= len(verified.signed.raw)
        self._of_signer[_signer(verified)] -= 1
        if not self._of_signer[_signer(verified)]:
            del self._of_signer[_signer(verified)]


def _signer(verified: Verified) -> bytes:
    return verified.signed.signatures[0][0]
