"""The rules of consensus.md, each broken alone: bugs that others shipped, and kinds of our own.

``MUTANTS`` says for each one how it is switched on and which tests it must fail. A test suite
that lets one live proves nothing about that rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

from fedchain_ledger.core import consensus, future, messages, replica, roundchange, signing
from fedchain_ledger.core.abstention import Abstention
from fedchain_ledger.core.consensus import Core
from fedchain_ledger.core.effects import Persist
from fedchain_ledger.core.height import HeightState
from fedchain_ledger.core.outbox import Outbox
from fedchain_ledger.core.peers import Peers
from fedchain_ledger.core.replica import Replica
from fedchain_ledger.core.roundchange import Lock
from fedchain_ledger.core.signing import Journal
from fedchain_ledger.core.timing import Timing
from fedchain_ledger.core.votebook import COMMIT, PREPARE, PROPOSAL, ROUND_CHANGE, VoteBook
from fedchain_proto import trust
from fedchain_proto.blocks import Certificate
from fedchain_proto.errors import EvidenceError
from tests.sim import test_scenarios as scenarios
from tests.sim.simulator import simulate
from tests.sim.toy import ToyApplication
from tests.unit import test_consensus_byzantine as byzantine
from tests.unit import test_consensus_catchup as catchup
from tests.unit import test_consensus_journal as journal
from tests.unit import test_consensus_justification as justification
from tests.unit import test_consensus_normal as normal
from tests.unit import test_consensus_roundchange as roundchanges

Killer = Callable[[], None]
Switch = Callable[[], Any]  # a context manager


@dataclass(frozen=True)
class Mutant:
    """One broken rule.

    Attributes:
        name: What is broken.
        switch: Breaks it for as long as the context lasts.
        killers: Tests that hold without it, and must fail with it.
    """

    name: str
    switch: Switch
    killers: tuple[Killer, ...]


def storms(count: int, n: int | None = None) -> Killer:
    """The first so many random seeds."""

    def run() -> None:
        for seed in range(count):
            simulate(seed, n)

    return run


def patched(target: object, name: str, value: object) -> Switch:
    """Another value or function in the place of one."""
    return lambda: patch.object(target, name, value)


# ------------------------------------------------------------------ quorums


@contextmanager
def quorum_of_2f_plus_1() -> Iterator[None]:
    """sawtooth-pbft, 0xPolygon: right for n = 3f + 1 only."""
    real = trust.ValidatorSet.__post_init__

    def wrong(self: trust.ValidatorSet) -> None:
        real(self)
        object.__setattr__(self, "quorum", 2 * self.f + 1)

    with patch.object(trust.ValidatorSet, "__post_init__", wrong):
        yield


def _mixed(types: tuple[int, ...]) -> Switch:
    """Count votes for a block whatever their round."""
    real = VoteBook.signers

    def signers(self: VoteBook, type_: int, round_: int, block_id: bytes) -> list[Any]:
        if type_ not in types:
            return real(self, type_, round_, block_id)
        found = []
        for index in range(self._validators.n):
            votes = self._votes.get((index, type_), {}).values()
            found += [vote for vote in votes if vote.block_id == block_id][:1]
        return found

    return patched(VoteBook, "signers", signers)


def _messages_counted() -> Any:
    """Every arrival counts, whoever sent it."""
    real = VoteBook.add

    def add(self: VoteBook, vote: Any) -> Any:
        found = real(self, vote)
        for index in range(self._validators.n):  # as if another had sent a repeated one
            if vote.type == PREPARE and (index, PREPARE) not in self._votes:
                self._votes[index, PREPARE] = {vote.round: vote}
                break
        return found

    return patch.object(VoteBook, "add", add)


# ------------------------------------------------------------------ locks and justifications


def _round_change_without_lock(self: Replica, round_: int) -> None:
    self.state.enter(round_)
    if self.may_sign():
        self._voice.speak(
            self.state,
            ROUND_CHANGE,
            b"",
            lambda vote: messages.encode_round_change(vote, None, ()),
        )


def _lock_lost(minimum: int) -> Switch:
    real = HeightState.enter

    def enter(self: HeightState, round_: int) -> None:
        if round_ - self.round >= minimum:
            self.lock = None
        real(self, round_)

    return patched(HeightState, "enter", enter)


def _believed_lock(vote: Any, block: Any, prepares: Any, quorum: int, verify: Any) -> Lock:
    return Lock(vote.prepared_round - 1, vote.block_id, block, tuple(prepares))


def _all_must_carry_the_top_lock(proposal: Any, quorum: int, verify: Any) -> bool:
    if len({change.prepared_round for change in proposal.round_changes}) > 1:
        raise EvidenceError("not all carry the top lock")
    return roundchange.check_justification(proposal, quorum, verify)


def _checked_again(proposal: Any, quorum: int, verify: Any) -> bool:
    roundchange.check_justification(proposal, quorum, verify)
    return False


def _new_block_instead(self: Replica, lock: Lock, changes: Any) -> bool:
    return self._app.has_work() and self._propose_new(changes, self._app.tip_height + 1_000_000)


# ------------------------------------------------------------------ signing


def _forgetful(self: Journal, entries: Any) -> None:
    self._rows = {}


@contextmanager
def double_accept() -> Iterator[None]:
    """R1 without "none was accepted at (h, r)"; journal and store still refuse the signature."""
    real = Replica.on_proposal

    def on_proposal(self: Replica, proposal: Any, now_ms: int) -> None:
        vote = proposal.vote
        if vote.round == self.state.round:
            self.state.accepted = None
            self.state.book._votes.pop((vote.validator, PROPOSAL), None)
        real(self, proposal, now_ms)

    journaled = Journal.vote

    def nothing_prepared(self: Journal, height: int, round_: int, type_: int) -> Any:
        return None if type_ == PREPARE else journaled(self, height, round_, type_)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Replica, "on_proposal", on_proposal))
        stack.enter_context(patch.object(Journal, "vote", nothing_prepared))
        yield


def _below_the_round() -> Any:
    real = Replica.on_proposal

    def on_proposal(self: Replica, proposal: Any, now_ms: int) -> None:
        self.state.round = min(self.state.round, proposal.vote.round)
        real(self, proposal, now_ms)

    return patch.object(Replica, "on_proposal", on_proposal)


def _audible_before_durable() -> Any:
    real = Outbox.take

    def take(self: Outbox) -> Any:
        effects = real(self)
        late = [effect for effect in effects if isinstance(effect, Persist)]
        return [effect for effect in effects if not isinstance(effect, Persist)] + late

    return patch.object(Outbox, "take", take)


# ------------------------------------------------------------------ moving on


def _highest_of_anybody(self: HeightState) -> int | None:
    rounds = [vote.round for vote in self.book.round_changes().values()]
    return max(rounds) if rounds and max(rounds) > self.round else None


def _uncapped(self: Timing, round_: int) -> int:
    return self.base_timeout_ms << min(round_, 40)


@contextmanager
def unbounded_future() -> Iterator[None]:
    """Keep whatever comes early."""

    def keep(self: future.Future, current: int, vote: Any, data: bytes, f: int) -> None:
        key = (vote.validator, (vote.type, vote.round, vote.block_id))
        self._kept.setdefault(vote.height, {})[key] = data  # type: ignore[index]  # on purpose

    with patch.object(future.Future, "keep", keep):
        yield


@contextmanager
def nothing_verified() -> Iterator[None]:
    """Votes are believed as they come."""
    with ExitStack() as stack:
        for module in (replica, consensus):
            stack.enter_context(patch.object(module, "check_vote", lambda *_: None))
        yield


AMNESIA = patched(signing.Journal, "__init__", _forgetful)

MUTANTS = (
    Mutant(
        "quorum 2f+1 at n = 6",
        quorum_of_2f_plus_1,
        (scenarios.test_two_halves_of_six_decide_nothing_apart, storms(600, 6)),
    ),
    Mutant(
        "quorum 2f+1 at n = 5",
        quorum_of_2f_plus_1,
        (scenarios.test_a_twin_between_two_parts_of_five_forks_nothing,),
    ),
    Mutant(
        "PREPAREs of different rounds mixed",
        _mixed((PREPARE,)),
        (roundchanges.test_prepares_for_the_same_block_in_two_rounds_make_no_quorum, storms(40)),
    ),
    Mutant(
        "COMMITs of different rounds mixed",
        _mixed((COMMIT,)),
        (normal.test_commits_of_different_rounds_are_not_mixed,),
    ),
    Mutant(
        "messages counted instead of signers",
        _messages_counted,
        (normal.test_one_prepare_below_the_quorum_commits_nothing,),
    ),
    Mutant(
        "round change sent without the lock",
        patched(Replica, "move_on", _round_change_without_lock),
        (
            scenarios.test_what_one_validator_has_decided_the_others_decide,
            roundchanges.test_the_round_change_carries_the_lock,
            storms(20),
        ),
    ),
    Mutant(
        "round change believed without its certificate",
        patched(replica, "check_lock", _believed_lock),
        tuple(
            partial(justification.test_a_round_change_without_its_certificate_is_not_counted, case)
            for case in ("q-1", "unsigned", "block", "body")
        ),
    ),
    Mutant(
        "proposal accepted without its justification",
        patched(replica, "check_justification", lambda proposal, *_: bool(proposal.prepares)),
        (
            partial(justification.test_a_proposal_without_q_round_changes_is_refused, "none"),
            partial(justification.test_a_prepared_block_comes_with_its_q_prepares, "q-1"),
            justification.test_a_new_block_is_refused_when_one_was_prepared,
        ),
    ),
    Mutant(
        "all round changes must carry the top lock (sigp/anchor #592)",
        patched(replica, "check_justification", _all_must_carry_the_top_lock),
        (justification.test_the_block_must_be_the_highest_prepared_one,),
    ),
    Mutant(
        "lock lost on a skipped round",
        _lock_lost(2),
        (roundchanges.test_the_lock_lives_for_the_height_and_not_for_the_round,),
    ),
    Mutant(
        "lock lost on every round change",
        _lock_lost(1),
        (scenarios.test_what_one_validator_has_decided_the_others_decide, storms(20)),
    ),
    Mutant(
        "clock and proposer checked again on re-proposal (indy-plenum #1488, besu #6613)",
        patched(replica, "check_justification", _checked_again),
        (
            justification.test_the_clock_is_not_checked_again_when_a_block_is_proposed_again,
            justification.test_the_proposer_is_not_checked_again_when_a_block_is_proposed_again,
            scenarios.test_a_block_that_is_proposed_again_keeps_its_bytes_and_its_id,
        ),
    ),
    Mutant(
        "another block in the place of the prepared one",
        patched(Replica, "_propose_again", _new_block_instead),
        (
            roundchanges.test_the_next_leader_proposes_the_highest_prepared_block_again,
            scenarios.test_what_one_validator_has_decided_the_others_decide,
        ),
    ),
    Mutant(
        "amnesia after a restart (Besu, asonnino/hotstuff #15)",
        AMNESIA,
        (
            journal.test_a_restarted_validator_prepares_no_other_block_in_that_round,
            scenarios.test_restarts_do_not_undo_what_one_validator_has_decided,
            storms(40),
        ),
    ),
    Mutant(
        "double accept",
        double_accept,
        (byzantine.test_a_leader_that_proposes_two_blocks_is_followed_once_and_accused,),
    ),
    Mutant(
        "PREPARE below the current round",
        _below_the_round,
        (roundchanges.test_nothing_is_prepared_or_committed_below_the_current_round,),
    ),
    Mutant(
        "audible before durable",
        _audible_before_durable,
        (
            normal.test_every_vote_is_durable_before_it_is_audible,
            partial(journal.test_a_crash_between_any_two_effects_contradicts_nothing, 0),
            storms(100),
        ),
    ),
    Mutant(
        "a lost journal that signs on",
        patched(Abstention, "silent_at", lambda self, height: False),
        (journal.test_a_validator_that_lost_its_journal_signs_nothing,),
    ),
    Mutant(
        "no gate",
        patched(HeightState, "gate_open", lambda self, me: True),
        (
            scenarios.test_the_stall_that_the_gate_prevents,
            roundchanges.test_the_timer_of_a_later_round_waits_until_q_validators_are_there,
        ),
    ),
    Mutant(
        "uncapped time-out (besu #7642)",
        patched(Timing, "timeout_ms", _uncapped),
        (
            scenarios.test_rounds_that_failed_for_long_do_not_put_the_next_off_for_long,
            normal.test_the_timeout_doubles_up_to_its_cap,
        ),
    ),
    Mutant(
        "no resend (fabric #1917)",
        patched(Core, "_resend", lambda self: None),
        (catchup.test_messages_lost_in_a_partition_come_through_after_it, storms(40)),
    ),
    Mutant(
        "laggards left alone",
        patched(Peers, "serve", lambda *_: range(0)),
        (partial(catchup.test_a_node_that_was_away_catches_up_within_seconds, 1), storms(40)),
    ),
    Mutant(
        "no tips",
        patched(Core, "_tell_tip", lambda *_: None),
        (catchup.test_an_idle_laggard_learns_from_a_tip,),
    ),
    Mutant(
        "one signer's round believed (FISCO #2312)",
        patched(HeightState, "ahead", _highest_of_anybody),
        (roundchanges.test_one_liars_huge_round_moves_nobody,),
    ),
    Mutant(
        "unbounded buffers (indy-plenum #1542)",
        unbounded_future,
        (byzantine.test_votes_for_far_heights_are_dropped_and_for_near_ones_bounded,),
    ),
    Mutant(
        "votes not verified: a garbage signature in the certificate",
        nothing_verified,
        (
            byzantine.test_a_commit_with_a_garbage_signature_reaches_no_certificate,
            partial(byzantine.test_a_vote_replayed_elsewhere_counts_for_nothing, "chain"),
        ),
    ),
    Mutant(
        "catch-up believes its peer (bft-smart #62)",
        patched(Certificate, "verify", lambda *_: None),
        (partial(byzantine.test_a_lying_peer_in_catch_up_is_refused_and_reported, "garbage"),),
    ),
    Mutant(
        "a lying peer's body taken for the certified block",
        patched(consensus, "check_body", lambda block: None),
        (partial(byzantine.test_a_lying_peer_in_catch_up_is_refused_and_reported, "body"),),
    ),
    Mutant(
        "a leader that starves one owner is kept",
        patched(ToyApplication, "overlooked", lambda self: False),
        (
            scenarios.test_a_leader_cannot_starve_one_owner,
            roundchanges.test_a_transaction_overlooked_twice_opens_the_height_with_round_1,
        ),
    ),
    Mutant(
        "a dead leader is asked again at every height",
        patched(ToyApplication, "tip_proposer", property(lambda self: 0)),
        (scenarios.test_a_dead_leader_costs_one_timeout_and_not_one_a_height,),
    ),
)
