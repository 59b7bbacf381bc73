"""The envelope that a statement travels in: signed once, carried and stored verbatim.

DSSE v1 (https://github.com/secure-systems-lab/dsse): the signatures cover PAE(type, payload).
Nothing here looks into the payload; statements.py does, after the signatures have held.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.hashing import DIGEST_SIZE, sha256
from fedchain_proto.keys import SIGNATURE_SIZE, SigningKey, verify

MAX_ENVELOPE_BYTES = 1 << 20
MAX_PAYLOAD_TYPE = 127
MAX_SIGNATURES = 128

_TRANSACTION = b"fedchain/tx/v1\0"
# Tag bytes (field number << 3 | wire type 2) of the length-delimited fields of wire.proto.
_FIELD_1, _FIELD_2, _FIELD_3 = b"\x0a", b"\x12", b"\x1a"
_KEY_ID_HEAD = _FIELD_1 + bytes([DIGEST_SIZE])
_SIGNATURE_HEAD = _FIELD_2 + bytes([SIGNATURE_SIZE])
_ENTRY_HEAD = _FIELD_3 + bytes([2 + DIGEST_SIZE + 2 + SIGNATURE_SIZE])


@dataclass(frozen=True, slots=True)
class Signed:
    """A decoded envelope. Its signatures may not have been verified yet.

    Attributes:
        raw: The whole envelope as received: what is stored, hashed into blocks, and sent on.
        payload_type: Kind and version of the payload.
        payload: Serialised statement.
        signatures: Pairs (key id 32 bytes, signature 64 bytes), ascending by key id.
        tx_id: Transaction id, 32 bytes: names the payload, whoever signed it.
        envelope_hash: SHA-256 of `raw`: names payload and signatures; keys caches.
    """

    raw: bytes
    payload_type: str
    payload: bytes
    signatures: tuple[tuple[bytes, bytes], ...]
    tx_id: bytes
    envelope_hash: bytes


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding of DSSE v1: what is signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def transaction_id(payload_type: str, payload: bytes) -> bytes:
    """Name a payload, signatures excluded; 32 bytes. Deduplicates, and nothing else."""
    return sha256(_TRANSACTION, pae(payload_type, payload))


def seal(payload_type: str, payload: bytes, keys: Sequence[SigningKey]) -> bytes:
    """Sign a payload with every key; the bytes of the envelope.

    Raises:
        UsageError: No key, one key twice, or the envelope would be too large.
    """
    message = pae(payload_type, payload)
    signatures = sorted((key.key_id, key.sign(message)) for key in keys)
    raw = _encode(payload_type, payload, signatures)
    try:
        decode(raw)
    except EvidenceError as error:
        raise UsageError(f"this cannot be sealed: {error}") from None
    return raw


def decode(raw: bytes) -> Signed:
    """Take an envelope apart. Verifies no signature.

    Raises:
        EvidenceError: Too large, not exactly an envelope, or signatures out of shape or order.
    """
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise EvidenceError(f"an envelope of more than {MAX_ENVELOPE_BYTES} bytes")
    try:
        message = wire.Envelope.FromString(raw)
    except (DecodeError, UnicodeDecodeError):  # the latter where protobuf is pure Python
        raise EvidenceError("not an envelope") from None
    payload_type, payload = message.payload_type, message.payload
    signatures = tuple((entry.key_id, entry.signature) for entry in message.signatures)
    _check_shape(payload_type, payload, signatures)
    # One payload and set of signatures has one envelope. Else anybody on the way could make
    # another one with an unknown, repeated or reordered field, and "verbatim" would mean little.
    if _encode(payload_type, payload, signatures) != raw:
        raise EvidenceError("an envelope with unknown, repeated or misplaced fields")
    tx_id = transaction_id(payload_type, payload)
    return Signed(raw, payload_type, payload, signatures, tx_id, sha256(raw))


def verify_signatures(signed: Signed, key_of: Callable[[bytes], bytes | None]) -> None:
    """Check every listed signature.

    Args:
        signed: A decoded envelope.
        key_of: Public key (32 bytes) of a key id, None if it is not known.

    Raises:
        EvidenceError: A signer is not known, or a signature does not hold.
    """
    # Every key is looked up before the first signature is verified: junk costs little.
    publics = []
    for key_id, _ in signed.signatures:
        public = key_of(key_id)
        if public is None:
            raise EvidenceError(f"signed by a key that is not known: {key_id.hex()}")
        publics.append(public)
    message = pae(signed.payload_type, signed.payload)
    for public, (_, signature) in zip(publics, signed.signatures, strict=True):
        verify(public, signature, message)


def _check_shape(
    payload_type: str, payload: bytes, signatures: Sequence[tuple[bytes, bytes]]
) -> None:
    if not 0 < len(payload_type) <= MAX_PAYLOAD_TYPE or not payload_type.isascii():
        raise EvidenceError("an envelope's payload type is not a short ASCII string")
    if not payload:
        raise EvidenceError("an envelope without a payload")
    if not 0 < len(signatures) <= MAX_SIGNATURES:
        raise EvidenceError(f"an envelope has 1 to {MAX_SIGNATURES} signatures")
    previous = b""
    for key_id, signature in signatures:
        if len(key_id) != DIGEST_SIZE or len(signature) != SIGNATURE_SIZE:
            raise EvidenceError("an envelope's key id or signature has a wrong size")
        if key_id <= previous:
            raise EvidenceError("an envelope's signers are not distinct and ascending")
        previous = key_id


def _encode(payload_type: str, payload: bytes, signatures: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Write the Envelope of wire.proto by hand, so that no library's release can move a byte.

    Encoding: https://protobuf.dev/programming-guides/encoding. Sizes as `_check_shape` wants.
    """
    kind = payload_type.encode("utf-8")
    parts = [_FIELD_1, _varint(len(kind)), kind, _FIELD_2, _varint(len(payload)), payload]
    for key_id, signature in signatures:
        parts += (_ENTRY_HEAD, _KEY_ID_HEAD, key_id, _SIGNATURE_HEAD, signature)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
