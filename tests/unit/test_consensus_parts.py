"""Corners of the core: its parts by themselves, and what one meets only by bad luck."""

from dataclasses import replace

import pytest

from fedchain_ledger.core import messages
from fedchain_ledger.core.consensus import HaltError
from fedchain_ledger.core.effects import Decide, JournalEntry, JournalType, Persist, Send
from fedchain_ledger.core.outbox import Outbox
from fedchain_ledger.core.pacing import Pacing
from fedchain_ledger.core.peers import MAX_PEERS, Peers
from fedchain_ledger.core.timing import Timing
from fedchain_ledger.core.votebook import COMMIT, PREPARE, PROPOSAL, ROUND_CHANGE
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate
from fedchain_proto.errors import EvidenceError
from tests.unit.consensuskit import TX, Bench, decisions, refusals, sent, sent_messages, served

ROW = JournalEntry(1, 0, JournalType.PREPARE, b"row")


# ------------------------------------------------------------------ outbox, pacing, peers


def test_rows_between_two_decisions_are_one_transaction_and_come_first() -> None:
    """One fsync instead of two; what is journaled later never ends up behind its message."""
    outbox = Outbox()
    outbox.persist([ROW])
    outbox.send(None, b"one")
    outbox.persist([replace(ROW, type=JournalType.COMMIT)])
    outbox.send(None, b"two")
    kinds = [type(effect) for effect in outbox.take()]
    assert kinds == [Persist, Send, Send]
    assert outbox.take() == []


def test_rows_after_a_decision_stay_after_it() -> None:
    """The decision prunes the journal: rows of the next height must not be in front of it."""
    outbox = Outbox()
    decide = Decide(1, bytes(32), wire.Block(), Certificate(1, 0, bytes(32), bytes(32), ()), None)
    outbox.persist([ROW])
    outbox.emit(decide)
    outbox.persist([replace(ROW, height=2)])
    first, second, third = outbox.take()
    assert first == Persist((ROW,))
    assert second is decide
    assert third == Persist((replace(ROW, height=2),))


def test_a_clock_that_steps_back_puts_no_block_off() -> None:
    """At most one quiet time from now, whatever the clock said when the work came."""
    pacing = Pacing(Timing(quiet_ms=100))
    pacing.arrived(1_000_000, flush=False)
    assert pacing.due_ms(1_000_000) == 1_000_100
    assert pacing.due_ms(5_000) == 5_100


def test_a_clock_that_steps_back_silences_nobody() -> None:
    """Rate limits start anew instead of lasting until the old time comes again."""
    peers = Peers(Timing(answer_ms=1_000))
    assert peers.may_answer("tip", 1, 1_000_000)
    assert not peers.may_answer("tip", 1, 1_000_999)
    assert peers.may_answer("tip", 1, 5_000)
    assert peers.serve(2, 0, 9, 1_000_000) == range(1, 2)
    assert peers.serve(2, 0, 9, 1_000_001) == range(0)
    assert peers.serve(2, 0, 9, 5_000) == range(1, 2)


def test_a_peer_far_behind_lags_whenever_its_votes_come() -> None:
    """Heights decided long ago need no grace: nothing of them is still under way."""
    bench = Bench()
    old = messages.encode_vote(bench.vote(COMMIT, 2, 0, bench.block()))
    for number in range(12):
        bench.decide(b"%d" % number)
    assert served(bench.hear(2, old)) == [(2, 1)]


def test_a_peer_beyond_all_numbers_is_refused() -> None:
    """What is kept per peer is bounded by the number of peers."""
    bench = Bench()
    for sender in (-1, MAX_PEERS):
        assert refusals(bench.hear(sender, messages.encode_tip(3)))
    assert not refusals(bench.hear(MAX_PEERS - 1, messages.encode_tip(3)))


# ------------------------------------------------------------------ a wrong clock


def test_a_validator_with_a_wrong_clock_still_decides_with_the_others() -> None:
    """It PREPAREs nothing, but has the block when the others' COMMITs come."""
    bench = Bench()
    block = bench.block()
    bench.now += 60_000
    bench.propose(block)
    assert sent(bench.done) == []
    assert decisions(bench.say(COMMIT, (0, 2, 3), 0, block))


def test_a_refused_block_with_another_body_is_not_kept() -> None:
    """Only what its header names may wait for COMMITs: else a certified header halts us."""
    bench = Bench()
    block = bench.block()
    fake = wire.Block.FromString(block.SerializeToString())
    fake.envelopes[0] = b"another body"
    bench.propose(fake)
    assert refusals(bench.done)
    assert decisions(bench.say(COMMIT, (0, 2, 3), 0, block)) == []
    assert decisions(bench.decided(block, (0, 2, 3)))


# ------------------------------------------------------------------ a leader in trouble


def test_a_leader_whose_block_does_not_validate_leaves_the_round_to_others() -> None:
    """It says so, once, and the time-out goes on."""
    bench = Bench(me=0)
    bench.app.propose = lambda now_ms, proposer: bench.block(proposer=3)  # type: ignore[method-assign]  # a broken one
    (refusal,) = refusals(bench.work())
    assert "cannot lead round 0" in refusal.reason
    assert sent(bench.done) == []
    assert refusals(bench.work(b"more")) == []
    assert sent(bench.fire("round", 1_000), ROUND_CHANGE)


