"""The state's root says what the state says, and a fork is nobody else's."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedchain_ledger.core.state import (
    ChainState,
    CommittedUpdate,
    Member,
    Round,
    Run,
    RunRules,
)
from fedchain_ledger.core.table import Table
from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import key_id
from tests.unit.chainkit import MODEL_0, MODEL_1, Consortium, key

GENESIS = Consortium().genesis
RULES = RunRules(2, 1000, 60_000, "fedavg/v1")
RUN = Run(sha256(b"run"), "server", RULES, MODEL_0, MODEL_0)
ROUND = Round(1, MODEL_0, sha256(b"do"), ("alice", "bob", "carol"), 3, 99_000)

NAMES = st.sampled_from([f"member-{i}" for i in range(12)])
DIGESTS = st.binary(min_size=32, max_size=32)


def update(name: str, examples: int = 10) -> CommittedUpdate:
    return CommittedUpdate(name, sha256(name.encode()), examples, sha256(b"u", name.encode()))


def entry(key: bytes, value: bytes) -> bytes:
    return bytes([len(key)]) + key + value


@given(st.dictionaries(st.binary(max_size=8), DIGESTS, max_size=12), st.randoms())
def test_table_root_depends_on_content_only(content: dict[bytes, bytes], random: object) -> None:
    """Equal entries have an equal root, whatever order they came in and whatever they replaced."""
    plain: Table[bytes, bytes] = Table(entry)
    for one, value in content.items():
        plain.put(one, value)
    shuffled: Table[bytes, bytes] = Table(entry)
    keys = list(content)
    random.shuffle(keys)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    for one in keys:
        shuffled.put(one, b"an older value")
    shuffled.root()
    for one in reversed(keys):
        shuffled = shuffled.fork()
        shuffled.put(one, content[one])
    expected = [merkle.leaf_hash(entry(one, content[one])) for one in sorted(content)]
    assert plain.root() == shuffled.root() == merkle.root(expected)


@given(
    st.dictionaries(st.binary(max_size=8), DIGESTS, max_size=8),
    st.lists(st.tuples(st.booleans(), st.binary(max_size=8), DIGESTS), max_size=12),
)
def test_table_fork_is_isolated_both_ways(
    content: dict[bytes, bytes], writes: list[tuple[bool, bytes, bytes]]
) -> None:
    """What is written to a table or its fork shows in that one alone."""
    first: Table[bytes, bytes] = Table(entry)
    for one, value in content.items():
        first.put(one, value)
    tables, expected = (first, first.fork()), (dict(content), dict(content))
    for to_fork, one, value in writes:
        tables[to_fork].put(one, value)
        expected[to_fork][one] = value
    for table, model in zip(tables, expected, strict=True):
        assert dict(table) == model
        alone: Table[bytes, bytes] = Table(entry)
        for one, value in model.items():
            alone.put(one, value)
        assert table.root() == alone.root()


@settings(max_examples=50)
@given(st.lists(NAMES, unique=True, min_size=1), st.lists(NAMES, unique=True))
def test_updates_of_a_fork_do_not_reach_the_parent(first: list[str], second: list[str]) -> None:
    """An open round's updates grow in place, but never in a state that somebody else holds."""
    state = ChainState(GENESIS)
    state.open_run(RUN)
    state.open_round(RUN.id, ROUND)
    for name in first:
        state.record_update(RUN.id, update(name))
    root = state.root()
    fork = state.fork()
    for name in second:
        fork.record_update(RUN.id, update(name, 99))
    assert state.root() == root
    assert set(_updates(state)) == set(first)
    assert set(_updates(fork)) == set(first) | set(second)
    state.record_update(RUN.id, update("latecomer"))
    assert "latecomer" not in _updates(fork)


def _updates(state: ChainState) -> dict[str, CommittedUpdate]:
    current = state.runs[RUN.id].open_round
    assert current is not None
    return dict(current.updates)


@given(st.permutations(["alice", "bob", "carol"]))
def test_root_does_not_know_in_which_order_updates_came(names: list[str]) -> None:
    """The root is a function of the updates, and the log tells their order."""
    roots = set()
    for order in (names, sorted(names)):
        state = ChainState(GENESIS)
        state.open_run(RUN)
        state.open_round(RUN.id, ROUND)
        for name in order:
            state = state.fork()
            state.record_update(RUN.id, update(name))
        roots.add(state.root())
    assert len(roots) == 1


