"""Receipts: nothing in one is believed."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import NO_CERTIFICATE, Certificate, Header, tx_root
from fedchain_proto.envelope import pae, seal
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.receipts import MAX_RECEIPT_BYTES, make_receipt, verify_receipt, verify_receipts
from fedchain_proto.votes import sign_vote
from tests.builders import certify, key, make_test_genesis, sealed

GENESIS, KEYS, ADMISSION = make_test_genesis(4)
SET = GENESIS.validators


def revoked(reason: str, chain_id: bytes = GENESIS.chain_id) -> bytes:
    statement = wire.MemberRevoked(chain_id=chain_id, name="client-00", reason=reason)
    return sealed(statement, ADMISSION[0])


ENVELOPES = [revoked(f"reason {i}") for i in range(5)]


def header(envelopes: list[bytes], **changes: Any) -> Header:
    fields: dict[str, Any] = {
        "chain_id": GENESIS.chain_id,
        "height": 1,
        "parent_id": GENESIS.chain_id,
        "time_ms": GENESIS.created_ms + 1,
        "proposer": 0,
        "tx_root": tx_root(envelopes),
        "log_size": len(envelopes),
        "log_root": tx_root(envelopes),  # the first block's transactions are the whole log
        "validators_hash": SET.hash,
        "next_validators_hash": SET.hash,
        "last_commit_hash": NO_CERTIFICATE,
        "state_root": bytes(32),
    }
    return Header(**(fields | changes))


def receipt(index: int = 2, envelopes: list[bytes] = ENVELOPES, **changes: Any) -> wire.Receipt:
    """A receipt for one envelope, as a message to alter; `changes` go into the header."""
    head = header(envelopes, **changes)
    certificate = certify(head, GENESIS, KEYS)
    path = merkle.path([merkle.leaf_hash(envelope) for envelope in envelopes], index)
    raw = make_receipt(envelopes[index], path, head.encode(), certificate.encode())
    return wire.Receipt.FromString(raw)


def certify_as(head: Header, *, height: int) -> Certificate:
    """Let a quorum commit to a header's id at a height that is not its own."""
    signatures = []
    for index in range(SET.quorum):
        vote = sign_vote(
            KEYS[index],
            GENESIS.chain_id,
            SET.hash,
            wire.VOTE_TYPE_COMMIT,
            height,
            0,
            head.id,
            0,
            index,
        )
        signatures.append((index, vote.signature))
    return Certificate(height, 0, head.id, SET.hash, tuple(signatures))


def check(message: wire.Receipt) -> None:
    verify_receipt(message.SerializeToString(), GENESIS)


def test_receipt_holds_for_every_transaction() -> None:
    """Each transaction of a block has one, and it says what was committed where."""
    for index, envelope in enumerate(ENVELOPES):
        raw = receipt(index).SerializeToString()
        verified = verify_receipt(raw, GENESIS)
        assert verified.signed.raw == envelope
        assert verified.leaf_index == index
        assert verified.header == header(ENVELOPES)
        assert verified.raw == raw
        assert isinstance(verified.statement, wire.MemberRevoked)
        assert verified.statement.reason == f"reason {index}"


def test_envelope_signatures_are_checked_with_keys_at_hand() -> None:
    """With the members' keys a quorum that let a bad signature through is found out."""
    raw = receipt().SerializeToString()
    known = {ADMISSION[0].key_id: ADMISSION[0].public}
    verify_receipt(raw, GENESIS, known.get)
    with pytest.raises(EvidenceError, match="not known"):
        verify_receipt(raw, GENESIS, {}.get)
    forged = wire.Envelope.FromString(ENVELOPES[0])
    forged.signatures[0].signature = bytes(64)
    raw = receipt(0, [forged.SerializeToString()]).SerializeToString()
    verify_receipt(raw, GENESIS)
    with pytest.raises(EvidenceError, match="does not hold"):
        verify_receipt(raw, GENESIS, known.get)


def test_any_flipped_bit_is_noticed() -> None:
    """No byte of a receipt can change: every one is under a hash, a signature or the form."""
    raw = receipt().SerializeToString()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << place % 8
        with pytest.raises(EvidenceError):
            verify_receipt(bytes(changed), GENESIS)


def test_receipts_that_share_a_certificate_hold_each_on_its_own() -> None:
    """Beside an honest receipt under the same certificate, no byte of another can change."""
    honest, other = (receipt(index).SerializeToString() for index in (1, 2))
    together = verify_receipts([honest, other, honest], GENESIS)
    assert together == [verify_receipt(raw, GENESIS) for raw in (honest, other, honest)]
    assert verify_receipts([], GENESIS) == []
    for place in range(len(other)):
        changed = bytearray(other)
        changed[place] ^= 1 << place % 8
        with pytest.raises(EvidenceError):
            verify_receipts([honest, bytes(changed)], GENESIS)


def test_receipt_of_another_chain_is_refused() -> None:
    """A receipt is checked against the pinned genesis and no other."""
    other = make_test_genesis(4, name="other-chain")[0]
    with pytest.raises(EvidenceError, match="another chain"):
        verify_receipt(receipt().SerializeToString(), other)


