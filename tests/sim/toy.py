"""A toy application for the consensus core, and signatures that cost a microsecond.

A transaction is any bytes, valid once. Blocks, headers and certificates are the real ones, so
that what the core hashes, signs and compares is what it will in earnest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from fedchain_ledger.core.effects import JournalEntry
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import NO_CERTIFICATE, Certificate, Header, header_id, tx_root
from fedchain_proto.errors import EvidenceError, RuleError
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import SigningKey, key_id
from fedchain_proto.trust import Validator, ValidatorSet

CHAIN_ID = sha256(b"toy chain")
START_MS = 1_000_000
CLOCK_MS = 5_000  # how far a new block's time may be from a validator's clock


class FakeKey(SigningKey):
    """A keyed hash in the place of Ed25519: nobody in a simulation forges one."""

    __slots__ = ("_fake",)
    known: dict[bytes, bytes] = {}  # noqa: RUF012  # a registry shared by all, on purpose

    def __init__(self, seed: bytes) -> None:  # the real one derives a curve point
        self._fake = seed
        self.public = sha256(b"public", seed)
        self.key_id = key_id(self.public)
        FakeKey.known[self.public] = seed

    def sign(self, message: bytes) -> bytes:
        return _tag(self._fake, message)


def _tag(seed: bytes, message: bytes) -> bytes:
    return hashlib.blake2b(message, key=seed).digest()


def _fake_verify(public: bytes, signature: bytes, message: bytes) -> None:
    seed = FakeKey.known.get(public)
    if seed is None or _tag(seed, message) != signature:
        raise EvidenceError("a signature does not hold")


@contextmanager
def fast_signatures() -> Iterator[None]:
    """Let votes and certificates be verified as FakeKey signs."""
    with (
        patch("fedchain_proto.votes.verify", _fake_verify),
        patch("fedchain_proto.blocks.verify", _fake_verify),
    ):
        yield


def toy_keys(n: int, *, fast: bool) -> list[SigningKey]:
    """The validators' keys, by index; the same each time."""
    kind = FakeKey if fast else SigningKey
    return [kind(sha256(b"toy validator", bytes([index]))) for index in range(n)]


def toy_set(keys: list[SigningKey]) -> ValidatorSet:
    """The set of those keys."""
    return ValidatorSet(
        tuple(Validator(f"validator-{i}", f"operator {i}", k.public) for i, k in enumerate(keys))
    )


@dataclass(frozen=True)
class Stored:
    """A decided block as a database holds it."""

    block: wire.Block
    certificate: Certificate


