"""The normal case of the consensus core: propose, prepare, commit, decide, in that order."""

from collections.abc import Sequence

import pytest

from fedchain_ledger.core import messages
from fedchain_ledger.core.effects import Decide, Effect, JournalType, Persist, Send
from fedchain_ledger.core.timing import SLOT_HEIGHTS, Timing
from fedchain_ledger.core.votebook import COMMIT, PREPARE, PROPOSAL
from fedchain_proto.blocks import header_id
from fedchain_proto.errors import UsageError
from tests.sim.engine import Policy, World
from tests.sim.toy import CHAIN_ID, START_MS
from tests.unit.consensuskit import (
    TX,
    Bench,
    decisions,
    journaled,
    sent,
    sent_messages,
    timer,
)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 10])
def test_a_submitted_transaction_is_decided_by_all(n: int) -> None:
    """Any number of validators from 1 up decides one block, the same everywhere."""
    world = World(n)
    world.boot()
    world.submit(n - 1, TX)
    assert world.run(500, lambda: min(world.heights()) == 1)
    assert {tuple(world.ids(name)) for name in range(n)} == {tuple(world.ids(0))}
    for node in world.nodes:
        certificate = node.store.chain[0].certificate
        certificate.verify(CHAIN_ID, world.validators)
        assert len(certificate.signatures) == world.validators.quorum
        assert certificate.round == 0


def test_a_lone_validator_decides_at_once() -> None:
    """n = 1: finality within the call that brought the work, after it is journaled."""
    bench = Bench(n=1, me=0)
    effects = bench.work()
    assert [d.height for d in decisions(effects)] == [1]
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Persist) < kinds.index(Decide)


def test_a_lone_validator_decides_all_that_waits_in_one_call() -> None:
    """Blocks follow each other while work is left; a block takes what fits."""
    bench = Bench(n=1, me=0)
    bench.app._limit = 2
    for number in range(4):
        bench.app.submit(b"t%d" % number)
    effects = bench.work(b"t4")
    assert [d.height for d in decisions(effects)] == [1, 2, 3]


def test_without_work_nothing_is_proposed_and_nothing_times_out() -> None:
    """No empty blocks: an idle leader is silent, and an idle follower waits for ever."""
    leader, follower = Bench(me=0), Bench(me=1)
    for bench in (leader, follower):
        for _ in range(5):
            bench.fire("resend", 2_000)
            bench.fire("round")
        assert sent(bench.done) == []
        assert timer(bench.done, "round") is None
    assert sent(leader.work(), PROPOSAL)
    assert timer(follower.work(), "round") == follower.now + follower.timing.base_timeout_ms


def test_every_vote_is_durable_before_it_is_audible() -> None:
    """For every message with a vote, its exact bytes are in an earlier Persist."""
    bench = Bench(me=0)
    bench.work()
    block = sent_messages(bench.done, "proposal")[0].proposal.block
    bench.say(PREPARE, (1, 2), 0, block)
    bench.say(COMMIT, (1, 2), 0, block)
    assert _inaudible_before_durable(bench.done)
    assert len(decisions(bench.done)) == 1
    shuffled = [e for e in bench.done if not isinstance(e, Persist)]
    assert not _inaudible_before_durable(shuffled)  # the check itself can fail


def _inaudible_before_durable(effects: Sequence[Effect]) -> bool:
    durable: set[bytes] = set()
    for effect in effects:
        if isinstance(effect, Persist):
            durable |= {row.data for row in effect.entries}
        elif isinstance(effect, Send) and sent([effect]) and effect.message not in durable:
            return False
    return True


def test_the_lock_is_journaled_in_one_transaction_with_the_commit() -> None:
    """R2: never a COMMIT without its lock on the disk, or a lock without its COMMIT."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    effects = bench.say(PREPARE, (0, 2), 0, block)
    persists = [effect for effect in effects if isinstance(effect, Persist)]
    assert [{row.type for row in persist.entries} for persist in persists] == [
        {JournalType.COMMIT, JournalType.LOCK}
    ]


def test_a_decision_precedes_everything_of_the_next_height() -> None:
    """R3: the block is on the disk before anybody hears of the next one."""
    bench = Bench(n=4, me=0)
    bench.app._limit = 1
    bench.app.submit(b"second")
    bench.work()
    block = sent_messages(bench.done, "proposal")[0].proposal.block
    bench.say(PREPARE, (1, 2), 0, block)
    effects = bench.say(COMMIT, (1, 2), 0, block)
    decided = next(i for i, effect in enumerate(effects) if isinstance(effect, Decide))
    later = [i for i, effect in enumerate(effects) if isinstance(effect, Send | Persist)]
    assert later
    assert min(later) > decided
    assert {vote.height for vote in sent(effects)} == {2}


def test_one_prepare_below_the_quorum_commits_nothing() -> None:
    """R2 wants q distinct signers, oneself included; the leader's proposal is no PREPARE."""
    bench = Bench()  # q = 3
    block = bench.block()
    bench.propose(block)
    assert sent(bench.done, PREPARE)
    assert not sent(bench.say(PREPARE, (2,), 0, block), COMMIT)
    assert not sent(bench.say(PREPARE, (2, 2, 2), 0, block), COMMIT)  # signers, not messages
    assert sent(bench.say(PREPARE, (3,), 0, block), COMMIT)


