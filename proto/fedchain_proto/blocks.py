"""Blocks: the fixed-width header, its identity, and the certificate that makes it final.

Header and certificate have fixed layouts, little-endian, and are stored and hashed as they came.
No round stands in a header: a block that is proposed again is the same bytes with the same id.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.hashing import DIGEST_SIZE, sha256
from fedchain_proto.keys import SIGNATURE_SIZE, verify
from fedchain_proto.trust import MAX_TIME_MS, MAX_VALIDATORS, ValidatorSet
from fedchain_proto.votes import NO_BLOCK, preimage

MAX_BLOCK_BYTES = 8 << 20  # all envelopes of a block together
MAX_BLOCK_TRANSACTIONS = 1000

HEADER_VERSION = 1
GENESIS_HEIGHT = 0  # the genesis itself: its id is the chain id, its time the genesis's
FIRST_HEIGHT = 1
NO_CERTIFICATE = bytes(DIGEST_SIZE)  # last_commit_hash of the first block

_HEADER_DOMAIN = b"fedchain/header/v1\0"
_HEADER = struct.Struct("<I32sQ32sQI32sQ32s32s32s32s32s")
HEADER_SIZE = _HEADER.size  # 288

_CERTIFICATE_DOMAIN = b"fedchain/certificate/v1\0"
_CERTIFICATE_MAGIC = b"FCC1"
_CERTIFICATE = struct.Struct("<4sQI32s32sH")
_ENTRY = struct.Struct(f"<H{SIGNATURE_SIZE}s")
MAX_CERTIFICATE_BYTES = _CERTIFICATE.size + MAX_VALIDATORS * _ENTRY.size


@dataclass(frozen=True)
class Header:
    """What a block's id covers. log_size, log_root, state_root, next_* are those after the block.

    Attributes:
        version: 1.
        chain_id: 32 bytes, as are all ids, roots and hashes below.
        height: From 1.
        parent_id: Header id of height - 1; the chain id for height 1.
        time_ms: Unix milliseconds, above the parent's, at most MAX_TIME_MS: a deadline after it
            still fits the 64 bits that the state keeps of one.
        proposer: Index of the validator that first proposed it.
        tx_root: Merkle root over this block's envelopes (`tx_root`).
        log_size: Transactions of the chain up to and with this block.
        log_root: Merkle root over all of them.
        validators_hash: The set that decides this block.
        next_validators_hash: The set that decides the next.
        last_commit_hash: Hash of the parent's certificate; NO_CERTIFICATE for height 1.
        state_root: Merkle root of the chain's state.
    """

    chain_id: bytes
    height: int
    parent_id: bytes
    time_ms: int
    proposer: int
    tx_root: bytes
    log_size: int
    log_root: bytes
    validators_hash: bytes
    next_validators_hash: bytes
    last_commit_hash: bytes
    state_root: bytes
    version: int = HEADER_VERSION

    def encode(self) -> bytes:
        """Write the header; 288 bytes.

        Raises:
            UsageError: A number or a size is out of range.
        """
        digests = (
            self.chain_id,
            self.parent_id,
            self.tx_root,
            self.log_root,
            self.validators_hash,
            self.next_validators_hash,
            self.last_commit_hash,
            self.state_root,
        )
        if any(len(digest) != DIGEST_SIZE for digest in digests):
            raise UsageError("a header's ids, roots and hashes have 32 bytes each")
        if self.version != HEADER_VERSION or self.height < FIRST_HEIGHT:
            raise UsageError(f"a header has version {HEADER_VERSION} and a height from 1")
        if self.time_ms > MAX_TIME_MS:
            raise UsageError(f"a header's time is at most {MAX_TIME_MS}, not {self.time_ms}")
        try:
            return _HEADER.pack(
                self.version,
                self.chain_id,
                self.height,
                self.parent_id,
                self.time_ms,
                self.proposer,
                self.tx_root,
                self.log_size,
                self.log_root,
                self.validators_hash,
                self.next_validators_hash,
                self.last_commit_hash,
                self.state_root,
            )
        except struct.error as error:
            raise UsageError(f"a number of a header is out of range: {error}") from None

    @classmethod
    def decode(cls, raw: bytes) -> "Header":
        """Read a header. Checks length, version and the range of height and time, nothing else.

        Raises:
            EvidenceError: Not a header of this version.
        """
        if len(raw) != HEADER_SIZE:
            raise EvidenceError(f"a header has {HEADER_SIZE} bytes, this one {len(raw)}")
        version, *fields = _HEADER.unpack(raw)
        if version != HEADER_VERSION:
            raise EvidenceError(f"a header of version {version}; this program knows 1 only")
        header = cls(*fields)
        if header.height < FIRST_HEIGHT:
            raise EvidenceError("a header of height 0, which is the genesis")
        if header.time_ms > MAX_TIME_MS:
            raise EvidenceError(f"a header of the time {header.time_ms}, beyond {MAX_TIME_MS}")
        return header

    @cached_property
    def id(self) -> bytes:
        """The block's id, 32 bytes."""
        return header_id(self.encode())


