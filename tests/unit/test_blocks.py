"""Headers and certificates: fixed layouts, and exactly a quorum."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedchain_proto.blocks import (
    HEADER_SIZE,
    MAX_CERTIFICATE_BYTES,
    NO_CERTIFICATE,
    Certificate,
    Header,
    header_id,
    tx_root,
)
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.hashing import sha256
from fedchain_proto.votes import NO_BLOCK, preimage
from fedchain_proto.wire_pb2 import VOTE_TYPE_COMMIT, VOTE_TYPE_PREPARE
from tests.builders import certify, make_test_genesis

GENESIS, KEYS, _ = make_test_genesis(4)
CHAIN, SET = GENESIS.chain_id, GENESIS.validators
HEADER = Header(
    chain_id=CHAIN,
    height=1,
    parent_id=CHAIN,
    time_ms=GENESIS.created_ms + 1,
    proposer=2,
    tx_root=bytes([1]) * 32,
    log_size=5,
    log_root=bytes([2]) * 32,
    validators_hash=SET.hash,
    next_validators_hash=SET.hash,
    last_commit_hash=NO_CERTIFICATE,
    state_root=bytes([3]) * 32,
)
DIGESTS = [
    "chain_id",
    "parent_id",
    "tx_root",
    "log_root",
    "validators_hash",
    "next_validators_hash",
    "last_commit_hash",
    "state_root",
]


def u(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


# ---------------------------------------------------------------- header


def test_header_has_a_fixed_layout() -> None:
    """Every field has its place; the layout is written down here a second time."""
    expected = u(1, 4) + CHAIN + u(1, 8) + CHAIN + u(HEADER.time_ms, 8) + u(2, 4)
    expected += HEADER.tx_root + u(5, 8) + HEADER.log_root + SET.hash + SET.hash
    expected += NO_CERTIFICATE + HEADER.state_root
    assert HEADER.encode() == expected
    assert len(expected) == HEADER_SIZE == 288
    assert HEADER.id == header_id(expected) == sha256(b"fedchain/header/v1\0", expected)


def test_header_is_read_back() -> None:
    """Reading undoes writing."""
    assert Header.decode(HEADER.encode()) == HEADER


@pytest.mark.parametrize("field", DIGESTS)
def test_id_covers_every_digest(field: str) -> None:
    """Another root, parent or set is another block."""
    assert replace(HEADER, **{field: bytes([9]) * 32}).id != HEADER.id


@pytest.mark.parametrize("field", ["height", "time_ms", "proposer", "log_size"])
def test_id_covers_every_number(field: str) -> None:
    """Another height, time, leader or size is another block."""
    assert replace(HEADER, **{field: 77}).id != HEADER.id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, bytes(31)) for field in DIGESTS),
        *((field, bytes(33)) for field in DIGESTS),
        ("version", 2),
        ("height", 0),
        ("height", -1),
        ("height", 2**64),
        ("time_ms", -1),
        ("time_ms", 2**53),
        ("time_ms", 2**64),
        ("time_ms", 1.5),
        ("proposer", 2**32),
        ("proposer", -1),
        ("log_size", 2**64),
    ],
)
def test_header_is_never_cut_to_fit(field: str, value: Any) -> None:
    """struct would pad and cut bytes in silence: what does not fit is refused."""
    changes: dict[str, Any] = {field: value}
    with pytest.raises(UsageError):
        replace(HEADER, **changes).encode()


def test_other_bytes_are_no_header() -> None:
    """Another length, version, height 0, or a time beyond any clock is refused."""
    raw = HEADER.encode()
    height, time = 4 + 32, 4 + 32 + 8 + 32
    for wrong in (
        b"",
        raw[:-1],
        raw + b"\0",
        u(0, 4) + raw[4:],
        u(2, 4) + raw[4:],
        raw[:height] + u(0, 8) + raw[height + 8 :],
        raw[:time] + u(2**53, 8) + raw[time + 8 :],
        bytes(HEADER_SIZE),
    ):
        with pytest.raises(EvidenceError):
            Header.decode(wrong)


@given(
    st.binary(min_size=72, max_size=72),
    st.integers(0, 2**53 - 1),
    st.binary(min_size=HEADER_SIZE - 84, max_size=HEADER_SIZE - 84),
)
def test_any_header_bytes_read_back(before: bytes, time_ms: int, after: bytes) -> None:
    """One header has one encoding: what can be read is written as it was."""
    raw = u(1, 4) + before + u(time_ms, 8) + after
    try:
        header = Header.decode(raw)
    except EvidenceError:
        return
    assert header.encode() == raw
    assert header.id == header_id(raw)


# ---------------------------------------------------------------- certificate


@pytest.mark.parametrize("n", range(1, 8))
def test_certificate_of_a_quorum_holds(n: int) -> None:
    """For every set size the first quorum makes a block final."""
    genesis, keys, _ = make_test_genesis(n)
    header = replace(HEADER, chain_id=genesis.chain_id, validators_hash=genesis.validators.hash)
    certificate = certify(header, genesis, keys, round=3)
    assert len(certificate.signatures) == genesis.validators.quorum
    certificate.verify(genesis.chain_id, genesis.validators)


def test_certificate_has_a_fixed_layout() -> None:
    """Every field has its place; the layout is written down here a second time."""
    certificate = certify(HEADER, GENESIS, KEYS, round=3)
    expected = b"FCC1" + u(1, 8) + u(3, 4) + HEADER.id + SET.hash + u(3, 2)
    for index, signature in certificate.signatures:
        expected += u(index, 2) + signature
    assert certificate.encode() == expected
    assert certificate.hash == sha256(b"fedchain/certificate/v1\0", expected)
    assert Certificate.decode(expected) == certificate


def signed(*indices: int, **changes: Any) -> Certificate:
    """A certificate with the signatures of these validators; `changes` go into what they sign."""
    fields: dict[str, Any] = {
        "type": VOTE_TYPE_COMMIT,
        "chain_id": CHAIN,
        "validators_hash": SET.hash,
        "height": 1,
        "round": 3,
        "block_id": HEADER.id,
        "prepared": 0,
    }
    message = preimage(**(fields | changes))
    signatures = tuple((index, KEYS[index].sign(message)) for index in indices)
    return Certificate(1, 3, HEADER.id, SET.hash, signatures)


def test_any_quorum_will_do() -> None:
    """Which of the validators signed does not matter."""
    for indices in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)):
        signed(*indices).verify(CHAIN, SET)


@pytest.mark.parametrize("indices", [(), (0,), (0, 1), (0, 1, 2, 3)])
def test_exactly_a_quorum_signs(indices: tuple[int, ...]) -> None:
    """Fewer prove nothing; more would split verifiers that stop early from those that go on."""
    with pytest.raises(EvidenceError, match="quorum"):
        signed(*indices).verify(CHAIN, SET)


@pytest.mark.parametrize("indices", [(0, 0, 1), (0, 2, 1), (1, 1, 1)])
def test_signers_are_distinct_and_ascending(indices: tuple[int, ...]) -> None:
    """Signers are counted, never signatures; another order would be another hash."""
    certificate = signed(*indices)
    with pytest.raises(EvidenceError, match="ascending"):
        certificate.verify(CHAIN, SET)
    with pytest.raises(UsageError):
        certificate.encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"type": VOTE_TYPE_PREPARE},
        {"chain_id": bytes(32)},
        {"validators_hash": bytes(32)},
        {"height": 2},
        {"round": 4},
        {"block_id": bytes([1]) * 32},
        {"prepared": 1},
    ],
)
def test_signatures_of_other_votes_do_not_count(changes: dict[str, Any]) -> None:
    """A PREPARE, or a COMMIT of another chain, set, height, round or block, finalises nothing."""
    with pytest.raises(EvidenceError, match="does not hold"):
        signed(0, 1, 2, **changes).verify(CHAIN, SET)


def test_every_signature_is_checked() -> None:
    """One bad signature at any place spoils the certificate."""
    good = signed(0, 1, 2)
    for place in range(3):
        signatures = list(good.signatures)
        signatures[place] = (signatures[place][0], KEYS[3].sign(b"something else"))
        with pytest.raises(EvidenceError, match="does not hold"):
            replace(good, signatures=tuple(signatures)).verify(CHAIN, SET)


def test_strangers_and_other_sets_do_not_count() -> None:
    """A signer outside the set, another set's certificate, a certificate for no block."""
    good = signed(0, 1, 2)
    outside = (*good.signatures[:2], (4, bytes(64)))
    with pytest.raises(EvidenceError, match="members"):
        replace(good, signatures=outside).verify(CHAIN, SET)
    larger = make_test_genesis(5)[0].validators
    with pytest.raises(EvidenceError, match="another validator set"):
        good.verify(CHAIN, larger)
    with pytest.raises(EvidenceError, match="no block"):
        replace(signed(0, 1, 2, block_id=NO_BLOCK), block_id=NO_BLOCK).verify(CHAIN, SET)


