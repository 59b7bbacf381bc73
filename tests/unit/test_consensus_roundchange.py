"""Round changes: when a validator moves, what it carries along, what it then accepts."""

from fedchain_ledger.core.votebook import COMMIT, PREPARE, PROPOSAL, ROUND_CHANGE
from fedchain_proto.blocks import header_id
from tests.unit.consensuskit import (
    Bench,
    Lock,
    decisions,
    sent,
    sent_messages,
    timer,
)


def locked(round_: int = 0) -> tuple[Bench, Lock]:
    """Validator 1 of 4, locked on a block in round 0 and then timed out up to ``round_``."""
    bench = Bench(me=1)
    block = bench.block()
    bench.propose(block)
    bench.say(PREPARE, (0, 2), 0, block)
    for other in range(1, round_ + 1):
        bench.change(2, other)
        bench.change(3, other)
    return bench, bench.lock(0, block, (0, 1, 2))


# ------------------------------------------------------------------ R4: moving


def test_a_timeout_moves_to_the_next_round_and_says_so() -> None:
    """R4: the time-out of round 0 brings a ROUND_CHANGE for round 1, without a lock if none."""
    bench = Bench()
    bench.work()
    (vote,) = sent(bench.fire("round", 1_000), ROUND_CHANGE)
    assert (vote.round, vote.prepared_round, vote.block_id) == (1, 0, b"")
    assert bench.core.round == 1


def test_a_timer_of_a_height_that_is_decided_moves_nobody() -> None:
    """A stale time-out is ignored."""
    bench = Bench()
    bench.work()
    bench.decide()
    assert not sent(bench.fire("round", 1_000), ROUND_CHANGE)
    assert bench.core.round == 0


def test_the_round_change_carries_the_lock() -> None:
    """Prepared round, block and its q PREPAREs: without them the block could be lost."""
    bench, lock = locked()
    (message,) = sent_messages(bench.fire("round", 1_000), "round_change")
    change = message.round_change
    assert change.vote.prepared_round == 1
    assert change.block == lock.block
    assert [vote.validator for vote in change.prepares] == [0, 1, 2]
    assert {vote.block_id for vote in change.prepares} == {header_id(lock.block.header)}


def test_the_lock_lives_for_the_height_and_not_for_the_round() -> None:
    """Rounds that were skipped or ended without a decision do not take the lock away."""
    bench, _ = locked(3)
    bench.change(2, 9)
    (vote,) = sent(bench.change(3, 9), ROUND_CHANGE)
    assert (vote.round, vote.prepared_round) == (9, 1)
    bench.decide()
    assert bench.core.status().locked_round is None


def test_one_liars_huge_round_moves_nobody() -> None:
    """FISCO #2312: f signers may be liars; f+1 have an honest one among them."""
    bench = Bench()
    bench.change(3, 4_000_000_000)
    assert bench.core.round == 0
    assert sent(bench.done) == []


def test_f_plus_one_signers_move_to_the_lowest_of_their_rounds() -> None:
    """R4: the (f+1)-th highest round: an honest validator is at least there."""
    bench = Bench(n=7, me=1)  # f = 2
    bench.change(3, 4_000_000_000)
    bench.change(4, 17)
    assert bench.core.round == 0
    (vote,) = sent(bench.change(5, 5), ROUND_CHANGE)
    assert (vote.round, bench.core.round) == (5, 5)


def test_one_signer_counts_once_however_often_he_asks() -> None:
    """Distinct signers, never messages."""
    bench = Bench()
    for round_ in (1, 2, 3, 4):
        bench.change(3, round_)
    assert bench.core.round == 0


