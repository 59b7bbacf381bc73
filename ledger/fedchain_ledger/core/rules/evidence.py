"""When two signed things convict their signer: rules of Evidence.

Evidence proves itself. It is kept, once per signer and thing said twice; what follows from it
(a revocation, a change of the validator set) is for people to decide.
Source: the design's consensus.md, "Evidence".
"""

import struct

from fedchain_ledger.core.rules.case import Case, of_this_chain, rule
from fedchain_ledger.core.state import ChainState
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import Signed, decode, verify_signatures
from fedchain_proto.errors import EvidenceError
from fedchain_proto.statements import parse
from fedchain_proto.votes import check_vote, decode_vote, preimage

_VOTES = (wire.OFFENCE_DOUBLE_VOTE, wire.OFFENCE_AMNESIA)


def evidence_key(state: ChainState, said: wire.Evidence) -> bytes:
    """Prove an offence, and name what was said twice.

    Returns:
        accused || offence || what was said twice: the key under which it is kept, once.

    Raises:
        EvidenceError: The two parts do not convict the accused.
    """
    if said.offence in _VOTES:
        twice = _conflicting_votes(state, said)
    else:
        twice = _conflicting_statements(state, said)
    return said.accused + struct.pack("<B", said.offence) + twice


def _conflicting_votes(state: ChainState, said: wire.Evidence) -> bytes:
    votes = [decode_vote(said.first), decode_vote(said.second)]
    for vote in votes:
        check_vote(vote, state.genesis.chain_id, state.validators)
        if state.validators[vote.validator].key_id != said.accused:
            raise EvidenceError("a vote of another validator than the accused")
    if votes[0].height != votes[1].height:
        raise EvidenceError("votes on two heights do not conflict")
    if said.offence == wire.OFFENCE_AMNESIA:
        return _amnesia(votes)
    return _double_vote(state, votes)


def _double_vote(state: ChainState, votes: list[wire.SignedVote]) -> bytes:
    """Two messages under one journal key (height, round, type) that say two things."""
    one, other = votes
    if (one.type, one.round) != (other.type, other.round):
        raise EvidenceError("votes of two types or rounds are no double vote")
    chain = state.genesis.chain_id
    if len({_meaning(chain, vote) for vote in votes}) == 1:
        raise EvidenceError("the two votes say the same")
    return struct.pack("<QIB", one.height, one.round, one.type)


def _meaning(chain_id: bytes, vote: wire.SignedVote) -> bytes:
    return preimage(
        vote.type, chain_id, vote.validators_hash, vote.height, vote.round, vote.block_id,
        vote.prepared_round,
    )  # fmt: skip


def _amnesia(votes: list[wire.SignedVote]) -> bytes:
    """A COMMIT at r1 says that r1 was prepared; a later ROUND_CHANGE must not claim less."""
    by_type = {vote.type: vote for vote in votes}
    commit = by_type.get(wire.VOTE_TYPE_COMMIT)
    change = by_type.get(wire.VOTE_TYPE_ROUND_CHANGE)
    if commit is None or change is None or change.round <= commit.round:
        raise EvidenceError("amnesia is a COMMIT and a ROUND_CHANGE to a later round")
    if change.prepared_round > commit.round:  # prepared_round is the claimed round + 1
        raise EvidenceError("the ROUND_CHANGE claims the committed round or a later one")
    return struct.pack("<QII", commit.height, commit.round, change.round)


def _conflicting_statements(state: ChainState, said: wire.Evidence) -> bytes:
    envelopes = [decode(said.first), decode(said.second)]
    if envelopes[0].tx_id == envelopes[1].tx_id:
        raise EvidenceError("the two envelopes say the same")
    first, second = (_own_words(state, said, signed) for signed in envelopes)
    if (first.run, first.round) != (second.run, second.round):
        raise EvidenceError("the two envelopes are about two rounds")
    if _but_for_exclusions(first) == _but_for_exclusions(second):
        raise EvidenceError("the two closes publish one result")
    return first.run + struct.pack("<Q", first.round)


def _own_words(
    state: ChainState, said: wire.Evidence, signed: Signed
) -> wire.UpdateSubmitted | wire.RoundClosed:
    """Return what the accused says, in its own place, of a round that was opened here."""
    if tuple(signer for signer, _ in signed.signatures) != (said.accused,):
        raise EvidenceError("an envelope that not the accused alone has signed")
    verify_signatures(signed, state.key_of)
    spoken = parse(signed.payload_type, signed.payload)
    if spoken.chain_id != state.genesis.chain_id:
        raise EvidenceError("an envelope for another chain")
    accused = state.member_of(said.accused)
    if accused is None:
        raise EvidenceError("the accused is no member")
    if said.offence == wire.OFFENCE_TWO_UPDATES and isinstance(spoken, wire.UpdateSubmitted):
        speaker: str | None = spoken.participant
    elif said.offence == wire.OFFENCE_TWO_CLOSES and isinstance(spoken, wire.RoundClosed):
        run = state.runs.get(spoken.run)
        speaker = None if run is None else run.aggregator
    else:
        raise EvidenceError("not the statements of which the offence speaks")
    if speaker != accused.name:
        raise EvidenceError("the accused signed it in somebody else's place")
    # Else one member could convict itself, and fill the state, of rounds without number.
    if not _has_begun(state, spoken.run, spoken.round):
        raise EvidenceError("an envelope for a round that was never opened")
    return spoken


def _has_begun(state: ChainState, run_id: bytes, number: int) -> bool:
    run = state.runs.get(run_id)
    if run is None:
        return False
    return number <= (run.open_round.number if run.open_round else run.closed_rounds)


def _but_for_exclusions(
    spoken: wire.UpdateSubmitted | wire.RoundClosed,
) -> wire.UpdateSubmitted | wire.RoundClosed:
    """Return what a close publishes; an update as it is.

    Whom it leaves out, and why, an honest server has to say anew when a close is refused because
    an update came into the log, or a deadline had not passed: that is no second voice.
    """
    if isinstance(spoken, wire.UpdateSubmitted):
        return spoken
    result = wire.RoundClosed()
    result.CopyFrom(spoken)
    result.ClearField("excluded")
    return result


@rule("wrong-signer", "C4")
def by_somebody_here(case: Case[wire.Evidence]) -> str | None:
    """One member in force, or one validator, brings it: else the log would be open to all."""
    if len(case.signers) != 1:
        return "brought by more than one key"
    (signer,) = case.signers
    if case.state.validators.index_of(signer) is not None:
        return None
    member = case.state.member_of(signer)
    if member is not None and member.in_force:
        return None
    return "brought by nobody who is a validator or a member in force"


@rule("unproven-offence", "C11")
def proves_itself(case: Case[wire.Evidence]) -> str | None:
    """The two parts hold, and the accused must not have signed both."""
    try:
        evidence_key(case.state, case.said)
    except EvidenceError as error:
        return str(error)
    return None


@rule("evidence-kept", "C11")
def not_kept_yet(case: Case[wire.Evidence]) -> str | None:
    """One offence is kept once."""
    kept = evidence_key(case.state, case.said) in case.state.evidence
    return "this offence is on the chain" if kept else None


BROUGHT = (of_this_chain, by_somebody_here, proves_itself, not_kept_yet)