def test_any_flipped_bit_is_noticed() -> None:
    """No bit of a certificate can change without a check failing."""
    raw = signed(0, 1, 2).encode()
    for place in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(EvidenceError):
            Certificate.decode(bytes(changed)).verify(CHAIN, SET)


def test_other_bytes_are_no_certificate() -> None:
    """Cut, lengthened, miscounted, of another format or of height 0."""
    raw = signed(0, 1, 2).encode()
    count = raw[: 4 + 8 + 4 + 32 + 32]
    for wrong in (
        b"",
        raw[:-1],
        raw + b"\0",
        raw[:40],
        b"FCC2" + raw[4:],
        raw[:4] + u(0, 8) + raw[12:],
        count + u(0, 2),
        count + u(2, 2) + raw[len(count) + 2 :],
        count + u(101, 2) + b"".join(u(i, 2) + bytes(64) for i in range(101)),
        bytes(MAX_CERTIFICATE_BYTES),
    ):
        with pytest.raises(EvidenceError):
            Certificate.decode(wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 0},
        {"height": 2**64},
        {"round": -1},
        {"round": 2**32},
        {"block_id": bytes(31)},
        {"block_id": bytes(33)},
        {"validators_hash": b""},
        {"signatures": ()},
        {"signatures": ((0, bytes(63)),)},
        {"signatures": ((0, bytes(65)),)},
        {"signatures": ((-1, bytes(64)),)},
        {"signatures": ((2**16, bytes(64)),)},
        {"signatures": tuple((i, bytes(64)) for i in range(101))},
    ],
)
def test_certificate_is_never_cut_to_fit(changes: dict[str, Any]) -> None:
    """What does not fit the layout is refused, not padded."""
    with pytest.raises(UsageError):
        replace(signed(0, 1, 2), **changes).encode()


@given(st.binary(max_size=400))
def test_junk_earns_an_evidence_error(raw: bytes) -> None:
    """Whatever comes, the readers say no and nothing else."""
    for read in (Certificate.decode, Header.decode):
        with pytest.raises(EvidenceError):
            read(b"FCC1" + raw)


# ---------------------------------------------------------------- transactions


def test_transaction_root_covers_whole_envelopes_in_order() -> None:
    """Another byte, order or number of envelopes is another root."""
    lists = [[], [b"a"], [b"a", b"b"], [b"b", b"a"], [b"ab"], [b"a", b"b", b"b"], [b""]]
    assert len({tx_root(envelopes) for envelopes in lists}) == len(lists)
    leaves = [sha256(b"\0", b"a"), sha256(b"\0", b"b")]
    assert tx_root([b"a", b"b"]) == sha256(b"\x01", *leaves)
