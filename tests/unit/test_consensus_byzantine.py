"""What liars try: two proposals, two votes, replays, junk, floods, false history."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedchain_ledger.core import messages
from fedchain_ledger.core.consensus import HaltError
from fedchain_ledger.core.effects import Accuse
from fedchain_ledger.core.future import AHEAD
from fedchain_ledger.core.votebook import COMMIT, KEPT_ROUNDS, PREPARE, PROPOSAL, ROUND_CHANGE
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Header, header_id
from fedchain_proto.errors import EvidenceError
from fedchain_proto.votes import check_vote, decode_vote, sign_vote
from tests.sim.engine import World
from tests.sim.toy import CHAIN_ID, toy_keys
from tests.unit.consensuskit import (
    TX,
    Bench,
    accusations,
    decisions,
    refusals,
    sent,
)


def check_accusation(bench: Bench, accusation: Accuse, guilty: int) -> list[wire.SignedVote]:
    """The evidence holds by itself: two votes of the accused, both truly signed, ascending."""
    assert accusation.accused == bench.keys[guilty].key_id
    assert accusation.first < accusation.second
    votes = [decode_vote(accusation.first), decode_vote(accusation.second)]
    for vote in votes:
        check_vote(vote, CHAIN_ID, bench.validators)
        assert vote.validator == guilty
    return votes


# ------------------------------------------------------------------ two voices


def test_a_leader_that_proposes_two_blocks_is_followed_once_and_accused() -> None:
    """R1: none other was accepted at (h, r); the two PROPOSALs are evidence."""
    bench = Bench()
    (first,) = sent(bench.propose(bench.block()), PREPARE)
    effects = bench.propose(bench.block(transaction=b"second"))
    assert sent(effects, PREPARE) == []
    (accusation,) = accusations(effects)
    votes = check_accusation(bench, accusation, 0)
    assert {vote.type for vote in votes} == {PROPOSAL}
    assert first.block_id in {vote.block_id for vote in votes}


def test_an_equivocating_leader_forks_nothing_and_stops_nothing() -> None:
    """Two blocks for two halves: at most one is decided, and the next leader goes on."""
    world = World(4)
    world.boot(1, 2, 3)
    apps = [world.nodes[i].app for i in (1, 2, 3)]
    for transaction, names in ((b"for one", (1,)), (b"for two", (2, 3))):
        block = apps[0]._make([transaction], world.now_ms, 0)
        block_id = header_id(block.header)
        votes = [
            sign_vote(world.keys[0], CHAIN_ID, world.validators.hash, kind, 1, 0, block_id, 0, 0)
            for kind in (PROPOSAL, PREPARE, COMMIT)
        ]
        for name in names:
            world.inject(0, name, messages.encode_proposal(votes[0], block))
            world.inject(0, name, messages.encode_vote(votes[1]))
            world.inject(0, name, messages.encode_vote(votes[2]))
    world.submit(1, TX)
    assert world.run(60_000, lambda: all(TX in world.transactions(i) for i in (1, 2, 3)))
    assert len({tuple(world.ids(i)) for i in (1, 2, 3)}) == 1
    guilty = {world.keys[0].key_id}
    assert {a.accused for node in world.nodes for a in node.accusations} <= guilty


@pytest.mark.parametrize("kind", [PREPARE, COMMIT, ROUND_CHANGE])
def test_two_different_votes_of_one_key_are_evidence_once(
    kind: wire.VoteType.ValueType,
) -> None:
    """A double vote for one (height, round, type): told once, and only of its signer."""
    bench = Bench()
    one, other = bench.block(), bench.block(transaction=b"other")
    lock = bench.lock(0, one, (0, 2, 3))
    if kind == ROUND_CHANGE:
        bench.change(2, 2, lock)
        effects = bench.change(2, 2) + bench.change(2, 2)
    else:
        bench.say(kind, (2,), 0, one)
        effects = bench.say(kind, (2, 2), 0, other)
    (accusation,) = accusations(effects)
    votes = check_accusation(bench, accusation, 2)
    assert {vote.type for vote in votes} == {kind}
    assert accusation.offence == wire.OFFENCE_DOUBLE_VOTE


def test_a_vote_that_is_repeated_or_for_another_round_is_no_offence() -> None:
    """Honest validators resend, and vote anew in each round."""
    bench = Bench()
    one, other = bench.block(), bench.block(transaction=b"other")
    bench.say(PREPARE, (2, 2), 0, one)
    bench.say(PREPARE, (2,), 1, other)
    bench.say(COMMIT, (2,), 1, other)
    assert accusations(bench.done) == []


def test_a_forged_second_vote_accuses_nobody() -> None:
    """Evidence is verified before it is told."""
    bench = Bench()
    bench.say(PREPARE, (2,), 0, bench.block())
    forged = bench.vote(PREPARE, 2, 0, bench.block(transaction=b"other"))
    forged.signature = bench.keys[3].sign(b"something")
    effects = bench.hear(2, messages.encode_vote(forged))
    assert accusations(effects) == []
    assert refusals(effects)


@pytest.mark.parametrize("commit_first", [True, False])
def test_amnesia_is_evidence_in_either_order(commit_first: bool) -> None:
    """COMMIT at r1, then a ROUND_CHANGE at r2 > r1 that claims a lock below r1, or none."""
    bench = Bench()
    block = bench.block()
    if commit_first:
        bench.say(COMMIT, (2,), 1, block)
        bench.change(2, 2, bench.lock(0, block, (0, 2, 3)))
    else:
        bench.change(2, 2)
        bench.say(COMMIT, (2,), 1, block)
    (accusation,) = accusations(bench.done)
    assert accusation.offence == wire.OFFENCE_AMNESIA
    check_accusation(bench, accusation, 2)


def test_a_lock_of_the_commits_round_or_above_is_no_amnesia() -> None:
    """The honest case; and a COMMIT above the ROUND_CHANGE's round proves nothing either."""
    bench = Bench(n=7, me=1)
    block = bench.block()
    bench.say(COMMIT, (2, 3), 1, block)
    bench.change(2, 2, bench.lock(1, block, (0, 2, 3, 4, 5)))
    bench.change(4, 2)
    bench.say(COMMIT, (4,), 2, block)
    assert accusations(bench.done) == []