def test_nothing_is_prepared_or_committed_below_the_current_round() -> None:
    """R4: however the round was entered; else two rounds could decide two blocks."""
    bench = Bench(me=1)
    block = bench.block()
    raw = bench.proposal(block)
    bench.change(2, 1)
    bench.change(3, 1)
    assert bench.core.round == 1
    bench.hear(0, raw)
    bench.say(PREPARE, (0, 2, 3), 0, block)
    assert sent(bench.done, PREPARE) == []
    assert sent(bench.done, COMMIT) == []
    # The twin: in round 0 the same messages make a COMMIT.
    twin = Bench(me=1)
    twin.hear(0, raw)
    assert sent(twin.say(PREPARE, (0, 2, 3), 0, block), COMMIT)


def test_an_accepted_block_is_not_committed_after_moving_on() -> None:
    """PREPAREs of round 0 that arrive in round 1 lock nothing."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    bench.fire("round", 1_000)
    bench.say(PREPARE, (0, 2, 3), 0, block)
    assert sent(bench.done, COMMIT) == []
    assert bench.core.status().locked_round is None


def test_a_late_certificate_of_an_earlier_round_still_decides() -> None:
    """R3: q COMMITs of any round; the block was seen, its round is over."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    bench.fire("round", 1_000)
    (decision,) = decisions(bench.say(COMMIT, (0, 2, 3), 0, block))
    assert decision.certificate.round == 0


def test_prepares_of_different_rounds_are_not_mixed() -> None:
    """R2: q PREPAREs of the current round."""
    bench = Bench(me=1)
    block = bench.block()
    bench.propose(block)
    bench.say(PREPARE, (0,), 0, block)
    bench.fire("round", 1_000)
    bench.change(2, 1)
    bench.change(3, 1)
    assert sent(bench.done, PROPOSAL) == []  # nothing pooled, nothing locked
    bench.work(b"new")
    (proposal,) = sent_messages(bench.done, "proposal")
    again = proposal.proposal.block
    bench.say(PREPARE, (2,), 1, again)
    assert sent(bench.done, COMMIT) == []
    assert sent(bench.say(PREPARE, (3,), 1, again), COMMIT)


def test_prepares_for_the_same_block_in_two_rounds_make_no_quorum() -> None:
    """The same block, twice proposed, one PREPARE short in each round: not prepared."""
    bench = Bench(me=1)
    block = bench.block()
    bench.propose(block)
    bench.say(PREPARE, (2,), 0, block)  # with ours: two of three
    lock = bench.lock(0, block, (0, 2, 3))
    changes = [bench.change_vote(i, 2, lock) for i in (0, 2, 3)]
    bench.propose(block, 2, changes=changes, prepares=lock.prepares)
    assert bench.core.round == 2
    assert sent(bench.say(PREPARE, (0,), 2, block), COMMIT) == []
    assert sent(bench.say(PREPARE, (3,), 2, block), COMMIT)


# ------------------------------------------------------------------ the gate


def test_the_timer_of_a_later_round_waits_until_q_validators_are_there() -> None:
    """The gate: alone in round 1, a validator resends and does not time out."""
    bench = Bench()
    bench.work()
    assert timer(bench.fire("round", 1_000), "round") is None
    assert not bench.core.status().timer_runs
    assert timer(bench.change(2, 1), "round") is None
    assert sent(bench.fire("resend", 2_000), ROUND_CHANGE)
    assert bench.core.round == 1
    effects = bench.change(3, 2)  # q = 3 are in round 1 or above, oneself included
    assert timer(effects, "round") == bench.now + 2_000


def test_an_accepted_proposal_opens_the_gate() -> None:
    """A PROPOSAL for the round shows that q validators were there."""
    bench = Bench(me=1)
    changes = [bench.change_vote(i, 2) for i in (0, 2, 3)]
    effects = bench.propose(bench.block(proposer=2), 2, changes=changes)
    assert timer(effects, "round") == bench.now + 4_000


def test_the_timer_stops_when_there_is_nothing_left_to_decide() -> None:
    """It runs only while a transaction, a proposal, a lock or f+1 ROUND_CHANGEs wait."""
    bench = Bench()
    bench.work()
    assert bench.core.status().timer_runs
    bench.app.pool.clear()
    bench.fire("resend", 500)
    assert not bench.core.status().timer_runs
    bench.fire("round", 500)
    assert bench.core.round == 0


