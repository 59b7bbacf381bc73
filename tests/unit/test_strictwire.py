"""Strict protobuf: one meaning per message, at every depth."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import EvidenceError
from fedchain_proto.strictjson import strict_json
from fedchain_proto.strictwire import parse_strict
from tests.builders import make_test_genesis


def deep() -> wire.ConsensusMessage:
    """Four messages deep, with enums at the bottom and in a list."""
    vote = wire.SignedVote(type=wire.VOTE_TYPE_PREPARE, height=1, signature=bytes(64))
    block = wire.Block(header=bytes(288), envelopes=[b"one", b"two"])
    proposal = wire.Proposal(vote=vote, block=block, round_changes=[vote, vote], prepares=[vote])
    return wire.ConsensusMessage(proposal=proposal)


def parse(message: wire.ConsensusMessage) -> wire.ConsensusMessage:
    return parse_strict(wire.ConsensusMessage, message.SerializeToString())


def test_good_message_is_read() -> None:
    """Nothing is lost on the way."""
    assert parse(deep()) == deep()


def test_unknown_field_is_found_at_every_depth() -> None:
    """protobuf's own UnknownFieldSet would look at the top only."""
    for where in range(5):
        message = deep()
        inner = message.proposal
        places = [message, inner, inner.vote, inner.block, inner.round_changes[1]]
        places[where].MergeFromString(b"\xf8\x3f\x01")
        with pytest.raises(EvidenceError, match="superfluous"):
            parse(message)


@pytest.mark.parametrize("number", [0, 5, -1, 2**31 - 1, -(2**31)])
def test_unknown_enum_value_is_found_at_every_depth(number: int) -> None:
    """proto3 lets any number through; zero says nothing and is refused too."""
    for where in range(3):
        message = deep()
        inner = message.proposal
        [inner.vote, inner.round_changes[1], inner.prepares[0]][
            where
        ].type = wire.VoteType.ValueType(number)
        with pytest.raises(EvidenceError, match="unknown value"):
            parse(message)


def test_a_value_that_grows_cannot_hide_one_that_shrinks() -> None:
    """Lengths cannot be balanced: the one field that re-encodes longer is an unknown enum value."""
    # type = -1 in 5 bytes (protobuf writes 10) and 5 bytes of an unknown field.
    with pytest.raises(EvidenceError):
        parse_strict(wire.SignedVote, b"\x08\xff\xff\xff\xff\x0f" + b"\xfa\x3f\x02xx")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x08\x01\x08\x01",  # an enum twice
        b"\x08\x81\x00",  # a number in two bytes where one does
        b"\x08\x01\x10\x00",  # a default, written
        b"\x08\x81\x80\x80\x80\x10",  # 2**32 + 1, cut to 1
        b"\x08\x01\x18\x80\x80\x80\x80\x10",  # 2**32 in 32 bits, cut to 0
        b"\x0a\x01x",  # bytes where a number should be
        b"\x08",  # cut
        b"\x0f",  # a wire type that is none
        b"\x0b\x0c",  # a group
    ],
)
def test_other_forms_of_a_message_are_refused(raw: bytes) -> None:
    """Each message has a shortest form, and it is the only one."""
    with pytest.raises(EvidenceError):
        parse_strict(wire.SignedVote, raw)
    parse_strict(wire.SignedVote, b"\x08\x01")


def test_two_bodies_are_refused() -> None:
    """Of two members of a oneof protobuf would take the last."""
    tip = wire.ConsensusMessage(tip=wire.Tip(height=3)).SerializeToString()
    decided = wire.ConsensusMessage(decided=wire.Decided()).SerializeToString()
    parse_strict(wire.ConsensusMessage, tip)
    with pytest.raises(EvidenceError):
        parse_strict(wire.ConsensusMessage, tip + decided)


def test_text_is_utf8() -> None:
    """A string of other bytes is refused by the parser."""
    with pytest.raises(EvidenceError):
        parse_strict(wire.Envelope, b"\x0a\x02\xc3\x28")


def test_nested_groups_do_not_overflow() -> None:
    """Unknown groups in groups end in an error, not in a crash."""
    with pytest.raises(EvidenceError):
        parse_strict(wire.Tip, b"\xfb\x3f" * 200_000 + b"\xfc\x3f" * 200_000)


@given(st.binary(max_size=200))
def test_junk_raises_nothing_else(raw: bytes) -> None:
    """What is read is exactly as long as it came."""
    for kind in (wire.ConsensusMessage, wire.SignedVote, wire.Block):
        try:
            message = parse_strict(kind, raw)
        except EvidenceError:
            continue
        assert len(message.SerializeToString()) == len(raw)


# ---------------------------------------------------------------- JSON


def test_json_of_a_genesis_is_read() -> None:
    """Twin of the refusals below."""
    assert strict_json(make_test_genesis()[0].raw, 1 << 20)["name"] == "test-chain"


@pytest.mark.parametrize(
    "raw",
    [b'{"a":1,"a":1}', b"1.0", b"1e3", b"-0.0", b"NaN", b"Infinity", b"-Infinity", b"1 2", b"&"],
)
def test_lenient_json_is_refused(raw: bytes) -> None:
    """Repeated keys and numbers that are no integers have more than one meaning."""
    with pytest.raises(EvidenceError):
        strict_json(raw, 100)
    with pytest.raises(EvidenceError):
        strict_json(b'{"x":[' + raw + b"]}", 100)


NO_TEXT = """
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import decode
from fedchain_proto.errors import EvidenceError
from fedchain_proto.strictwire import parse_strict
for read in (lambda raw: parse_strict(wire.MemberRevoked, b"\\x12" + raw),
             lambda raw: decode(b"\\x0a" + raw)):
    for raw in (b"\\x02\\xff\\xfe", b"\\x03\\xed\\xa0\\x80", b"\\x02\\xc0\\x80"):
        try:
            read(raw)
        except EvidenceError:
            continue
        raise SystemExit(f"read {raw!r}")
"""


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_text_that_is_not_utf8_is_refused_by_every_protobuf(implementation: str) -> None:
    """Where protobuf is pure Python it raises another error, which would halt a validator."""
    environment = os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    command = [sys.executable, "-c", NO_TEXT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_is_bounded_in_size_and_depth() -> None:
    """Neither blanks without end nor nesting without end is read."""
    assert strict_json(b" 1", 2) == 1
    with pytest.raises(EvidenceError, match="larger"):
        strict_json(b" 1 ", 2)
    for opening in (b"[", b'{"a":'):
        with pytest.raises(EvidenceError, match="deep"):
            strict_json(opening * 100_000, 1 << 20)


@given(st.binary(max_size=100))
def test_junk_json_raises_nothing_else(raw: bytes) -> None:
    """A value or an EvidenceError."""
    try:
        strict_json(raw, 100)
    except EvidenceError:
        pass
    else:
        raw.decode("utf-8")