def test_prepares_that_name_different_blocks_prove_nothing() -> None:
    """A quorum of PREPAREs that disagree on the block is none."""
    bench = Bench()
    block, other = bench.block(), bench.block(transaction=b"other")
    bench.propose(block)
    assert not sent(bench.say(PREPARE, (2,), 0, other), COMMIT)
    assert not sent(bench.say(PREPARE, (3,), 0, other), COMMIT)
    assert sent(bench.say(PREPARE, (0,), 0, block), COMMIT) == []
    assert bench.core.status().locked_round is None


def test_one_commit_below_the_quorum_decides_nothing() -> None:
    """R3 wants q distinct signers of one block."""
    bench = Bench()
    block, other = bench.block(), bench.block(transaction=b"other")
    bench.propose(block)
    assert not decisions(bench.say(COMMIT, (0, 2, 2), 0, block))
    assert not decisions(bench.say(COMMIT, (3,), 0, other))
    assert not decisions(bench.done)
    bench.say(PREPARE, (0, 2), 0, block)  # brings our own COMMIT, the third
    assert [d.block_id for d in decisions(bench.done)] == [header_id(block.header)]


def test_commits_of_different_rounds_are_not_mixed() -> None:
    """A certificate is of one round: q COMMITs spread over two rounds decide nothing."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    bench.say(COMMIT, (0,), 0, block)
    bench.say(COMMIT, (2, 3), 1, block)
    assert not decisions(bench.done)
    bench.say(COMMIT, (0,), 1, block)
    assert decisions(bench.done)[0].certificate.round == 1


def test_a_flush_cuts_a_block_and_quiet_time_does_without_one() -> None:
    """A round's updates share a block: cut on a flush, or quiet_ms after the last arrival."""
    bench = Bench(me=0)
    quiet = bench.timing.quiet_ms
    assert not sent(bench.work(b"a", flush=False), PROPOSAL)
    assert timer(bench.done, "cut") == bench.now + quiet
    bench.now += quiet // 2
    assert not sent(bench.work(b"b", flush=False), PROPOSAL)
    proposals = sent_messages(bench.fire("cut", quiet), "proposal")
    assert [len(p.proposal.block.envelopes) for p in proposals] == [2]
    assert sent(Bench(me=0).work(flush=True), PROPOSAL)


def test_a_stream_of_arrivals_cannot_put_a_block_off_for_ever() -> None:
    """quiet_factor bounds how long the first transaction waits for a pause."""
    bench = Bench(me=0)
    step = bench.timing.quiet_ms // 2
    for number in range(2 * bench.timing.quiet_factor):
        bench.work(b"%d" % number, flush=False)
        assert not sent(bench.done, PROPOSAL)
        bench.now += step
    assert sent(bench.work(b"last", flush=False), PROPOSAL)


def test_a_follower_never_proposes() -> None:
    """Only V[(s(h) + r) mod n] leads."""
    bench = Bench(me=1)
    assert not sent(bench.work(), PROPOSAL)
    assert bench.core.leader() == 0


def test_a_proposal_of_another_than_the_leader_is_refused() -> None:
    """R1: the leader's, with his own header, on the tip."""
    bench = Bench()
    bench.propose(bench.block(proposer=2), leader=2)
    bench.propose(bench.block(proposer=3))  # the leader's vote, another's name in the header
    assert not sent(bench.done, PREPARE)
    bench.propose(bench.block())
    assert not sent(bench.done, PREPARE)  # the leader's second proposal of this round
    fresh = Bench()
    fresh.propose(fresh.block())
    assert sent(fresh.done, PREPARE)


def test_a_proposal_far_from_the_clock_is_refused_until_the_clock_agrees() -> None:
    """A new block's time is within 5 s of ours; a resent proposal is looked at again."""
    bench = Bench()
    raw = bench.proposal(bench.block(time_ms=bench.now + 6_000))
    assert not sent(bench.hear(0, raw), PREPARE)
    bench.now += bench.timing.resend_ms
    assert sent(bench.hear(0, raw), PREPARE)


