"""What a later round accepts: proposals with their justification, locks with their certificate."""

from collections.abc import Sequence

import pytest

from fedchain_ledger.core import messages
from fedchain_ledger.core.votebook import COMMIT, PREPARE, ROUND_CHANGE
from fedchain_proto import wire_pb2 as wire
from tests.unit.consensuskit import Bench, refusals, sent, sent_messages

# ------------------------------------------------------------------ R1: what a later round accepts


def proposal_of_round_2(
    bench: Bench,
    changes: Sequence[wire.SignedVote],
    prepares: Sequence[wire.SignedVote] = (),
    block: wire.Block | None = None,
) -> list[wire.SignedVote]:
    """Round 2's leader proposes; what validator 1 then PREPAREs."""
    block = block or bench.block(proposer=2)
    return sent(bench.propose(block, 2, changes=changes, prepares=prepares), PREPARE)


def test_a_justified_new_block_is_accepted_in_a_later_round() -> None:
    """The positive twin of all the refusals below; the round is entered by it."""
    bench = Bench(me=1)
    changes = [bench.change_vote(i, 2) for i in (0, 2, 3)]
    assert proposal_of_round_2(bench, changes)
    assert bench.core.round == 2


@pytest.mark.parametrize("case", ["none", "q-1", "twice", "round", "height", "chain", "unsigned"])
def test_a_proposal_without_q_round_changes_is_refused(case: str) -> None:
    """R1: q distinct, valid ROUND_CHANGEs for exactly this height and round."""
    bench = Bench(me=1)
    changes = [bench.change_vote(i, 2) for i in (0, 2, 3)]
    if case == "none":
        changes = []
    elif case == "q-1":
        changes = changes[:2]
    elif case == "twice":
        changes = [changes[0], changes[1], changes[1]]
    elif case == "round":
        changes[2] = bench.change_vote(3, 3)
    elif case == "height":
        changes[2] = bench.vote(ROUND_CHANGE, 3, 2, None, height=2)
    elif case == "chain":
        changes[2] = bench.vote(ROUND_CHANGE, 3, 2, None, chain_id=bytes(31) + b"x")
    else:
        changes[2].signature = bytes(64)
    assert proposal_of_round_2(bench, changes) == []
    assert bench.core.round == 0
    assert refusals(bench.done)


def test_a_new_block_is_refused_when_one_was_prepared() -> None:
    """R1: the block must be that of the highest prepared round."""
    bench = Bench(me=1)
    lock = bench.lock(0, bench.block(), (0, 2, 3))
    changes = [bench.change_vote(0, 2, lock), bench.change_vote(2, 2), bench.change_vote(3, 2)]
    assert proposal_of_round_2(bench, changes) == []
    assert proposal_of_round_2(bench, changes, lock.prepares) == []
    fresh = Bench(me=1)
    assert proposal_of_round_2(fresh, changes, lock.prepares, lock.block)


def test_the_block_must_be_the_highest_prepared_one() -> None:
    """Two locks: only that of the higher round may be proposed, and only it needs PREPAREs."""
    bench = Bench(me=1)
    low = bench.lock(0, bench.block(), (0, 2, 3))
    high = bench.lock(1, bench.block(transaction=b"high"), (0, 2, 3))
    changes = [bench.change_vote(0, 2, low), bench.change_vote(2, 2, high)]
    changes.append(bench.change_vote(3, 2))
    assert proposal_of_round_2(bench, changes, low.prepares, low.block) == []
    fresh = Bench(me=1)
    # sigp/anchor #592: that not all round changes carry the top lock is no reason to refuse.
    assert proposal_of_round_2(fresh, changes, high.prepares, high.block)


@pytest.mark.parametrize("case", ["none", "q-1", "twice", "round", "block", "type", "unsigned"])
def test_a_prepared_block_comes_with_its_q_prepares(case: str) -> None:
    """A claimed lock proves itself: q distinct valid PREPAREs of its round for its block."""
    bench = Bench(me=1)
    lock = bench.lock(0, bench.block(), (0, 2, 3))
    changes = [bench.change_vote(i, 2, lock) for i in (0, 2, 3)]
    prepares = list(lock.prepares)
    if case == "none":
        prepares = []
    elif case == "q-1":
        prepares = prepares[:2]
    elif case == "twice":
        prepares[1] = prepares[0]
    elif case == "round":
        prepares[2] = bench.vote(PREPARE, 3, 1, lock.block)
    elif case == "block":
        prepares[2] = bench.vote(PREPARE, 3, 0, bench.block(transaction=b"other"))
    elif case == "type":
        prepares[2] = bench.vote(COMMIT, 3, 0, lock.block)
    else:
        prepares[2].signature = bytes(64)
    assert proposal_of_round_2(bench, changes, prepares, lock.block) == []
    assert refusals(bench.done)