def test_a_double_vote_inside_a_lock_is_found() -> None:
    """A PREPARE that was shown to us, another one that was shown to somebody else."""
    bench = Bench(me=2)
    block = bench.block()
    bench.say(PREPARE, (3,), 0, bench.block(transaction=b"shown to us"))
    bench.change(0, 1, bench.lock(0, block, (0, 1, 3)))
    (accusation,) = accusations(bench.done)
    check_accusation(bench, accusation, 3)


# ------------------------------------------------------------------ replays and junk


@pytest.mark.parametrize("case", ["chain", "set", "height", "round", "type", "sender", "none"])
def test_a_vote_replayed_elsewhere_counts_for_nothing(case: str) -> None:
    """Chain, validator set, height, round and type are signed; the sender is authenticated."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    bench.say(PREPARE, (0,), 0, block)
    vote = bench.vote(PREPARE, 2, 0, block)
    sender = 2
    if case == "chain":
        vote = bench.vote(PREPARE, 2, 0, block, chain_id=bytes(31) + b"x")
    elif case == "set":
        vote.validators_hash = bytes(32)
    elif case == "height":
        vote = bench.vote(PREPARE, 2, 0, block, height=2)
        vote.height = 1
    elif case == "round":
        vote = bench.vote(PREPARE, 2, 1, block)
        vote.round = 0
    elif case == "type":
        vote = bench.vote(COMMIT, 2, 0, block)
        vote.type = PREPARE
    elif case == "sender":
        sender = 3
    effects = bench.hear(sender, messages.encode_vote(vote))
    assert bool(sent(effects, COMMIT)) == (case == "none")
    assert bool(refusals(effects)) == (case != "none")


def test_a_certificate_or_lock_of_another_chain_is_refused() -> None:
    """Two consortia of one name cannot replay each other's history."""
    bench = Bench()
    block = bench.block()
    foreign = [bench.vote(COMMIT, i, 0, block, chain_id=bytes(32)) for i in (0, 2, 3)]
    certificate = bench.certificate(block, (), commits=foreign)
    effects = bench.hear(0, messages.encode_decided(block, certificate.encode()))
    assert decisions(effects) == []
    assert refusals(effects)


