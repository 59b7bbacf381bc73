"""Votes: a signature of one vote passes for no other."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.votes import NO_BLOCK, check_vote, decode_vote, preimage, sign_vote
from tests.builders import make_test_genesis

GENESIS, KEYS, _ = make_test_genesis(4)
CHAIN, SET = GENESIS.chain_id, GENESIS.validators
BLOCK = b"b" * 32
PROPOSAL, PREPARE, COMMIT, CHANGE = (
    wire.VOTE_TYPE_PROPOSAL,
    wire.VOTE_TYPE_PREPARE,
    wire.VOTE_TYPE_COMMIT,
    wire.VOTE_TYPE_ROUND_CHANGE,
)


def vote(**changes: Any) -> wire.SignedVote:
    """A COMMIT of validator 2 at height 7, round 3; `changes` go into what is signed."""
    settings: dict[str, Any] = {
        "chain_id": CHAIN,
        "validators_hash": SET.hash,
        "type": COMMIT,
        "height": 7,
        "round": 3,
        "block_id": BLOCK,
        "prepared": 0,
        "index": 2,
    }
    settings |= changes
    return sign_vote(KEYS[2], **settings)


def test_preimage_is_fixed_width() -> None:
    """Every field has its place; the layout is written down here a second time."""
    expected = b"fedchain/vote/v1\0" + bytes([3]) + CHAIN + SET.hash
    expected += (7).to_bytes(8, "little") + (3).to_bytes(4, "little") + BLOCK
    expected += (2).to_bytes(4, "little")
    assert preimage(3, CHAIN, SET.hash, 7, 3, BLOCK, 2) == expected
    assert len(expected) == 130


def test_no_block_is_zeros() -> None:
    """A round change without a lock signs 32 zero bytes."""
    expected = preimage(4, CHAIN, SET.hash, 7, 3, NO_BLOCK, 0)
    assert preimage(4, CHAIN, SET.hash, 7, 3, b"", 0) == expected


FIELDS = st.tuples(
    st.integers(0, 255),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
)


@given(FIELDS, FIELDS)
def test_preimages_differ_where_votes_do(one: Any, two: Any) -> None:
    """No two votes share a preimage, and it is undone by reading it."""
    assert (preimage(*one) == preimage(*two)) == (one == two)
    assert struct.unpack("<17xB32s32sQI32sI", preimage(*one)) == one


@pytest.mark.parametrize(
    "arguments",
    [
        (256, CHAIN, SET.hash, 7, 3, BLOCK, 0),
        (-1, CHAIN, SET.hash, 7, 3, BLOCK, 0),
        (3, CHAIN[:31], SET.hash, 7, 3, BLOCK, 0),
        (3, CHAIN, SET.hash + b"x", 7, 3, BLOCK, 0),
        (3, CHAIN, SET.hash, -1, 3, BLOCK, 0),
        (3, CHAIN, SET.hash, 2**64, 3, BLOCK, 0),
        (3, CHAIN, SET.hash, 7, 2**32, BLOCK, 0),
        (3, CHAIN, SET.hash, 7, 3, BLOCK[:31], 0),
        (3, CHAIN, SET.hash, 7, 3, BLOCK, 2**32),
        (3, CHAIN, SET.hash, 7, 3, BLOCK, -1),
        (3, CHAIN, SET.hash, 7.0, 3, BLOCK, 0),
    ],
)
def test_preimage_is_never_cut_to_fit(arguments: Any) -> None:
    """A number or an id out of range is refused, not wrapped, cut or padded."""
    with pytest.raises(UsageError):
        preimage(*arguments)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"type": PREPARE},
        {"type": PROPOSAL, "round": 0},
        {"height": 2**64 - 1, "round": 2**32 - 1},
        {"type": CHANGE, "block_id": b""},
        {"type": CHANGE, "prepared": 3},
        {"type": CHANGE, "prepared": 1},
    ],
)
def test_good_vote_holds(changes: dict[str, Any]) -> None:
    """Every type of vote is signed, checked, and read back from its bytes."""
    signed = vote(**changes)
    check_vote(signed, CHAIN, SET)
    assert decode_vote(signed.SerializeToString()) == signed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", PREPARE),
        ("type", PROPOSAL),
        ("height", 8),
        ("round", 4),
        ("block_id", b"c" * 32),
        ("validator", 1),
        ("signature", bytes(64)),
    ],
)
def test_altered_vote_does_not_hold(field: str, value: Any) -> None:
    """Replay across type, height, round, block or signer is not possible."""
    signed = vote()
    setattr(signed, field, value)
    with pytest.raises(EvidenceError, match="does not hold"):
        check_vote(signed, CHAIN, SET)


def test_lock_of_a_round_change_is_signed() -> None:
    """Block and prepared round of a lock are covered, and so is having none."""
    for field, value in (("block_id", b"c" * 32), ("prepared_round", 1)):
        signed = vote(type=CHANGE, prepared=2)
        setattr(signed, field, value)
        with pytest.raises(EvidenceError, match="does not hold"):
            check_vote(signed, CHAIN, SET)
    signed = vote(type=CHANGE, prepared=2)
    signed.block_id, signed.prepared_round = b"", 0
    with pytest.raises(EvidenceError, match="does not hold"):
        check_vote(signed, CHAIN, SET)


def test_vote_of_another_chain_or_set_does_not_hold() -> None:
    """Two consortia of equal members cannot replay each other, nor can two sets of one."""
    other = make_test_genesis(4, name="other-chain")[0]
    assert other.validators.hash == SET.hash
    with pytest.raises(EvidenceError, match="does not hold"):
        check_vote(vote(), other.chain_id, SET)
    larger = make_test_genesis(5)[0].validators
    with pytest.raises(EvidenceError, match="another validator set"):
        check_vote(vote(), CHAIN, larger)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("type", 0, "unknown type"),
        ("type", 5, "unknown type"),
        ("type", -1, "unknown type"),
        ("height", 0, "height 0"),
        ("block_id", b"", "no block"),
        ("block_id", bytes(32), "block id"),
        ("block_id", bytes(31), "block id"),
        ("block_id", bytes(33), "block id"),
        ("prepared_round", 1, "lock"),
        ("validator", 4, "of 4"),
        ("validator", 2**32 - 1, "of 4"),
        ("validators_hash", b"", "size"),
        ("validators_hash", bytes(32), "another validator set"),
        ("signature", b"", "size"),
        ("signature", bytes(65), "size"),
    ],
)
def test_vote_out_of_shape_is_refused(field: str, value: Any, why: str) -> None:
    """What no honest validator sends is refused before its signature is looked at."""
    signed = vote()
    setattr(signed, field, value)
    with pytest.raises(EvidenceError, match=why):
        check_vote(signed, CHAIN, SET)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": CHANGE, "block_id": b"", "prepared": 1},
        {"type": CHANGE, "prepared": 0},
        {"type": CHANGE, "prepared": 4},
        {"type": CHANGE, "block_id": b"", "round": 0},
        {"type": COMMIT, "prepared": 1},
        {"type": PREPARE, "block_id": b""},
        {"height": 0},
        {"type": 9},
        {"height": 2**64},
        {"round": -1},
        {"index": -1},
    ],
)
def test_senseless_vote_is_not_signed(changes: dict[str, Any]) -> None:
    """Half a lock, a lock of a later round, a change to round 0: never under our key."""
    with pytest.raises(UsageError):
        vote(**changes)


def test_overlong_vote_is_not_parsed() -> None:
    """The bound comes first: what is behind it may be a whole vote with a long tail."""
    with pytest.raises(EvidenceError, match="more than"):
        decode_vote(vote().SerializeToString() + b"\x7a" * 512)


def test_decoded_vote_is_nothing_but_a_vote() -> None:
    """Unknown fields and values, repeats and overlong input are refused."""
    raw = vote().SerializeToString()
    for form in (raw + b"\x78\x01", raw + raw, raw[:-1], b"", bytes(513), b"\x08\x05", raw * 3):
        with pytest.raises(EvidenceError):
            decode_vote(form)


@given(st.binary(max_size=200))
def test_junk_earns_an_evidence_error(raw: bytes) -> None:
    """Whatever comes, the reader says no and nothing else."""
    with pytest.raises(EvidenceError):
        check_vote(decode_vote(raw), CHAIN, SET)