def test_the_clock_is_not_checked_again_when_a_block_is_proposed_again() -> None:
    """indy-plenum #1488: after a long partition the prepared block's time is far in the past."""
    bench = Bench(me=1)
    lock = bench.lock(0, bench.block(), (0, 2, 3))
    bench.now += 3_600_000
    changes = [bench.change_vote(i, 2, lock) for i in (0, 2, 3)]
    assert proposal_of_round_2(bench, changes, lock.prepares, lock.block)


def test_the_proposer_is_not_checked_again_when_a_block_is_proposed_again() -> None:
    """Its header names the first leader, not the one of this round."""
    bench = Bench(me=1)
    lock = bench.lock(1, bench.block(proposer=1), (0, 2, 3))
    changes = [bench.change_vote(i, 2, lock) for i in (0, 2, 3)]
    assert proposal_of_round_2(bench, changes, lock.prepares, lock.block)


def test_a_new_block_in_a_later_round_has_its_clock_and_proposer_checked() -> None:
    """Only what q validators have PREPAREd is exempt."""
    late, foreign = Bench(me=1), Bench(me=1)
    changes = [late.change_vote(i, 2) for i in (0, 2, 3)]
    old = late.block(proposer=2)
    late.now += 3_600_000
    assert proposal_of_round_2(late, changes, (), old) == []
    assert proposal_of_round_2(foreign, changes, (), foreign.block(proposer=0)) == []


def test_a_block_that_reproduces_nowhere_is_not_prepared_again() -> None:
    """Content is validated on a re-proposal too: a quorum of liars' PREPAREs makes no state."""
    bench = Bench(me=1)
    block = bench.block()
    block.header = block.header[:-1] + b"\x01"  # another state root
    block.envelopes.append(b"more")
    lock = bench.lock(0, block, (0, 2, 3))
    changes = [bench.change_vote(i, 2, lock) for i in (0, 2, 3)]
    assert proposal_of_round_2(bench, changes, lock.prepares, lock.block) == []


def test_a_proposal_of_round_0_carries_no_justification() -> None:
    """What nobody needs nobody sends."""
    bench = Bench(me=1)
    assert not sent(bench.propose(bench.block(), changes=[bench.change_vote(0, 1)]), PREPARE)


# ------------------------------------------------------------------ round changes of others


@pytest.mark.parametrize("case", ["whole", "no lock", "q-1", "unsigned", "block", "body"])
def test_a_round_change_without_its_certificate_is_not_counted(case: str) -> None:
    """sawtooth-pbft, and a real fork in dedis/cothority #2079: the claim alone says nothing."""
    bench = Bench(me=2)
    lock = bench.lock(0, bench.block(), (0, 1, 3))
    vote = bench.change_vote(0, 2, lock)
    block: wire.Block | None = wire.Block.FromString(lock.block.SerializeToString())
    prepares = list(lock.prepares)
    if case == "no lock":
        block, prepares = None, []
    elif case == "q-1":
        prepares = prepares[:2]
    elif case == "unsigned":
        prepares[0].signature = bytes(64)
    elif case == "block":
        block = bench.block(transaction=b"other")
    elif case == "body":
        assert block is not None
        block.envelopes[0] = b"another body under the same header"
    bench.hear(0, messages.encode_round_change(vote, block, prepares))
    counted = 0 in bench.core.status().round_changes
    assert counted == (case == "whole")
    assert bool(refusals(bench.done)) == (case != "whole")


def test_a_tampered_copy_of_a_lock_does_not_shadow_the_true_one() -> None:
    """The leader proposes the true body even if a liar's copy came first."""
    bench = Bench(me=2)
    lock = bench.lock(0, bench.block(), (0, 1, 3))
    fake = wire.Block.FromString(lock.block.SerializeToString())
    fake.envelopes[0] = b"another body"
    vote = bench.change_vote(0, 2, lock)
    bench.hear(0, messages.encode_round_change(vote, fake, lock.prepares))
    bench.change(1, 2, lock)
    bench.change(3, 2)
    bench.change(0, 2, lock)
    proposals = sent_messages(bench.done, "proposal")
    assert [message.proposal.block for message in proposals] == [lock.block]