def _with_run(run: Run) -> bytes:
    state = ChainState(GENESIS)
    state.open_run(run)
    return state.root()


CHANGED_RUNS = {
    "aggregator": replace(RUN, aggregator="serves"),
    "min_clients": replace(RUN, rules=replace(RULES, min_clients=3)),
    "max_examples": replace(RUN, rules=replace(RULES, max_examples_per_client=999)),
    "deadline": replace(RUN, rules=replace(RULES, round_deadline_ms=1)),
    "rule": replace(RUN, rules=replace(RULES, rule="fedavg/v2")),
    "initial": replace(RUN, initial_model=MODEL_1),
    "model": replace(RUN, model=MODEL_1),
    "closed_rounds": replace(RUN, closed_rounds=1),
    "outcome": replace(RUN, outcome=wire.RUN_OUTCOME_COMPLETED),
    "open_round": replace(RUN, open_round=ROUND),
    "number": replace(RUN, open_round=replace(ROUND, number=2)),
    "base": replace(RUN, open_round=replace(ROUND, base_model=MODEL_1)),
    "instruction": replace(RUN, open_round=replace(ROUND, instruction=MODEL_1)),
    "cohort": replace(RUN, open_round=replace(ROUND, cohort=("alice", "bobc", "arol"))),
    "opened": replace(RUN, open_round=replace(ROUND, opened_height=4)),
    "round deadline": replace(RUN, open_round=replace(ROUND, deadline_ms=1)),
    "update": replace(RUN, open_round=replace(ROUND, updates={"alice": update("alice")})),
    "weight": replace(RUN, open_round=replace(ROUND, updates={"alice": update("alice", 11)})),
}


def test_root_covers_every_field_of_a_run() -> None:
    """No part of a run can change and leave the state's root as it was."""
    roots = [_with_run(run) for run in (RUN, *CHANGED_RUNS.values())]
    assert len(set(roots)) == len(roots)


def test_root_covers_every_field_of_a_member() -> None:
    """No part of a membership can change and leave the state's root as it was."""
    member = Member("alice", wire.ROLE_PARTICIPANT, key("alice").public, 1)
    changed = [
        replace(member, name="alicf"),
        replace(member, role=wire.ROLE_AGGREGATOR),
        replace(member, public_key=key("bob").public),
        replace(member, admitted_height=2),
        replace(member, revoked_height=2),
    ]
    roots = []
    for one in (member, *changed):
        state = ChainState(GENESIS)
        state.admit_member(one)
        roots.append(state.root())
    assert len(set(roots)) == len(roots)


def test_root_covers_kept_evidence() -> None:
    """Evidence that is kept cannot be lost without a trace."""
    state = ChainState(GENESIS)
    before = state.root()
    state.keep_evidence(b"accused and offence", sha256(b"tx"))
    assert state.root() != before


def test_keys_are_found_by_their_id() -> None:
    """Validators, admission keys and members, revoked ones too, are known; a stranger is not."""
    state = ChainState(GENESIS)
    alice = key("alice").public
    state.admit_member(Member("alice", wire.ROLE_PARTICIPANT, alice, 1))
    fork = state.fork()
    fork.revoke_member("alice", 2)
    fork.admit_member(Member("bob", wire.ROLE_PARTICIPANT, key("bob").public, 2))
    for public in (alice, GENESIS.admission_keys[1], GENESIS.validators[2].public_key):
        assert fork.key_of(key_id(public)) == public
    assert state.key_of(key("bob").key_id) is None
    assert fork.key_of(key("stranger").key_id) is None
    revoked = fork.member_of(key_id(alice))
    assert revoked is not None
    assert not revoked.in_force
    assert state.members["alice"].in_force


def test_update_without_an_open_round_is_our_own_fault() -> None:
    """The rules let no update by without a round: reaching this is a broken invariant."""
    state = ChainState(GENESIS)
    state.open_run(RUN)
    with pytest.raises(AssertionError):
        state.record_update(RUN.id, update("alice"))
