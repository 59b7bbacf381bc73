"""What survives a crash, what is refused after it, and what a lost journal forbids."""

from dataclasses import replace

import pytest

from fedchain_ledger.core import messages
from fedchain_ledger.core.consensus import HaltError
from fedchain_ledger.core.effects import FOR_EVER, JournalEntry, JournalType, Send
from fedchain_ledger.core.signing import Journal
from fedchain_ledger.core.votebook import COMMIT, PREPARE, PROPOSAL, ROUND_CHANGE
from tests.sim.engine import Node, Policy, World
from tests.sim.toy import toy_keys
from tests.unit.consensuskit import (
    Bench,
    accusations,
    decisions,
    journaled,
    sent,
    sent_messages,
    timer,
)

# ------------------------------------------------------------------ restart


def test_after_a_restart_the_same_bytes_are_sent_again() -> None:
    """PROPOSAL and PREPARE come back from the journal verbatim; nothing is signed anew."""
    bench = Bench(me=0)
    before = [e.message for e in bench.work() if isinstance(e, Send)]
    bench.restart()
    after = [e.message for e in bench.fire("resend", 2_000) if isinstance(e, Send)]
    assert after == before
    assert journaled(bench.fire("resend", 2_000)) == []


def test_a_restarted_leader_proposes_no_second_block() -> None:
    """Its pool has changed; its PROPOSAL has not."""
    bench = Bench(me=0)
    (first,) = sent(bench.work(b"first"), PROPOSAL)
    bench.restart()
    bench.app.submit(b"first")
    effects = bench.work(b"other")
    assert sent(effects, PROPOSAL) == []
    (again,) = sent(bench.fire("resend", 2_000), PROPOSAL)
    assert again == first


def test_a_restarted_validator_prepares_no_other_block_in_that_round() -> None:
    """Amnesia (Besu, asonnino/hotstuff #15): the journal's PREPARE lets no second block in."""
    bench = Bench()
    block, other = bench.block(), bench.block(transaction=b"other")
    (first,) = sent(bench.propose(block), PREPARE)
    bench.restart()
    assert sent(bench.propose(other), PREPARE) == []
    bench.restart()
    bench.now += 60_000  # validated once: the clock is not asked again
    (again,) = sent(bench.propose(block), PREPARE)
    assert again == first


def test_a_restarted_validator_is_in_the_round_that_it_had_reached() -> None:
    """Nothing below that round is PREPAREd after the restart either."""
    bench = Bench()
    raw = bench.proposal(bench.block())
    bench.work()
    bench.fire("round", 1_000)
    bench.restart()
    assert bench.core.round == 1
    assert sent(bench.hear(0, raw), PREPARE) == []
    assert [v.round for v in sent(bench.fire("resend", 2_000), ROUND_CHANGE)] == [1]


def test_the_lock_survives_a_restart() -> None:
    """The next ROUND_CHANGE carries block and PREPAREs as if nothing had happened."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    (commit,) = sent(bench.say(PREPARE, (0, 2), 0, block), COMMIT)
    bench.restart()
    assert bench.core.status().locked_round == 0
    assert commit in sent(bench.fire("resend", 2_000), COMMIT)
    assert timer(bench.done, "round") is not None  # there is something to decide
    (message,) = sent_messages(bench.fire("round", 1_000), "round_change")
    assert message.round_change.vote.prepared_round == 1
    assert message.round_change.block == block


def test_a_restarted_validator_decides_with_its_own_commit() -> None:
    """Its COMMIT from before the crash counts; the block is in the lock's row."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    bench.say(PREPARE, (0, 2), 0, block)
    bench.restart()
    assert decisions(bench.say(COMMIT, (2, 3), 0, block))


def test_a_decision_forgets_what_was_signed() -> None:
    """The journal is pruned with the decision and starts empty at the next height."""
    bench = Bench()
    bench.propose(bench.block())
    assert bench.store.journal
    bench.decide(b"another that the others decided")
    assert bench.store.journal == {}
    assert bench.core._voice.journal.messages(1) == []


class DiesAt(Policy):
    """One node dies before its k-th effect, and comes back to other work than it had."""

    def __init__(self, name: int, k: int) -> None:
        self.name, self.left = name, k

    def dies(self, world: World, node: Node) -> bool:
        if node.name != self.name:
            return False
        self.left -= 1
        if self.left:
            return False
        world.at(5, lambda: self.come_back(world))  # before the block is decided
        return True

    def come_back(self, world: World) -> None:
        world.boot(self.name)
        world.submit(self.name, b"other work")


