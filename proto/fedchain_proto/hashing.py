"""SHA-256 (FIPS 180-4) and the one text form of a digest."""

import hashlib

from fedchain_proto.errors import EvidenceError

DIGEST_SIZE = 32
_PREFIX = "sha256:"


def sha256(*parts: bytes | bytearray | memoryview) -> bytes:
    """Hash the concatenation of `parts`; 32 bytes."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.digest()


def digest_text(digest: bytes) -> str:
    """Name a digest with its algorithm: ``sha256:<64 hex digits>``."""
    return _PREFIX + digest.hex()


def parse_digest(text: str) -> bytes:
    """Read what `digest_text` wrote; bare hex is accepted.

    Raises:
        EvidenceError: Not 32 bytes of lower-case hex.
    """
    digits = text.removeprefix(_PREFIX)
    if len(digits) != 2 * DIGEST_SIZE or not set(digits) <= set("0123456789abcdef"):
        raise EvidenceError(f"not a SHA-256 digest: {text[:80]!r}")
    return bytes.fromhex(digits)


def short(digest: bytes) -> str:
    """First 12 hex digits, for people; never for comparison."""
    return digest.hex()[:12]
