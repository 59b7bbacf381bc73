"""From bytes to a statement whose signatures hold; each envelope is worked through once.

Says who signed, never whether he may: that is the policy's. What is remembered hangs on the bytes
alone, because a key id is the hash of its key, so one memory may serve several nodes of a process.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fedchain_proto.envelope import MAX_ENVELOPE_BYTES, Signed, decode, verify_signatures
from fedchain_proto.errors import EvidenceError
from fedchain_proto.hashing import sha256
from fedchain_proto.statements import Statement, parse

KeyLookup = Callable[[bytes], bytes | None]
"""Key id -> public key (32 bytes) whose hash it is, None if it is not known."""


class ForgeryError(EvidenceError):
    """Bytes that do not hold what they claim, and the auditor's claim that this breaks.

    Attributes:
        code: Stable kebab-case name, for programs.
        claim: "C1" for an encoding, "C4" for a signature, "C2" or "C3" for a block.
    """

    def __init__(self, message: str, *, code: str, claim: str) -> None:
        super().__init__(message)
        self.code = code
        self.claim = claim


@dataclass(frozen=True, slots=True)
class Verified:
    """An envelope whose every signature holds, and its statement; neither is ever changed."""

    signed: Signed
    statement: Statement


class VerificationCache:
    """What was verified lately, by the hash of the whole envelope, signatures included.

    By the transaction id it would let a known payload through under a garbage signature.

    Args:
        max_entries: Most envelopes remembered.
        max_bytes: Most bytes of envelopes remembered.
    """

    def __init__(self, max_entries: int = 16_384, max_bytes: int = 64 << 20) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, Verified] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, envelope_hash: bytes) -> Verified | None:
        """Return what was remembered, which then counts as new."""
        found = self._entries.get(envelope_hash)
        if found is not None:
            self._entries.move_to_end(envelope_hash)
        return found

    def put(self, verified: Verified) -> None:
        """Remember; the longest unused are forgotten to make room."""
        if verified.signed.envelope_hash in self._entries:
            return
        self._entries[verified.signed.envelope_hash] = verified
        self._bytes += len(verified.signed.raw)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            _, forgotten = self._entries.popitem(last=False)
            self._bytes -= len(forgotten.signed.raw)


def verify(raw: bytes, key_of: KeyLookup, cache: VerificationCache) -> Verified:
    """Take an envelope apart, check every listed signature, read the statement.

    Args:
        raw: From anyone.
        key_of: Keys that count here and now, revoked ones included.
        cache: Asked first; gets what holds.

    Raises:
        ForgeryError: Not an envelope or not a statement (C1), or not signed as it says (C4).
    """
    if len(raw) > MAX_ENVELOPE_BYTES:  # before anything is spent on it
        raise ForgeryError(
            f"an envelope of {len(raw)} bytes, more than {MAX_ENVELOPE_BYTES}",
            code="too-large",
            claim="C1",
        )
    found = cache.get(sha256(raw))
    if found is not None:
        return found
    signed = _decode(raw)
    try:
        verify_signatures(signed, key_of)
    except EvidenceError as error:
        raise ForgeryError(str(error), code="bad-signature", claim="C4") from error
    verified = Verified(signed, _parse(signed))
    cache.put(verified)
    return verified


def read(raw: bytes) -> tuple[Signed, Statement]:
    """Take an envelope apart and read the statement; its signatures are not looked at.

    Raises:
        ForgeryError: Not an envelope or not a statement (C1).
    """
    signed = _decode(raw)
    return signed, _parse(signed)


def _decode(raw: bytes) -> Signed:
    try:
        return decode(raw)
    except EvidenceError as error:
        raise ForgeryError(str(error), code="not-an-envelope", claim="C1") from error


def _parse(signed: Signed) -> Statement:
    try:
        return parse(signed.payload_type, signed.payload)
    except EvidenceError as error:
        raise ForgeryError(str(error), code="not-a-statement", claim="C1") from error
