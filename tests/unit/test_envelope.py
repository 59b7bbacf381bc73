"""The envelope: one form per payload and signers, every signature counts."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import (
    MAX_ENVELOPE_BYTES,
    MAX_SIGNATURES,
    decode,
    pae,
    seal,
    transaction_id,
    verify_signatures,
)
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import SigningKey
from tests.builders import key

KIND = "application/vnd.fedchain.test.v1+proto"
KNOWN = {key(i).key_id: key(i).public for i in range(4)}


def by_id(*numbers: int) -> list[SigningKey]:
    return sorted((key(i) for i in numbers), key=lambda holder: holder.key_id)


def message(*holders: SigningKey, payload: bytes = b"payload") -> wire.Envelope:
    """An envelope as protobuf holds it, its signatures in the order given."""
    signed = pae(KIND, payload)
    entries = [
        wire.Signature(key_id=holder.key_id, signature=holder.sign(signed)) for holder in holders
    ]
    return wire.Envelope(payload_type=KIND, payload=payload, signatures=entries)


def test_pae_is_dsse() -> None:
    """The example of the DSSE v1 protocol text."""
    kind = "http://example.com/HelloWorld"
    assert pae(kind, b"hello world") == b"DSSEv1 29 " + kind.encode() + b" 11 hello world"


def test_sealed_envelope_opens() -> None:
    """What goes in comes out, with ids and hashes over the bytes that travelled."""
    raw = seal(KIND, b"payload", [key(1), key(0)])
    signed = decode(raw)
    assert (signed.raw, signed.payload_type, signed.payload) == (raw, KIND, b"payload")
    assert [key_id for key_id, _ in signed.signatures] == [k.key_id for k in by_id(0, 1)]
    assert signed.tx_id == sha256(b"fedchain/tx/v1\0", pae(KIND, b"payload"))
    assert signed.envelope_hash == sha256(raw)
    verify_signatures(signed, KNOWN.get)


def test_envelope_is_what_protobuf_writes() -> None:
    """The hand-written encoder and protobuf's own agree, so that anybody's tool can read it."""
    for size in (1, 127, 128, 16_383, 16_384, 500_000):
        expected = message(*by_id(0, 1), payload=b"x" * size)
        assert seal(KIND, b"x" * size, [key(0), key(1)]) == expected.SerializeToString()


def test_transaction_id_leaves_signatures_out_and_the_envelope_hash_does_not() -> None:
    """One payload signed by others is the same transaction and another envelope."""
    one, two = decode(seal(KIND, b"x", [key(0)])), decode(seal(KIND, b"x", [key(1)]))
    assert one.tx_id == two.tx_id == transaction_id(KIND, b"x")
    assert one.envelope_hash != two.envelope_hash


def test_transaction_id_covers_type_and_payload() -> None:
    """Moving a byte between type and payload makes another transaction."""
    ids = {transaction_id(*case) for case in [("ab", b"c"), ("a", b"bc"), ("ab", b"d")]}
    assert len(ids) == 3


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=300), st.sets(st.integers(0, 3), min_size=1))
def test_every_payload_and_set_of_signers_survives(payload: bytes, signers: set[int]) -> None:
    """Sealing is independent of the order of the keys and is undone by decoding."""
    holders = [key(i) for i in sorted(signers)]
    raw = seal(KIND, payload, holders)
    assert raw == seal(KIND, payload, holders[::-1])
    verify_signatures(decode(raw), KNOWN.get)


def test_any_flipped_bit_is_noticed() -> None:
    """No bit of an envelope can change without decoding or a signature failing."""
    raw = seal(KIND, b"payload", [key(0), key(1)])
    for place in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(EvidenceError):
            verify_signatures(decode(bytes(changed)), KNOWN.get)


def test_unknown_signer_is_refused_before_anything_is_verified() -> None:
    """A key that nobody admitted signs nothing."""
    with pytest.raises(EvidenceError, match="not known"):
        verify_signatures(decode(seal(KIND, b"x", [key(99)])), KNOWN.get)


def test_one_bad_signature_spoils_the_envelope() -> None:
    """Every listed signature must hold: "some signature verifies" lets Bob sign for Alice."""
    envelope = message(*by_id(0, 1))
    envelope.signatures[1].signature = envelope.signatures[0].signature
    with pytest.raises(EvidenceError, match="does not hold"):
        verify_signatures(decode(envelope.SerializeToString()), KNOWN.get)


def test_signature_of_another_payload_does_not_count() -> None:
    """A signature cannot be moved to another payload or another type."""
    for kind, payload in ((KIND, b"other"), (KIND + "x", b"payload")):
        envelope = message(key(0))
        envelope.payload_type, envelope.payload = kind, payload
        with pytest.raises(EvidenceError, match="does not hold"):
            verify_signatures(decode(envelope.SerializeToString()), KNOWN.get)


def test_signers_are_distinct_and_ascending() -> None:
    """A signer counted twice, or another order, would be another envelope of one meaning."""
    first, second = by_id(0, 1)
    for holders in ((second, first), (first, first)):
        with pytest.raises(EvidenceError, match="ascending"):
            decode(message(*holders).SerializeToString())


def _without_signatures(envelope: wire.Envelope) -> None:
    del envelope.signatures[:]


def _crowd(envelope: wire.Envelope) -> None:
    del envelope.signatures[:]
    for i in range(MAX_SIGNATURES + 1):
        envelope.signatures.add(key_id=i.to_bytes(32, "big"), signature=bytes(64))


def _short_signature(envelope: wire.Envelope) -> None:
    envelope.signatures[0].signature = bytes(63)


def _long_key_id(envelope: wire.Envelope) -> None:
    envelope.signatures[0].key_id += b"\0"


def _no_payload(envelope: wire.Envelope) -> None:
    envelope.payload = b""


def _no_type(envelope: wire.Envelope) -> None:
    envelope.payload_type = ""


def _long_type(envelope: wire.Envelope) -> None:
    envelope.payload_type = "x" * 128


def _foreign_type(envelope: wire.Envelope) -> None:
    envelope.payload_type = "é"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_without_signatures, "signatures"),
        (_crowd, "signatures"),
        (_short_signature, "size"),
        (_long_key_id, "size"),
        (_no_payload, "without a payload"),
        (_no_type, "payload type"),
        (_long_type, "payload type"),
        (_foreign_type, "payload type"),
    ],
)
def test_envelope_out_of_shape_is_refused(
    change: Callable[[wire.Envelope], None], why: str
) -> None:
    """Each part has its size, and the error says which."""
    envelope = message(key(0))
    decode(envelope.SerializeToString())
    change(envelope)
    with pytest.raises(EvidenceError, match=why):
        decode(envelope.SerializeToString())


UNKNOWN = b"\x22\x01x"  # field 4, one byte


def test_other_encodings_of_one_envelope_are_refused() -> None:
    """Unknown, repeated, reordered fields and long numbers: none may carry a second form."""
    raw = seal(KIND, b"payload", [key(0)])
    kind_end = 2 + len(KIND)
    nested = wire.Envelope.FromString(raw)
    nested.signatures[0].MergeFromString(UNKNOWN)
    forms = [
        raw + UNKNOWN,
        UNKNOWN + raw,
        nested.SerializeToString(),
        raw[:kind_end] + raw,  # the type twice
        raw[kind_end:] + raw[:kind_end],  # the type last
        raw[:1] + bytes([raw[1] | 0x80, 0]) + raw[2:],  # its length in two bytes
        raw + b"\x00",
        raw[:-1],
        b"",
    ]
    for form in forms:
        with pytest.raises(EvidenceError):
            decode(form)


def test_size_is_bounded() -> None:
    """The largest envelope passes, one byte more is not even parsed."""
    room = MAX_ENVELOPE_BYTES - len(seal(KIND, b"x" * 1_000_000, [key(0)])) + 1_000_000
    assert len(decode(seal(KIND, b"x" * room, [key(0)])).raw) == MAX_ENVELOPE_BYTES
    with pytest.raises(UsageError):
        seal(KIND, b"x" * (room + 1), [key(0)])
    with pytest.raises(EvidenceError):
        decode(message(key(0), payload=b"x" * (room + 1)).SerializeToString())


def test_senseless_seals_are_refused() -> None:
    """No key, one key twice, no payload, a type that no reader would take."""
    with pytest.raises(UsageError):
        seal(KIND, b"x", [])
    with pytest.raises(UsageError):
        seal(KIND, b"x", [key(0), key(0)])
    with pytest.raises(UsageError):
        seal(KIND, b"", [key(0)])
    with pytest.raises(UsageError):
        seal("é", b"x", [key(0)])


@given(st.binary(max_size=400))
def test_junk_earns_an_evidence_error(raw: bytes) -> None:
    """Whatever comes, the reader says no and nothing else."""
    with pytest.raises(EvidenceError):
        decode(raw)


@given(st.data())
def test_damaged_envelope_earns_an_evidence_error(data: st.DataObject) -> None:
    """Cut, spliced and overwritten envelopes raise nothing but EvidenceError."""
    raw = bytearray(seal(KIND, b"payload", [key(0)]))
    at = data.draw(st.integers(0, len(raw)))
    raw[at : at + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    if bytes(raw) != seal(KIND, b"payload", [key(0)]):
        with pytest.raises(EvidenceError):
            verify_signatures(decode(bytes(raw)), KNOWN.get)