def test_statement_of_another_chain_is_refused() -> None:
    """Even under a valid certificate: a quorum that let it in broke its rules."""
    with pytest.raises(EvidenceError, match="statement of another chain"):
        check(receipt(0, [revoked("x", bytes(32))]))


def test_other_validator_set_is_refused_in_words() -> None:
    """This version knows the genesis's set only, and says so."""
    with pytest.raises(EvidenceError, match="this version follows none"):
        check(receipt(validators_hash=bytes(32)))


def test_certificate_must_be_this_headers() -> None:
    """A certificate of another block or height proves nothing about this one."""
    for other in (header(ENVELOPES, height=2), header(ENVELOPES, time_ms=1)):
        message = receipt()
        message.certificate = certify(other, GENESIS, KEYS).encode()
        with pytest.raises(EvidenceError, match="another block"):
            check(message)
    message = receipt()
    head = header(ENVELOPES)
    wrong_height = certify_as(head, height=2)
    wrong_height.verify(GENESIS.chain_id, SET)  # a quorum really signed that
    message.certificate = wrong_height.encode()
    with pytest.raises(EvidenceError, match="another block"):
        check(message)
    claimed = replace(certify(header(ENVELOPES, time_ms=1), GENESIS, KEYS), block_id=head.id)
    message.certificate = claimed.encode()
    with pytest.raises(EvidenceError, match="does not hold"):
        check(message)


def test_certificate_of_fewer_is_refused() -> None:
    """Two of four validators make nothing final."""
    message = receipt()
    full = certify(header(ENVELOPES), GENESIS, KEYS)
    message.certificate = replace(full, signatures=full.signatures[:2]).encode()
    with pytest.raises(EvidenceError, match="quorum"):
        check(message)


def test_envelope_must_be_in_the_log() -> None:
    """Another envelope, position or size is not what the path proves."""
    other = receipt()
    other.envelope = revoked("never committed")
    moved = receipt()
    moved.path.leaf_index = 3
    resized = receipt()
    resized.path.tree_size = 6
    outside = receipt()
    outside.path.leaf_index = 5
    for wrong in (other, moved, resized, outside):
        with pytest.raises(EvidenceError):
            check(wrong)


def test_path_is_bounded_and_in_shape() -> None:
    """Hashes too many, too few or of another size are refused before they are walked."""
    long = receipt()
    long.path.hashes.extend([bytes(32)] * 65)
    short = receipt()
    del short.path.hashes[-1]
    cut = receipt()
    cut.path.hashes[0] = cut.path.hashes[0][:31]
    missing = receipt()
    missing.ClearField("path")
    for wrong in (long, short, cut, missing):
        with pytest.raises(EvidenceError):
            check(wrong)


def test_committed_junk_is_no_statement() -> None:
    """What a quorum certified must still be an envelope with a statement that we know."""
    with pytest.raises(EvidenceError):
        check(receipt(0, [b"junk"]))
    foreign = seal("text/plain", b"hello", [key(1)])
    with pytest.raises(EvidenceError, match="type of statement"):
        check(receipt(0, [foreign]))


def test_unknown_fields_are_refused_at_both_depths() -> None:
    """A receipt carries nothing that nobody reads."""
    outer, inner = receipt(), receipt()
    outer.MergeFromString(b"\x7a\x01x")
    inner.path.MergeFromString(b"\x7a\x01x")
    for wrong in (outer, inner):
        with pytest.raises(EvidenceError, match="superfluous"):
            check(wrong)


def test_missing_parts_are_refused() -> None:
    """Each part is needed."""
    for part in ("envelope", "header", "certificate"):
        message = receipt()
        message.ClearField(part)
        with pytest.raises(EvidenceError):
            check(message)


def test_size_is_bounded() -> None:
    """An oversized receipt is neither written nor parsed."""
    message = receipt()
    path = merkle.Path(0, 1, ())
    with pytest.raises(UsageError):
        make_receipt(bytes(MAX_RECEIPT_BYTES), path, message.header, message.certificate)
    with pytest.raises(EvidenceError, match="more than"):
        verify_receipt(bytes(MAX_RECEIPT_BYTES + 1), GENESIS)
    with pytest.raises(UsageError):
        make_receipt(b"x", merkle.Path(-1, 1, ()), message.header, message.certificate)


@given(st.binary(max_size=400))
def test_junk_earns_an_evidence_error(raw: bytes) -> None:
    """Whatever comes, the reader says no and nothing else."""
    with pytest.raises(EvidenceError):
        verify_receipt(raw, GENESIS)


def test_signatures_cover_the_preauthentication_encoding() -> None:
    """The certified envelope's signature is DSSE's, as any other tool would check it."""
    verified = verify_receipt(receipt().SerializeToString(), GENESIS)
    signed = verified.signed
    expected = ADMISSION[0].sign(pae(signed.payload_type, signed.payload))
    assert signed.signatures == ((ADMISSION[0].key_id, expected),)