class ToyApplication:
    """State: the chain of decided blocks. Satisfies ``application.Application``."""

    def __init__(self, validators: ValidatorSet, *, limit: int = 100) -> None:
        self._validators = validators
        self._limit = limit  # transactions a block
        self.chain: list[Stored] = []
        self.recorded: set[bytes] = set()
        self.pool: dict[bytes, int] = {}  # transaction -> decided blocks that had room for it
        self.hidden: set[bytes] = set()  # transactions that this validator, leading, drops
        self._log = bytes(32)
        self._tip_id = CHAIN_ID
        self._tip_ms = 0
        self._tip_proposer = 0
        self._valid: dict[bytes, bytes] = {}  # whole block -> id

    def submit(self, transaction: bytes) -> bool:
        """Put a transaction into the pool; False if it is there or recorded."""
        if transaction in self.recorded or transaction in self.pool:
            return False
        self.pool[transaction] = 0
        return True

    # -------------------------------------------------------------- Application

    @property
    def tip_height(self) -> int:
        return len(self.chain)

    @property
    def tip_proposer(self) -> int:
        return self._tip_proposer

    @property
    def validators(self) -> ValidatorSet:
        return self._validators

    def has_work(self) -> bool:
        return bool(self.pool)

    def overlooked(self) -> bool:
        return any(missed >= 2 for missed in self.pool.values())

    def propose(self, now_ms: int, proposer: int) -> wire.Block | None:
        chosen = [t for t in self.pool if t not in self.hidden][: self._limit]
        if not chosen:
            return None
        return self._make(chosen, max(self._tip_ms + 1, now_ms), proposer)

    def _make(self, transactions: list[bytes], time_ms: int, proposer: int) -> wire.Block:
        last = self.chain[-1].certificate if self.chain else None
        header = Header(
            chain_id=CHAIN_ID,
            height=self.tip_height + 1,
            parent_id=self._tip_id,
            time_ms=time_ms,
            proposer=proposer,
            tx_root=tx_root(transactions),
            log_size=len(self.recorded) + len(transactions),
            log_root=sha256(self._log, *transactions),
            validators_hash=self._validators.hash,
            next_validators_hash=self._validators.hash,
            last_commit_hash=NO_CERTIFICATE if last is None else last.hash,
            state_root=bytes(32),
        )
        return wire.Block(
            header=header.encode(),
            envelopes=transactions,
            parent_certificate=b"" if last is None else last.encode(),
        )

    def validate(self, block: wire.Block, *, proposer: int | None, now_ms: int | None) -> bytes:
        header = Header.decode(block.header)
        if proposer is not None and header.proposer != proposer:
            raise RuleError("another proposer", code="proposer")
        if now_ms is not None and not (
            abs(header.time_ms - now_ms) <= CLOCK_MS or header.time_ms == self._tip_ms + 1
        ):
            raise RuleError("far from the clock", code="time")
        whole = block.SerializeToString()
        if whole not in self._valid:
            self._check(block, header)
            self._valid[whole] = header_id(block.header)
        return self._valid[whole]

    def _check(self, block: wire.Block, header: Header) -> None:
        transactions = list(block.envelopes)
        if header.proposer >= self._validators.n or header.time_ms <= self._tip_ms:
            raise EvidenceError("no such proposer, or a time that is not after the parent's")
        if header.parent_id != self._tip_id or header.height != self.tip_height + 1:
            raise EvidenceError("not on the tip")
        if not transactions or self.recorded & set(transactions):
            raise RuleError("empty, or records a transaction twice", code="duplicate")
        if len(set(transactions)) != len(transactions):
            raise RuleError("records a transaction twice", code="duplicate")
        if block.parent_certificate:
            certificate = Certificate.decode(block.parent_certificate)
            certificate.verify(CHAIN_ID, self._validators)
            if (certificate.hash, certificate.block_id) != (
                header.last_commit_hash,
                self._tip_id,
            ):
                raise EvidenceError("the certificate of another block")
        expected = self._make(transactions, header.time_ms, header.proposer)
        mine = Header.decode(expected.header)
        if (mine.tx_root, mine.log_root, mine.log_size) != (
            header.tx_root,
            header.log_root,
            header.log_size,
        ):
            raise EvidenceError("does not reproduce")

    def commit(self, block_id: bytes, certificate: Certificate) -> object:
        for whole, known in self._valid.items():
            if known == block_id:
                return self._commit(wire.Block.FromString(whole), block_id, certificate)
        raise AssertionError("committed what was never validated")

    def _commit(self, block: wire.Block, block_id: bytes, certificate: Certificate) -> Stored:
        header = Header.decode(block.header)
        if self.chain and block.parent_certificate:
            named = Certificate.decode(block.parent_certificate)
            self.chain[-1] = Stored(self.chain[-1].block, named)
        stored = Stored(block, certificate)
        self.chain.append(stored)
        self.recorded.update(block.envelopes)
        self._log = sha256(self._log, *block.envelopes)
        self._tip_id, self._tip_ms = block_id, header.time_ms
        self._tip_proposer = header.proposer
        self._valid = {}
        for transaction in block.envelopes:
            self.pool.pop(transaction, None)
        if len(block.envelopes) < self._limit:
            self.pool = {transaction: missed + 1 for transaction, missed in self.pool.items()}
        return stored

    def replay(self, chain: list[Stored]) -> None:
        """Come back from a database: the same blocks again."""
        for stored in chain:
            block_id = self.validate(stored.block, proposer=None, now_ms=None)
            self.commit(block_id, stored.certificate)


class ToyStore:
    """What survives a crash: decided blocks and the journal. Refuses what the real one refuses."""

    def __init__(self) -> None:
        self.chain: list[Stored] = []
        self.journal: dict[tuple[int, int, int], JournalEntry] = {}

    def persist(self, entries: tuple[JournalEntry, ...]) -> None:
        for entry in entries:
            key = (entry.height, entry.round, entry.type)
            known = self.journal.setdefault(key, entry)
            if known.data != entry.data:
                raise AssertionError(f"signed twice: {key}")

    def decide(self, stored: Stored) -> None:
        if self.chain and stored.block.parent_certificate:
            named = Certificate.decode(stored.block.parent_certificate)
            self.chain[-1] = Stored(self.chain[-1].block, named)
        self.chain.append(stored)
        height = len(self.chain)
        self.journal = {key: row for key, row in self.journal.items() if key[0] > height}
