"""Votes: the fixed-width bytes that validators sign, and the check of one vote.

The one preimage that is rebuilt, never a re-encoded protobuf: everything that could make a vote
mean something else (chain, set, height, round, type, block) is in it at a fixed place.
"""

import struct

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.hashing import DIGEST_SIZE
from fedchain_proto.keys import SIGNATURE_SIZE, SigningKey, verify
from fedchain_proto.strictwire import parse_strict
from fedchain_proto.trust import ValidatorSet
from fedchain_proto.wire_pb2 import VoteType

NO_BLOCK = bytes(DIGEST_SIZE)
MAX_HEIGHT = 2**64 - 1
MAX_ROUND = 2**32 - 1
MAX_VOTE_BYTES = 512

# domain, type, chain id, validators' hash, height, round, block id, prepared round + 1
_PREIMAGE = struct.Struct("<17sB32s32sQI32sI")
_DOMAIN = b"fedchain/vote/v1\0"


def preimage(
    type: int,
    chain_id: bytes,
    validators_hash: bytes,
    height: int,
    round: int,
    block_id: bytes,
    prepared: int,
) -> bytes:
    """Build what a vote's signature covers; 130 bytes, little-endian.

    Args:
        type: A VoteType.
        chain_id: 32 bytes.
        validators_hash: Hash of the validator set in force, 32 bytes.
        height: Height that is voted on, from 1.
        round: Round that is voted in.
        block_id: 32 bytes, or empty for a ROUND_CHANGE without a lock.
        prepared: ROUND_CHANGE with a lock: its round + 1; else 0.

    Raises:
        UsageError: A number or a size is out of range.
    """
    block = block_id or NO_BLOCK
    if not len(chain_id) == len(validators_hash) == len(block) == DIGEST_SIZE:
        raise UsageError("a vote's chain id, validators' hash and block id have 32 bytes each")
    try:
        return _PREIMAGE.pack(
            _DOMAIN, type, chain_id, validators_hash, height, round, block, prepared
        )
    except struct.error as error:
        raise UsageError(f"a number of a vote is out of range: {error}") from None


def sign_vote(
    key: SigningKey,
    chain_id: bytes,
    validators_hash: bytes,
    type: VoteType.ValueType,
    height: int,
    round: int,
    block_id: bytes,
    prepared: int,
    index: int,
) -> wire.SignedVote:
    """Sign one vote; arguments as in `preimage`, `index` is the signer's place in the set.

    Raises:
        UsageError: A number or a size is out of range, or does not fit the type.
    """
    message = preimage(type, chain_id, validators_hash, height, round, block_id, prepared)
    try:
        vote = wire.SignedVote(
            type=type,
            height=height,
            round=round,
            block_id=block_id,
            prepared_round=prepared,
            validator=index,
            validators_hash=validators_hash,
            signature=key.sign(message),
        )
        _check_fields(vote)
    except (ValueError, EvidenceError) as error:
        raise UsageError(f"this is not a vote: {error}") from None
    return vote


def decode_vote(raw: bytes) -> wire.SignedVote:
    """Read a vote that stands alone (in evidence, in a journal). Verifies nothing.

    Raises:
        EvidenceError: Not exactly one vote.
    """
    if len(raw) > MAX_VOTE_BYTES:
        raise EvidenceError(f"a vote of more than {MAX_VOTE_BYTES} bytes")
    return parse_strict(wire.SignedVote, raw)


def check_vote(vote: wire.SignedVote, chain_id: bytes, validators: ValidatorSet) -> None:
    """Check a vote of a member of `validators`: fields that fit its type, and the signature.

    Raises:
        EvidenceError: It does not hold.
    """
    _check_fields(vote)
    if vote.validators_hash != validators.hash:
        raise EvidenceError("a vote of another validator set")
    if vote.validator >= validators.n:
        raise EvidenceError(f"a vote of validator {vote.validator} of {validators.n}")
    message = preimage(
        vote.type,
        chain_id,
        vote.validators_hash,
        vote.height,
        vote.round,
        vote.block_id,
        vote.prepared_round,
    )
    verify(validators[vote.validator].public_key, vote.signature, message)


def _check_fields(vote: wire.SignedVote) -> None:
    """Check what needs no set: sizes, and that a vote of this type can say this."""
    if len(vote.signature) != SIGNATURE_SIZE or len(vote.validators_hash) != DIGEST_SIZE:
        raise EvidenceError("a vote's signature or validators' hash has a wrong size")
    if vote.height < 1:
        raise EvidenceError("a vote on height 0, which is the genesis")
    if vote.block_id and (len(vote.block_id) != DIGEST_SIZE or vote.block_id == NO_BLOCK):
        raise EvidenceError("a vote's block id is not one")
    if vote.type == wire.VOTE_TYPE_ROUND_CHANGE:
        if vote.round < 1:
            raise EvidenceError("a change to round 0")
        if bool(vote.block_id) != bool(vote.prepared_round):
            raise EvidenceError("a round change with half a lock")
        # prepared_round is the lock's round + 1, and the lock is from an earlier round.
        if vote.prepared_round > vote.round:
            raise EvidenceError("a round change whose lock is of that round or a later one")
    elif vote.type in (
        wire.VOTE_TYPE_PROPOSAL,
        wire.VOTE_TYPE_PREPARE,
        wire.VOTE_TYPE_COMMIT,
    ):
        if not vote.block_id or vote.prepared_round:
            raise EvidenceError("a vote for no block, or with a lock that its type has not")
    else:
        raise EvidenceError(f"a vote of the unknown type {vote.type}")