@pytest.mark.parametrize("name", [0, 1])
def test_a_crash_between_any_two_effects_contradicts_nothing(name: int) -> None:
    """At every effect boundary of leader and follower: one block a height, all progress."""
    for k in range(1, 30):
        world = World(4, policy=DiesAt(name, k))
        world.boot()
        for number in range(2):
            world.submit(2, b"%d" % number)
            assert world.reach(number + 1, 30_000), k
        assert len({tuple(world.ids(i)) for i in range(4)}) == 1, k
        assert [node.accusations for node in world.nodes] == [[]] * 4, k


# ------------------------------------------------------------------ the refusal to sign twice


def test_the_journal_refuses_a_second_different_message() -> None:
    """One (height, round, type), one message; the equal one is no contradiction."""
    row = JournalEntry(3, 1, JournalType.PREPARE, b"one")
    journal = Journal([row])
    journal.record(row)
    with pytest.raises(HaltError, match="second, different PREPARE"):
        journal.record(replace(row, data=b"two"))
    journal.record(replace(row, round=2, data=b"two"))


def test_a_core_that_is_about_to_contradict_its_journal_halts() -> None:
    """The last defence, should the rules fail: R1's own check is taken away here."""
    bench = Bench()
    bench.propose(bench.block())
    state = bench.core._replica.state
    state.accepted = None
    with pytest.raises(HaltError, match="contradict"):
        bench.core._replica._accept(bytes(32), bench.block(transaction=b"other"))


def test_a_damaged_journal_halts() -> None:
    """tendermint #3295: corruption that is skipped is amnesia."""
    bench = Bench()
    bench.propose(bench.block())
    ((key, row),) = bench.store.journal.items()
    bench.store.journal[key] = replace(row, data=row.data[:-1])
    with pytest.raises(HaltError, match="journal is damaged"):
        bench.restart()


def test_a_row_under_a_wrong_key_halts() -> None:
    """A row that holds another message than its key says is damage too."""
    bench = Bench()
    bench.propose(bench.block())
    ((key, row),) = bench.store.journal.items()
    bench.store.journal = {(1, 5, key[2]): replace(row, round=5)}
    with pytest.raises(HaltError, match="holds another message"):
        bench.restart()


def test_another_keys_journal_halts() -> None:
    """A database under a key that did not write it."""
    bench = Bench(me=1)
    bench.propose(bench.block())
    bench.me = 2
    with pytest.raises(HaltError, match="another key"):
        bench.restart()


# ------------------------------------------------------------------ a lost journal


def test_a_validator_that_lost_its_journal_signs_nothing() -> None:
    """It follows and decides, in silence; with its journal it would have PREPAREd."""
    bench = Bench(journal_lost=True)
    block = bench.block()
    bench.propose(block)
    bench.work(b"work")
    bench.say(PREPARE, (0, 2, 3), 0, block)
    bench.say(COMMIT, (0, 2, 3), 0, block)
    bench.fire("round", 60_000)
    assert sent(bench.done) == []
    assert len(decisions(bench.done)) == 1
    assert bench.core.height == 2


def tip(bench: Bench, who: int, height: int) -> None:
    bench.hear(who, messages.encode_tip(height))


def test_it_is_silent_up_to_two_above_the_highest_of_q_certified_tips() -> None:
    """max + 2 of q OTHERS; a tip counts once its certificate was verified here."""
    bench = Bench(journal_lost=True)
    bench.decide(b"1")
    tip(bench, 0, 1)
    tip(bench, 2, 1)
    tip(bench, 3, 4_000)  # a claim that nothing certifies
    assert bench.core._voice.abstention.waiting
    tip(bench, 3, 1)
    assert bench.core._voice.abstention.waiting  # his latest claim is still 4,000
    fresh = Bench(journal_lost=True)
    fresh.decide(b"1")
    for who in (0, 2, 3):
        tip(fresh, who, 1)
    assert not fresh.core._voice.abstention.waiting
    for height in (2, 3):
        fresh.propose(fresh.block(transaction=b"%d" % height))
        assert sent(fresh.done) == []
        fresh.decide(b"%d" % height)
    assert fresh.core.height == 4
    fresh.propose(fresh.block(transaction=b"4"))
    assert [vote.height for vote in sent(fresh.done, PREPARE)] == [4]