def test_messages_that_overtake_the_decision_are_used_when_it_comes() -> None:
    """Reordering: PROPOSAL, PREPAREs and COMMITs of height 2 wait for the DECIDED of height 1."""
    ahead, bench = Bench(me=2), Bench(me=1)
    first = ahead.block()
    ahead.decided(first, (0, 1, 3))
    second = ahead.block(transaction=b"second")
    early = [ahead.vote(kind, i, 0, second) for kind in (PREPARE, COMMIT) for i in (0, 2, 3)]
    bench.hear(0, ahead.proposal(second))
    for vote in early:
        bench.hear(vote.validator, messages.encode_vote(vote))
    assert bench.core.height == 1
    effects = bench.decided(first, (0, 2, 3))
    assert [d.height for d in decisions(effects)] == [1, 2]


def test_the_leader_stays_and_moves_on_every_fiftieth_height() -> None:
    """s(h) is the previous header's proposer; one slot on at multiples of K."""
    bench = Bench(n=4, me=1)
    for height in range(1, 2 * SLOT_HEIGHTS + 2):
        leader = (height // SLOT_HEIGHTS) % 4
        assert bench.core.height == height
        assert bench.core.leader() == leader
        bench.decide(b"%d" % height, proposer=leader)


def test_the_leader_follows_the_previous_proposer() -> None:
    """After a round change the new leader stays: a dead one does not cost a time-out a cycle."""
    bench = Bench(n=4, me=1)
    bench.decide(b"a", proposer=2)
    assert bench.core.leader() == 2
    bench.decide(b"b", proposer=3)
    assert bench.core.leader() == 3


def test_seven_validators_with_two_silent_go_on() -> None:
    """f = 2 of n = 7 are dead, the leader among them: every transaction is decided."""
    world = World(7)
    world.boot(1, 2, 4, 5, 6)
    for number, name in enumerate((1, 2, 4)):
        world.submit(name, b"%d" % number)
        assert world.reach(number + 1, 30_000, (1, 2, 4, 5, 6))
    assert len({tuple(world.ids(i)) for i in (1, 2, 4, 5, 6)}) == 1
    assert sorted(world.transactions(1)) == [b"0", b"1", b"2"]


def test_seven_validators_with_three_silent_decide_nothing() -> None:
    """Beyond f there is no quorum, and so no block: safety before liveness."""
    world = World(7)
    world.boot(1, 2, 4, 5)
    world.submit(1, TX)
    assert not world.run(60_000, lambda: max(world.heights()) > 0)


def test_an_observer_follows_and_says_nothing() -> None:
    """Without a key the core counts others' COMMITs, decides, and never signs."""
    bench = Bench(observer=True)
    block = bench.block()
    bench.propose(block)
    bench.say(PREPARE, (0, 1, 2), 0, block)
    bench.say(COMMIT, (0, 1, 2), 0, block)
    assert len(decisions(bench.done)) == 1
    assert sent(bench.done) == []
    assert journaled(bench.done) == []
    bench.work(b"more")
    assert timer(bench.done, "round") is None


def test_a_slow_network_decides_as_well() -> None:
    """Delays of half a time-out change nothing but the time it takes."""

    class Slow(Policy):
        def deliveries(self, *_: object) -> tuple[int, ...]:
            return (400,)

    world = World(4, policy=Slow())
    world.boot()
    world.submit(2, TX)
    assert world.run(20_000, lambda: min(world.heights()) == 1)


def test_timing_refuses_a_longest_timeout_below_a_whole_round() -> None:
    """16 * T0 must exceed a round with the largest block, or a healthy network never finishes."""
    with pytest.raises(UsageError, match="must exceed worst_round_ms"):
        Timing(base_timeout_ms=100, worst_round_ms=1_600)
    with pytest.raises(UsageError, match="resend_ms"):
        Timing(resend_ms=0)
    assert Timing(base_timeout_ms=101, worst_round_ms=1_600).timeout_ms(99) == 1_616


def test_the_timeout_doubles_up_to_its_cap() -> None:
    """min(T0 * 2^r, 16 * T0): 2^r without a cap waited 4,096 s in besu #7642."""
    timing = Timing(base_timeout_ms=1_000)
    assert [timing.timeout_ms(r) for r in (0, 1, 2, 3, 4, 5, 2**31)] == [
        1_000,
        2_000,
        4_000,
        8_000,
        16_000,
        16_000,
        16_000,
    ]


def test_status_says_where_the_core_stands() -> None:
    """What an operator asks: height, round, leader, who is where, whether a time-out runs."""
    bench = Bench()
    assert bench.core.status().height == 1
    assert not bench.core.status().timer_runs
    bench.propose(bench.block())
    status = bench.core.status()
    assert (status.accepted, status.timer_runs, status.leader) == (True, True, 0)
    assert status.may_sign
    assert bench.now == START_MS