def test_own_messages_sent_back_change_nothing() -> None:
    """A reflection counts for nobody."""
    bench = Bench()
    block = bench.block()
    (own,) = sent(bench.propose(block), PREPARE)
    bench.say(PREPARE, (0,), 0, block)
    for sender in (0, 2, 3):
        assert not sent(bench.hear(sender, messages.encode_vote(own)), COMMIT)


SAMPLE = Bench(me=1)


def samples() -> list[bytes]:
    """One message of every kind, all of them good."""
    bench = SAMPLE
    block = bench.block()
    lock = bench.lock(0, block, (0, 2, 3))
    change = messages.encode_round_change(bench.change_vote(2, 1, lock), block, lock.prepares)
    return [
        bench.proposal(block),
        messages.encode_vote(bench.vote(PREPARE, 2, 0, block)),
        messages.encode_vote(bench.vote(COMMIT, 2, 3, block)),
        change,
        messages.encode_decided(block, bytes(200)),
        messages.encode_tip(5),
        wire.ConsensusMessage(gossip=wire.Gossip(envelopes=[b"x"])).SerializeToString(),
    ]


SAMPLES = samples()


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.tuples(
            st.sampled_from(SAMPLES),
            st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
        ).map(lambda pair: _mutated(*pair)),
    ),
    sender=st.integers(-2, 5),
)
def test_junk_never_raises(data: bytes, sender: int) -> None:
    """Whatever bytes a peer sends, the core answers with effects (SmartBFT's panic on input)."""
    bench = Bench(me=1)
    bench.hear(sender, data)
    assert bench.core.height == 1
    assert not decisions(bench.done)
    bench.propose(bench.block())  # and it works as before
    assert bench.core.status().accepted


def _mutated(raw: bytes, changes: list[tuple[int, int]]) -> bytes:
    mutable = bytearray(raw)
    for position, value in changes:
        mutable[position % len(mutable)] = value
    return bytes(mutable)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 40,
        wire.ConsensusMessage(vote=wire.SignedVote()).SerializeToString(),
        wire.ConsensusMessage(proposal=wire.Proposal()).SerializeToString(),
        wire.ConsensusMessage(round_change=wire.RoundChange()).SerializeToString(),
        wire.ConsensusMessage(decided=wire.Decided()).SerializeToString(),
        bytes(messages.MAX_MESSAGE_BYTES + 1),
    ],
)
def test_a_message_that_is_none_is_refused_by_name(raw: bytes) -> None:
    """Refused: a line for the log, with who and why."""
    (refusal,) = refusals(Bench().hear(2, raw))
    assert refusal.sender == 2
    assert refusal.reason
    with pytest.raises(EvidenceError):
        messages.parse(raw)


def test_a_round_that_does_not_fit_is_refused() -> None:
    """prepared_round carries round + 1: the last number is nobody's round."""
    bench = Bench()
    bench.change(2, messages.MAX_ROUND)
    assert refusals(bench.done) == []
    vote = bench.vote(PREPARE, 2, 2**32 - 1, bench.block())
    assert refusals(bench.hear(2, messages.encode_vote(vote)))


# ------------------------------------------------------------------ floods


def test_votes_for_far_heights_are_dropped_and_for_near_ones_bounded() -> None:
    """indy-plenum #1542: per peer one vote of a kind for heights up to tip + 8, no more."""
    bench = Bench()
    future = bench.core._future
    for height in range(2, 200):
        for round_ in range(20):
            vote = bench.vote(PREPARE, 2, round_, bench.block(), height=height)
            bench.hear(2, messages.encode_vote(vote))
    assert len(future) == AHEAD - 1  # heights 2 to 8; height 1 is ours
    assert max(future._kept) == AHEAD


def test_proposals_for_the_next_height_are_kept_from_f_plus_one_at_most() -> None:
    """A block is big: one per peer, f + 1 in all, for the next height only."""
    bench = Bench(n=7, me=1)
    block = bench.block()
    for who in (0, 2, 3, 4, 5, 6):
        for height in (2, 3):
            vote = bench.vote(PROPOSAL, who, 0, block, height=height)
            bench.hear(who, messages.encode_proposal(vote, block))
    assert len(bench.core._future) == 3
    assert set(bench.core._future._kept) == {2}