def test_f_plus_one_round_changes_are_something_to_decide() -> None:
    """Others see work that we do not: we help them to move."""
    bench = Bench(n=7, me=1)
    for index in (2, 3):
        bench.change(index, 1)
    assert not bench.core.status().timer_runs
    bench.change(4, 1)
    bench.change(5, 1)
    bench.change(6, 1)
    assert bench.core.round == 1
    assert bench.core.status().timer_runs


# ------------------------------------------------------------------ R5: leading a later round


def test_the_next_leader_proposes_a_new_block_when_nothing_was_prepared() -> None:
    """R5: q ROUND_CHANGEs without a lock leave the block free; one fewer does not."""
    bench = Bench(me=1)
    bench.work()
    bench.fire("round", 1_000)
    assert sent(bench.change(2, 1), PROPOSAL) == []
    (message,) = sent_messages(bench.change(3, 1), "proposal")
    assert [v.validator for v in message.proposal.round_changes] == [1, 2, 3]
    assert list(message.proposal.prepares) == []
    assert sent(bench.done, PREPARE)


def test_the_next_leader_proposes_the_highest_prepared_block_again() -> None:
    """R5: the same bytes, the same id, the first proposer's name in it (besu #6613)."""
    bench = Bench(me=3)
    bench.work(b"my own work")
    low, high = bench.block(), bench.block(transaction=b"high")
    low_lock, high_lock = bench.lock(0, low, (0, 1, 2)), bench.lock(1, high, (0, 1, 2))
    bench.change(0, 3, low_lock)
    bench.change(1, 3, high_lock)  # the second: we follow, and are the third of q
    bench.change(2, 3)
    (message,) = sent_messages(bench.done, "proposal")
    assert message.proposal.block == high
    assert message.proposal.block.header == high.header
    assert {v.round for v in message.proposal.prepares} == {1}
    assert [v.validator for v in sent(bench.done, PREPARE)] == [3]


def test_the_locked_leader_proposes_its_own_lock() -> None:
    """Its own ROUND_CHANGE counts among the q."""
    bench, lock = locked()
    bench.fire("round", 1_000)
    bench.change(2, 1)
    (message,) = sent_messages(bench.change(3, 1), "proposal")
    assert message.proposal.block == lock.block


# ------------------------------------------------------------------ courtesy


def test_a_peer_in_a_lower_round_is_told_ours_but_not_at_every_message() -> None:
    """R6: answered with our ROUND_CHANGE, rate-limited per peer."""
    bench = Bench(me=1)
    bench.work()
    for round_ in (1, 2):
        bench.change(2, round_)
        bench.change(3, round_)
    first = bench.change(0, 1)
    assert [vote.round for vote in sent(first, ROUND_CHANGE)] == [2]
    assert sent(bench.change(0, 1), ROUND_CHANGE) == []
    bench.now += bench.timing.answer_ms
    assert sent(bench.change(0, 1), ROUND_CHANGE)
    assert sent(bench.change(0, 2), ROUND_CHANGE) == []  # not lower


# ------------------------------------------------------------------ a leader that drops somebody


def test_a_transaction_overlooked_twice_opens_the_height_with_round_1() -> None:
    """Against a leader that drops one owner's transactions: the next leader, at once."""
    bench = Bench(me=2)
    bench.app.submit(b"overlooked")
    assert sent(bench.decide(b"a"), ROUND_CHANGE) == []
    (vote,) = sent(bench.decide(b"b"), ROUND_CHANGE)
    assert (vote.height, vote.round, bench.core.round) == (3, 1, 1)


def test_a_full_block_overlooks_nobody() -> None:
    """Two blocks without room for it are no reason to distrust the leader."""
    bench = Bench(me=2)
    bench.app._limit = 1
    bench.app.submit(b"waiting")
    bench.decide(b"a")
    assert sent(bench.decide(b"b"), ROUND_CHANGE) == []
    assert bench.core.round == 0