def header_id(raw: bytes) -> bytes:
    """Hash a header's bytes into the block's id; 32 bytes."""
    return sha256(_HEADER_DOMAIN, raw)


@dataclass(frozen=True)
class Certificate:
    """A quorum's COMMIT signatures of one round: the block is final.

    Attributes:
        height: Of the block.
        round: In which it was decided.
        block_id: 32 bytes.
        validators_hash: The set that decided, 32 bytes.
        signatures: Pairs (validator's index, signature 64 bytes), ascending by index.
    """

    height: int
    round: int
    block_id: bytes
    validators_hash: bytes
    signatures: tuple[tuple[int, bytes], ...]

    def encode(self) -> bytes:
        """Write the certificate: "FCC1", height, round, block, set, count, then the signatures.

        Raises:
            UsageError: A number, a size or the order is out of range.
        """
        try:
            head = _CERTIFICATE.pack(
                _CERTIFICATE_MAGIC,
                self.height,
                self.round,
                self.block_id,
                self.validators_hash,
                len(self.signatures),
            )
            raw = head + b"".join(_ENTRY.pack(*entry) for entry in self.signatures)
            # struct pads or cuts bytes of a wrong size in silence: what was written must read
            # back as this.
            if Certificate.decode(raw) != self:
                raise UsageError("a certificate's ids have 32 bytes, its signatures 64")
        except (struct.error, EvidenceError) as error:
            raise UsageError(f"this is not a certificate: {error}") from None
        return raw

    @classmethod
    def decode(cls, raw: bytes) -> "Certificate":
        """Read a certificate. Checks its form, no signature.

        Raises:
            EvidenceError: Not exactly a certificate, or its signers are not ascending.
        """
        if len(raw) < _CERTIFICATE.size:
            raise EvidenceError("a certificate is cut short")
        magic, height, round, block_id, validators_hash, count = _CERTIFICATE.unpack_from(raw)
        if magic != _CERTIFICATE_MAGIC:
            raise EvidenceError("not a certificate of this version")
        if not 1 <= count <= MAX_VALIDATORS or len(raw) != _CERTIFICATE.size + count * _ENTRY.size:
            raise EvidenceError("a certificate's length does not fit its number of signatures")
        if height < FIRST_HEIGHT:
            raise EvidenceError("a certificate of height 0, which is the genesis")
        signatures = tuple(_ENTRY.iter_unpack(raw[_CERTIFICATE.size :]))
        indices = [index for index, _ in signatures]
        if any(right <= left for left, right in pairwise(indices)):
            raise EvidenceError("a certificate's signers are not distinct and ascending")
        return cls(height, round, block_id, validators_hash, signatures)

    @cached_property
    def hash(self) -> bytes:
        """What the next header names this certificate by, 32 bytes."""
        return sha256(_CERTIFICATE_DOMAIN, self.encode())

    def verify(self, chain_id: bytes, validators: ValidatorSet) -> None:
        """Check that exactly a quorum of this set committed to the block in one round.

        "At least a quorum" would split verifiers that stop early from those that check all.

        Raises:
            EvidenceError: It does not hold.
        """
        if self.validators_hash != validators.hash:
            raise EvidenceError("a certificate of another validator set")
        indices = [index for index, _ in self.signatures]
        if len(indices) != validators.quorum:
            raise EvidenceError(
                f"a certificate of {len(indices)} signatures; a quorum is {validators.quorum}"
            )
        if indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < validators.n:
            raise EvidenceError("a certificate's signers are not distinct, ascending members")
        if self.block_id == NO_BLOCK:
            raise EvidenceError("a certificate for no block")
        message = preimage(
            wire.VOTE_TYPE_COMMIT,
            chain_id,
            self.validators_hash,
            self.height,
            self.round,
            self.block_id,
            0,
        )
        for index, signature in self.signatures:
            verify(validators[index].public_key, signature, message)


def tx_root(envelopes: Sequence[bytes]) -> bytes:
    """Merkle root over a block's envelopes, signatures included; 32 bytes."""
    return merkle.root([merkle.leaf_hash(envelope) for envelope in envelopes])
