"""What validators say to each other, between bytes and ``wire.ConsensusMessage``.

Reading bounds sizes and shape; it verifies no signature. Every refusal is an EvidenceError: a
peer can always send junk, and junk must never raise anything else (SmartBFT's panic on input).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import MAX_BLOCK_BYTES, MAX_BLOCK_TRANSACTIONS
from fedchain_proto.errors import EvidenceError
from fedchain_proto.strictwire import parse_strict
from fedchain_proto.trust import MAX_VALIDATORS

# A block, its header and framing, and a justification: 2 * 100 votes of under 200 bytes.
MAX_MESSAGE_BYTES: Final = MAX_BLOCK_BYTES + (1 << 18)
# prepared_round carries round + 1 in 32 bits. Nobody gets here: time-outs are seconds.
MAX_ROUND: Final = (1 << 32) - 2

_VOTE_TYPES: Final = {
    "vote": (wire.VOTE_TYPE_PREPARE, wire.VOTE_TYPE_COMMIT),
    "proposal": (wire.VOTE_TYPE_PROPOSAL,),
    "round_change": (wire.VOTE_TYPE_ROUND_CHANGE,),
}


def parse(data: bytes) -> wire.ConsensusMessage:
    """Read one message.

    Raises:
        EvidenceError: Too large, not exactly a message, or its parts do not fit its kind.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise EvidenceError(f"a message of {len(data)} bytes; {MAX_MESSAGE_BYTES} are allowed")
    message = parse_strict(wire.ConsensusMessage, data)
    kind = message.WhichOneof("body")
    if kind is None:
        raise EvidenceError("an empty message")
    if kind in _VOTE_TYPES:
        _check_vote_kind(message, kind)
    if kind == "proposal":
        proposal = message.proposal
        _check_block(proposal.HasField("block"), proposal.block)
        if max(len(proposal.round_changes), len(proposal.prepares)) > MAX_VALIDATORS:
            raise EvidenceError("a justification of more votes than there can be validators")
    elif kind == "round_change":
        _check_lock(message.round_change)
    elif kind == "decided":
        _check_block(message.decided.HasField("block"), message.decided.block)
    return message


def vote_of(message: wire.ConsensusMessage) -> wire.SignedVote | None:
    """The sender's own vote in a message of any kind that has one."""
    kind = message.WhichOneof("body")
    if kind == "vote":
        return message.vote
    if kind == "proposal":
        return message.proposal.vote
    if kind == "round_change":
        return message.round_change.vote
    return None


def _check_vote_kind(message: wire.ConsensusMessage, kind: str) -> None:
    vote = vote_of(message)
    if vote is None or vote.type not in _VOTE_TYPES[kind]:
        raise EvidenceError(f"a {kind} without a vote of its type")
    if vote.round > MAX_ROUND:
        raise EvidenceError(f"round {vote.round} is not one")


def _check_block(present: bool, block: wire.Block) -> None:
    if not present or len(block.envelopes) > MAX_BLOCK_TRANSACTIONS:
        raise EvidenceError("a message without its block, or with too large a one")


def _check_lock(change: wire.RoundChange) -> None:
    locked = bool(change.vote.prepared_round)
    if locked != change.HasField("block") or locked != bool(change.prepares):
        raise EvidenceError("a round change whose lock is not whole")
    if locked:
        _check_block(True, change.block)
    if len(change.prepares) > MAX_VALIDATORS:
        raise EvidenceError("a lock of more votes than there can be validators")


# ------------------------------------------------------------------ writing


def encode_vote(vote: wire.SignedVote) -> bytes:
    """A PREPARE or a COMMIT."""
    return wire.ConsensusMessage(vote=vote).SerializeToString()


def encode_proposal(
    vote: wire.SignedVote,
    block: wire.Block,
    round_changes: Iterable[wire.SignedVote] = (),
    prepares: Iterable[wire.SignedVote] = (),
) -> bytes:
    """A PROPOSAL; for round > 0 with the ROUND_CHANGEs, and PREPAREs, that justify it."""
    proposal = wire.Proposal(vote=vote, block=block, round_changes=round_changes, prepares=prepares)
    return wire.ConsensusMessage(proposal=proposal).SerializeToString()


def encode_round_change(
    vote: wire.SignedVote, block: wire.Block | None, prepares: Iterable[wire.SignedVote]
) -> bytes:
    """A ROUND_CHANGE, with the signer's lock if it has one."""
    change = wire.RoundChange(vote=vote, block=block, prepares=prepares)
    return wire.ConsensusMessage(round_change=change).SerializeToString()


def encode_lock(block: wire.Block, prepares: Iterable[wire.SignedVote]) -> bytes:
    """A lock as the journal keeps it: a round change without its vote."""
    return wire.RoundChange(block=block, prepares=prepares).SerializeToString()


def parse_lock(data: bytes) -> wire.RoundChange:
    """Read what ``encode_lock`` wrote.

    Raises:
        EvidenceError: Not that.
    """
    lock = parse_strict(wire.RoundChange, data)
    if not lock.HasField("block") or not lock.prepares:
        raise EvidenceError("a lock that is not whole")
    return lock


def encode_decided(block: wire.Block, certificate: bytes) -> bytes:
    """A decided block with its encoded certificate."""
    decided = wire.Decided(block=block, certificate=certificate)
    return wire.ConsensusMessage(decided=decided).SerializeToString()


def encode_tip(height: int) -> bytes:
    """The height of the sender's last decided block."""
    return wire.ConsensusMessage(tip=wire.Tip(height=height)).SerializeToString()