def test_a_leader_does_not_lead_with_a_locked_block_that_it_cannot_validate() -> None:
    """q PREPAREs of liars, or a state of ours that is wrong: either way not with our name."""
    bench = Bench(me=2)
    block = bench.block()
    block.envelopes[:] = []
    block.header = bench.app._make([], bench.now, 0).header
    lock = bench.lock(0, block, (0, 1, 3))
    for who in (0, 1, 3):
        bench.change(who, 2, lock)
    assert sent(bench.done, PROPOSAL) == []
    assert any("cannot lead round 2" in refusal.reason for refusal in refusals(bench.done))


def test_a_leader_of_a_later_round_waits_for_work_if_nothing_is_locked() -> None:
    """No empty blocks in later rounds either; the work may come after the ROUND_CHANGEs."""
    bench = Bench(me=1)
    for who in (0, 2, 3):
        bench.change(who, 1)
    assert sent(bench.done, PROPOSAL) == []
    assert sent(bench.work(flush=False), PROPOSAL)


# ------------------------------------------------------------------ observers


def test_an_observer_follows_the_rounds_in_silence() -> None:
    """It is where f+1 others are, so that it accepts what they accept."""
    bench = Bench(observer=True)
    bench.change(2, 3)
    bench.change(3, 3)
    assert bench.core.round == 3
    assert sent(bench.done) == []


def test_nothing_is_signed_without_the_right_to() -> None:
    """The last defence: Voice itself refuses for an observer and after a loss."""
    for bench in (Bench(observer=True), Bench(journal_lost=True)):
        with pytest.raises(HaltError, match="about to sign"):
            bench.core._voice.speak(
                bench.core._replica.state, PREPARE, bytes(31) + b"x", messages.encode_vote
            )


# ------------------------------------------------------------------ restart, the long way


def test_everything_signed_in_several_rounds_comes_back() -> None:
    """Own votes of all rounds count again; only the current round's are sent again."""
    bench = Bench(me=1)
    block = bench.block()
    bench.propose(block)
    bench.say(PREPARE, (0, 2), 0, block)
    bench.fire("round", 1_000)
    for who in (0, 2):
        bench.change(who, 1)  # we lead round 1, with the locked block
    (before,) = sent_messages(bench.done, "proposal")
    bench.say(PREPARE, (0, 2), 1, block)
    bench.restart()
    status = bench.core.status()
    assert (status.round, status.locked_round, status.accepted) == (1, 1, True)
    again = sent(bench.fire("resend", 2_000))
    assert [vote.type for vote in again] == [PROPOSAL, PREPARE, COMMIT, ROUND_CHANGE]
    assert {vote.round for vote in again} == {1}
    assert sent_messages(bench.done, "proposal")[-1] == before
    assert decisions(bench.say(COMMIT, (0, 2), 0, block))  # with our COMMIT of round 0


def test_a_damaged_lock_halts() -> None:
    """A lock that cannot be read is a promise that cannot be kept."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    bench.say(PREPARE, (0, 2), 0, block)
    key = (1, 0, JournalType.LOCK)
    for data in (b"\xff", b""):
        bench.store.journal[key] = replace(bench.store.journal[key], data=data)
        with pytest.raises(HaltError, match="journal is damaged"):
            bench.restart()


# ------------------------------------------------------------------ bounds of messages


def test_justifications_of_more_votes_than_validators_are_refused() -> None:
    """Bounded before anything is looked at."""
    bench = Bench()
    block = bench.block()
    many = [bench.change_vote(2, 1)] * 101
    with pytest.raises(EvidenceError, match="more votes"):
        messages.parse(bench.proposal(block, changes=many))
    change = bench.change_vote(2, 1, bench.lock(0, block, (0,)))
    prepares = bench.votes(PREPARE, (0,), 0, block) * 101
    with pytest.raises(EvidenceError, match="more votes"):
        messages.parse(messages.encode_round_change(change, block, prepares))
    messages.parse(bench.proposal(block, changes=many[:100]))


def test_prepares_that_nobody_names_are_refused() -> None:
    """A proposal proves exactly what its ROUND_CHANGEs claim."""
    bench = Bench(me=1)
    block = bench.block(proposer=2)
    changes = [bench.change_vote(i, 2) for i in (0, 2, 3)]
    prepares = bench.votes(PREPARE, (0, 2, 3), 0, block)
    bench.propose(block, 2, changes=changes, prepares=prepares)
    assert sent(bench.done, PREPARE) == []
    assert refusals(bench.done)


def test_a_block_of_too_many_transactions_is_refused_unread() -> None:
    """1,000 are a block's limit, in every message that carries one."""
    bench = Bench()
    block = bench.block()
    del block.envelopes[:]
    block.envelopes.extend([TX] * 1_001)
    with pytest.raises(EvidenceError, match="too large"):
        messages.parse(bench.proposal(block))
    with pytest.raises(EvidenceError, match="too large"):
        messages.parse(messages.encode_decided(block, b""))


def test_an_early_message_of_a_skipped_height_is_forgotten() -> None:
    """Nothing waits for heights that are over."""
    bench = Bench()
    future = bench.core._future
    vote = bench.vote(PREPARE, 2, 0, bench.block(), height=2)
    future.keep(1, vote, b"raw", 1)
    assert future.take(5) == []
    assert len(future) == 0