def test_early_messages_are_forgotten_when_their_height_is_over() -> None:
    """Nothing stays behind."""
    bench = Bench()
    vote = bench.vote(PREPARE, 2, 0, bench.block(), height=2)
    bench.hear(2, messages.encode_vote(vote))
    assert len(bench.core._future) == 1
    bench.decide(b"1")
    assert len(bench.core._future) == 0


def test_votes_for_many_rounds_are_bounded_and_push_out_only_their_signers() -> None:
    """A liar's thousand rounds leave the others' votes and four of his own."""
    bench = Bench()
    block = bench.block()
    bench.say(COMMIT, (0,), 0, block)
    for round_ in range(1000, 1100):
        for kind in (PREPARE, COMMIT):
            bench.say(kind, (2,), round_, block)
        bench.change(2, round_)
    votes = bench.core._replica.state.book._votes
    assert max(len(rounds) for rounds in votes.values()) == KEPT_ROUNDS
    assert len(votes[2, ROUND_CHANGE]) == 1
    assert set(votes[0, COMMIT]) == {0}


def test_late_blocks_are_bounded() -> None:
    """Proposals of rounds that are over: the last few only."""
    bench = Bench(n=4, me=1)
    bench.change(2, 400)
    bench.change(3, 400)
    for number in range(20):
        block = bench.block(transaction=b"%d" % number)
        bench.now += bench.timing.answer_ms
        bench.propose(block, 4 * number)
    assert len(bench.core._replica.state._seen) <= 3


# ------------------------------------------------------------------ false history


def test_a_decided_block_with_its_certificate_is_believed() -> None:
    """The positive twin of the lies below."""
    bench = Bench()
    (decision,) = decisions(bench.decided(bench.block(), (0, 2, 3), 5))
    assert (decision.height, decision.certificate.round) == (1, 5)


@pytest.mark.parametrize("case", ["q-1", "q+1", "garbage", "other block", "body", "junk", "parent"])
def test_a_lying_peer_in_catch_up_is_refused_and_reported(case: str) -> None:
    """bft-smart #62: state transfer believes certificates, not peers."""
    bench = Bench()
    block = bench.block()
    commits = bench.votes(COMMIT, (0, 2, 3), 0, block)
    if case == "q-1":
        commits = commits[:2]
    elif case == "q+1":
        commits = bench.votes(COMMIT, (0, 1, 2, 3), 0, block)
    elif case == "garbage":
        commits[2].signature = commits[1].signature
    certificate = bench.certificate(block, (), commits=commits).encode()
    if case == "other block":
        block = bench.block(transaction=b"other")
    elif case == "body":
        block.envelopes[0] = b"another body under the certified header"
    elif case == "junk":
        certificate = certificate[:-1]
    elif case == "parent":
        block.parent_certificate = certificate
    effects = bench.hear(3, messages.encode_decided(block, certificate))
    assert decisions(effects) == []
    assert [refusal.sender for refusal in refusals(effects)] == [3]
    assert bench.core.height == 1
    assert decisions(bench.decided(bench.block(), (0, 2, 3)))


def test_a_certified_block_that_does_not_reproduce_halts_loudly() -> None:
    """Our state is wrong, or q colluded: nobody goes on from here, not even after a retry."""
    bench = Bench()
    # Only who replays the block can tell that this log root is wrong.
    header = replace(Header.decode(bench.block().header), log_root=bytes(32))
    block = wire.Block(header=header.encode(), envelopes=[TX])
    with pytest.raises(HaltError, match="does not reproduce"):
        bench.decided(block, (0, 2, 3))
    assert bench.store.chain == []
    with pytest.raises(HaltError, match="has stopped"):
        bench.work()


def test_a_commit_with_a_garbage_signature_reaches_no_certificate() -> None:
    """Every signature of a certificate was verified before it was put there."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    bench.say(COMMIT, (0, 2), 0, block)
    bad = bench.vote(COMMIT, 3, 0, block)
    bad.signature = toy_keys(4, fast=False)[3].sign(b"else")
    assert decisions(bench.hear(3, messages.encode_vote(bad))) == []
    (decision,) = decisions(bench.say(COMMIT, (3,), 0, block))
    decision.certificate.verify(CHAIN_ID, bench.validators)
