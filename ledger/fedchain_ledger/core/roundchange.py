"""Locks and justifications: what carries a block that may be decided into a later round.

Castro & Liskov 1999, section 4.4 (view change); QBFT, arXiv:2002.03613, with values that carry no
round. If a block was decided in round r, q validators locked it there, every q ROUND_CHANGEs
include an honest one of those, and so the highest lock among them is that block's: nobody can
justify another. Only the highest needs its PREPAREs (sigp/anchor #592 demanded it of all).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import NO_CERTIFICATE, Certificate, Header, header_id, tx_root
from fedchain_proto.errors import EvidenceError

Verify = Callable[[wire.SignedVote], None]  # raises EvidenceError


@dataclass(frozen=True)
class Lock:
    """A block that q validators PREPAREd in one round.

    Attributes:
        round: Of the PREPAREs.
        block_id: 32 bytes.
        block: Its bytes as they travelled.
        prepares: Exactly q, ascending by validator.
    """

    round: int
    block_id: bytes
    block: wire.Block
    prepares: tuple[wire.SignedVote, ...]

    @property
    def key(self) -> tuple[int, bytes]:
        """What a ROUND_CHANGE names it by."""
        return self.round, self.block_id


def check_quorum(votes: Sequence[wire.SignedVote], quorum: int, template: wire.SignedVote) -> None:
    """Check, without signatures, that votes are exactly q of one type, height and round.

    Args:
        votes: To check; their signers must be distinct and ascending.
        quorum: q.
        template: Type, height, round, and the block id unless that is empty.

    Raises:
        EvidenceError: They are not.
    """
    if len(votes) != quorum:
        raise EvidenceError(f"{len(votes)} votes where a quorum is {quorum}")
    last = -1
    for vote in votes:
        if (vote.type, vote.height, vote.round) != (
            template.type,
            template.height,
            template.round,
        ):
            raise EvidenceError("a quorum with a vote of another type, height or round")
        if template.block_id and vote.block_id != template.block_id:
            raise EvidenceError("a quorum with a vote for another block")
        if vote.validator <= last:
            raise EvidenceError("a quorum's signers are not distinct and ascending")
        last = vote.validator


def check_body(block: wire.Block) -> None:
    """Check that a block's body is the one that its header names; nothing about its content.

    A liar may put another body under an honest header. Where a header alone has been certified
    or locked, this tells the liar's block from one that does not reproduce.

    Raises:
        EvidenceError: Transactions or parent's certificate are others.
    """
    header = Header.decode(block.header)
    if tx_root(block.envelopes) != header.tx_root:
        raise EvidenceError("a block with other transactions than its header names")
    raw = block.parent_certificate
    if (Certificate.decode(raw).hash if raw else NO_CERTIFICATE) != header.last_commit_hash:
        raise EvidenceError("a block with another parent certificate than its header names")


def check_lock(
    vote: wire.SignedVote,
    block: wire.Block,
    prepares: Sequence[wire.SignedVote],
    quorum: int,
    verify: Verify,
) -> Lock:
    """Check the lock that a ROUND_CHANGE vote claims; the transactions are not judged here.

    Raises:
        EvidenceError: The block is another one, or its PREPAREs do not hold.
    """
    round_ = vote.prepared_round - 1
    _check_prepares(vote.height, round_, vote.block_id, block, prepares, quorum, verify)
    check_body(block)
    return Lock(round_, vote.block_id, block, tuple(prepares))


def check_justification(proposal: wire.Proposal, quorum: int, verify: Verify) -> bool:
    """Check that q ROUND_CHANGEs allow this proposal of a round above 0 (R1).

    Returns:
        Whether the block is one that was prepared before, so that its clock and proposer are
        not checked a second time.

    Raises:
        EvidenceError: They do not.
    """
    vote = proposal.vote
    changes = proposal.round_changes
    template = wire.SignedVote(
        type=wire.VOTE_TYPE_ROUND_CHANGE, height=vote.height, round=vote.round
    )
    check_quorum(changes, quorum, template)
    for change in changes:
        verify(change)
    highest = max(change.prepared_round for change in changes)
    if not highest:
        if proposal.prepares:
            raise EvidenceError("a proposal with PREPAREs that no round change names")
        return False
    _check_prepares(
        vote.height,
        highest - 1,
        vote.block_id,
        proposal.block,
        proposal.prepares,
        quorum,
        verify,
    )
    return True


def _check_prepares(
    height: int,
    round_: int,
    block_id: bytes,
    block: wire.Block,
    prepares: Sequence[wire.SignedVote],
    quorum: int,
    verify: Verify,
) -> None:
    if header_id(block.header) != block_id:
        raise EvidenceError("a lock whose block is another one")
    template = wire.SignedVote(
        type=wire.VOTE_TYPE_PREPARE, height=height, round=round_, block_id=block_id
    )
    check_quorum(prepares, quorum, template)
    for prepare in prepares:
        verify(prepare)


def choose(
    changes: Iterable[wire.SignedVote], round_: int, quorum: int
) -> list[wire.SignedVote] | None:
    """R5: q ROUND_CHANGEs for exactly this round, the highest lock among them; None if fewer."""
    fitting = [change for change in changes if change.round == round_]
    if len(fitting) < quorum:
        return None
    fitting.sort(key=lambda change: (-change.prepared_round, change.validator))
    return sorted(fitting[:quorum], key=lambda change: change.validator)