def test_a_claim_above_our_tip_counts_when_we_have_caught_up() -> None:
    """The tip is certified by the blocks that catch-up verifies."""
    bench = Bench(journal_lost=True)
    for who in (0, 2, 3):
        tip(bench, who, 1)
    assert bench.core._voice.abstention.waiting
    bench.decide(b"1")
    assert not bench.core._voice.abstention.waiting
    assert bench.core._voice.abstention.silent_at(3)
    assert not bench.core._voice.abstention.silent_at(4)


def test_the_silence_survives_a_restart() -> None:
    """Rows of type LOST stay in the journal, whatever is decided."""
    bench = Bench(journal_lost=True)
    bench.restart()
    assert bench.core._voice.abstention.waiting
    bench.decide(b"1")
    for who in (0, 2, 3):
        tip(bench, who, 1)
    bench.restart()
    abstention = bench.core._voice.abstention
    assert (abstention.waiting, abstention.silent_at(3), abstention.silent_at(4)) == (
        False,
        True,
        False,
    )
    assert {key[0] for key in bench.store.journal} == {FOR_EVER}


def test_an_own_message_that_the_journal_lacks_is_loss() -> None:
    """A restored backup or a failed-over replica shows in our own votes coming back."""
    bench = Bench()
    foreign = bench.vote(PREPARE, 1, 0, bench.block(transaction=b"forgotten"))
    bench.hear(2, messages.encode_vote(foreign))
    assert bench.core._voice.abstention.waiting
    assert [row.type for row in journaled(bench.done)] == [JournalType.LOST]
    bench.propose(bench.block())
    assert sent(bench.done) == []


def test_an_own_message_that_the_journal_has_is_no_loss() -> None:
    """Nor is one whose signature is not ours, nor one of a decided height."""
    bench = Bench()
    (own,) = sent(bench.propose(bench.block()), PREPARE)
    bench.hear(2, messages.encode_vote(own))
    forged = bench.vote(PREPARE, 1, 3, bench.block(transaction=b"forged"))
    forged.signature = toy_keys(4, fast=False)[2].sign(b"whatever")
    bench.hear(2, messages.encode_vote(forged))
    past = bench.vote(COMMIT, 1, 0, bench.block(transaction=b"past"))
    bench.decide(b"1")
    bench.hear(2, messages.encode_vote(past))
    assert not bench.core._voice.abstention.waiting


def test_an_own_signature_in_a_certificate_or_a_justification_is_looked_up_too() -> None:
    """The journal lacks a COMMIT that stands in a certificate, or a vote in a proposal."""
    bench = Bench()
    bench.decided(bench.block(), (0, 1, 2))
    assert bench.core._voice.abstention.waiting
    assert bench.core.height == 2
    other = Bench()
    changes = [other.change_vote(i, 2) for i in (0, 1, 2)]
    other.propose(other.block(proposer=2), 2, changes=changes)
    assert other.core._voice.abstention.waiting
    assert sent(other.done, PREPARE) == []
    assert accusations(other.done) == []  # nobody accuses himself


def test_two_validators_never_come_back_from_a_loss() -> None:
    """For n <= 2 there are no q others: it takes a new key."""
    bench = Bench(n=2, me=1, journal_lost=True)
    tip(bench, 0, 0)
    assert bench.core._voice.abstention.waiting
    three = Bench(n=3, me=1, journal_lost=True)
    tip(three, 0, 0)
    tip(three, 2, 0)
    assert not three.core._voice.abstention.waiting


def test_a_world_recovers_from_one_lost_journal() -> None:
    """Erased database, old key: it catches up, stays silent as long as needed, then helps again."""
    world = World(4)
    world.boot()
    for number in range(3):
        world.submit(0, b"%d" % number)
        assert world.reach(number + 1, 5_000)
    world.crash(2)
    world.nodes[2].store.journal = {}
    world.nodes[2].store.chain = []
    world.boot(2, journal_lost=True)
    assert world.run(30_000, lambda: min(world.heights()) == 3)
    assert world.run(30_000, lambda: not world.nodes[2].core._voice.abstention.waiting)
    for number in range(3, 6):
        world.submit(0, b"%d" % number)
        assert world.reach(number + 1, 30_000)
    world.crash(3)  # now the one that had lost its journal is needed for a quorum
    world.submit(0, b"needed")
    assert world.run(30_000, lambda: sorted(world.heights())[1] == 7)
