"""What the chain says now: members, runs, kept evidence, and the log's tree.

Follows from the genesis and the blocks alone. Holds no rule: policy.py decides what may happen,
the methods here only write down that it did. No clock, no randomness, no IO.
"""

import struct
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from fedchain_ledger.core.table import Table
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Header
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import key_id
from fedchain_proto.merkle import Frontier
from fedchain_proto.trust import Genesis, ValidatorSet

_STATE = b"fedchain/state/v1\0"


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody whom the admission keys let in.

    Attributes:
        name: Unique on the chain for ever.
        role: Role of wire.proto.
        public_key: Ed25519, 32 bytes.
        admitted_height: Height of the block that admitted it.
        revoked_height: Height of the block that revoked it, None while it is in force.
    """

    name: str
    role: int
    public_key: bytes
    admitted_height: int
    revoked_height: int | None = None

    @property
    def in_force(self) -> bool:
        """Whether its signature counts."""
        return self.revoked_height is None


@dataclass(frozen=True, slots=True)
class RunRules:
    """A run's parameters, fixed when it opens; see RunPolicy of wire.proto."""

    min_clients: int
    max_examples_per_client: int
    round_deadline_ms: int
    rule: str


@dataclass(frozen=True, slots=True)
class CommittedUpdate:
    """An update that stands in the log, as far as the rules need it.

    Attributes:
        participant: Its owner.
        tx_id: Transaction id, 32 bytes.
        num_examples: The signed weight.
        digest: Model digest of the trained arrays, 32 bytes.
        entry: SHA-256 of all of the above: computed once, however often the state is hashed.
    """

    participant: str
    tx_id: bytes
    num_examples: int
    digest: bytes
    entry: bytes = field(init=False)

    def __post_init__(self) -> None:
        packed = struct.pack("<32sQ32s", self.tx_id, self.num_examples, self.digest)
        object.__setattr__(self, "entry", sha256(_text(self.participant), packed))


@dataclass(frozen=True, slots=True)
class Round:
    """The open round of a run.

    Attributes:
        number: From 1.
        base_model: Model digest that training starts from.
        instruction: Digest of what every client is told to do.
        cohort: Names, ascending.
        opened_height: Height of RoundOpened's block.
        deadline_ms: Header time of that block plus the run's round time, unix milliseconds.
        updates: What stands in the log, by participant.
    """

    number: int
    base_model: bytes
    instruction: bytes
    cohort: tuple[str, ...]
    opened_height: int
    deadline_ms: int
    updates: Mapping[str, CommittedUpdate] = field(default_factory=dict)

    def asks(self, name: str) -> bool:
        """Whether `name` is in the cohort; O(log n), since every update asks."""
        at = bisect_left(self.cohort, name)
        return at < len(self.cohort) and self.cohort[at] == name


@dataclass(frozen=True, slots=True)
class Run:
    """One training. Closed rounds collapse into `model` and `closed_rounds`.

    Attributes:
        id: Transaction id of RunOpened, 32 bytes.
        aggregator: Name of the member that leads it.
        rules: Its parameters.
        initial_model: Model digest that round 1 starts from.
        model: Digest of the last output; the initial model before any.
        closed_rounds: How many rounds have closed, abandoned ones included.
        open_round: The round that takes updates, if any.
        outcome: RunOutcome of wire.proto, None while the run is open.
    """

    id: bytes
    aggregator: str
    rules: RunRules
    initial_model: bytes
    model: bytes
    closed_rounds: int = 0
    open_round: Round | None = None
    outcome: int | None = None


class ChainState:
    """The state after one block. Written to only on a fork that nobody else holds.

    Attributes:
        genesis: The trust root.
        validators: The set in force (in this version the genesis's, at every height).
        height: Of the last block applied; 0 is the genesis itself.
        head_id: Id of that block; the chain id at height 0.
        time_ms: Its header time, unix milliseconds.
        proposer: Index of its proposer.
        log: Merkle tree of every transaction of the chain.
        members: By name, revoked ones included.
        runs: By run id, closed ones included: a run's opening must not count twice.
        evidence: Kept offences, by (accused, offence, what was said twice) as bytes; the value is
            the transaction id.
    """

    __slots__ = (
        "_names", "_names_shared", "_owned", "_roots", "evidence", "genesis", "head_id", "height",
        "log", "members", "proposer", "runs", "time_ms", "validators",
    )  # fmt: skip

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.validators: ValidatorSet = genesis.validators
        self.height = 0
        self.head_id = genesis.chain_id
        self.time_ms = genesis.created_ms
        self.proposer = 0
        self.log = Frontier()
        self.members: Table[str, Member] = Table(_member_entry)
        self.runs: Table[bytes, Run] = Table(_run_entry)
        self.evidence: Table[bytes, bytes] = Table(_evidence_entry)
        # Keys that the genesis names; members' keys, by key id, are in _names.
        self._roots = {key_id(key): key for key in genesis.admission_keys}
        self._roots |= {v.key_id: v.public_key for v in genesis.validators.validators}
        self._names: dict[bytes, str] = {}
        self._names_shared = False
        # Runs whose open round's updates no other state shares, so that they may grow in place.
        self._owned: set[bytes] = set()

    def fork(self) -> "ChainState":
        """Return an independent state of equal content; O(1) however large it is."""
        other = object.__new__(ChainState)
        other.genesis, other.validators = self.genesis, self.validators
        other.height, other.head_id = self.height, self.head_id
        other.time_ms, other.proposer, other.log = self.time_ms, self.proposer, self.log
        other.members, other.runs = self.members.fork(), self.runs.fork()
        other.evidence = self.evidence.fork()
        other._roots, other._names = self._roots, self._names
        self._names_shared = other._names_shared = True
        self._owned = set()
        other._owned = set()
        return other

    def root(self) -> bytes:
        """Return the digest of all that the rules depend on; 32 bytes."""
        tables = (self.evidence, self.members, self.runs)
        parts = [struct.pack("<Q", len(table)) + table.root() for table in tables]
        return sha256(_STATE, *parts)

    def key_of(self, wanted: bytes) -> bytes | None:
        """Return the public key of a key id: validators, admission keys, members ever admitted."""
        name = self._names.get(wanted)
        return self.members[name].public_key if name is not None else self._roots.get(wanted)

    def member_of(self, wanted: bytes) -> Member | None:
        """Return the member, revoked or not, whose key has this id."""
        name = self._names.get(wanted)
        return None if name is None else self.members[name]

    # ------------------------------------------------------------ writing down what happened

    def admit_member(self, member: Member) -> None:
        """Write down a new member."""
        if self._names_shared:
            self._names, self._names_shared = self._names.copy(), False
        self._names[key_id(member.public_key)] = member.name
        self.members.put(member.name, member)

    def revoke_member(self, name: str, height: int) -> None:
        """Write down that a member's signature no longer counts."""
        self.members.put(name, replace(self.members[name], revoked_height=height))

    def open_run(self, run: Run) -> None:
        """Write down a new run."""
        self.runs.put(run.id, run)

    def open_round(self, run_id: bytes, opened: Round) -> None:
        """Write down a run's new open round."""
        self._owned.discard(run_id)
        self.runs.put(run_id, replace(self.runs[run_id], open_round=opened))

    def record_update(self, run_id: bytes, update: CommittedUpdate) -> None:
        """Write down an update of a run's open round."""
        run = self.runs[run_id]
        current = run.open_round
        if current is None:
            raise AssertionError("an update was let through while no round was open")
        if run_id not in self._owned:
            current = replace(current, updates=dict(current.updates))
            run = replace(run, open_round=current)
            self._owned.add(run_id)
        # Ours alone, as _owned says: growing it in place keeps a round of n updates O(n).
        cast(dict[str, CommittedUpdate], current.updates)[update.participant] = update
        self.runs.put(run_id, run)

    def close_round(self, run_id: bytes, model: bytes) -> None:
        """Write down that a run's open round ended with `model`."""
        run = self.runs[run_id]
        self._owned.discard(run_id)
        closed = replace(run, model=model, closed_rounds=run.closed_rounds + 1, open_round=None)
        self.runs.put(run_id, closed)

    def close_run(self, run_id: bytes, outcome: int) -> None:
        """Write down a run's end; a round that was open then stays as it was."""
        self.runs.put(run_id, replace(self.runs[run_id], outcome=outcome))

    def advance(self, header: Header, block_id: bytes) -> None:
        """Make this the state after a block whose transactions have been written down."""
        self.height, self.head_id = header.height, block_id
        self.time_ms, self.proposer = header.time_ms, header.proposer

    def keep_evidence(self, key: bytes, tx_id: bytes) -> None:
        """Write down a proven offence."""
        self.evidence.put(key, tx_id)


# ---------------------------------------------------------------- canonical entries


def _text(text: str) -> bytes:
    """A name or rule, length first; at most 255 bytes, as statements.py has checked."""
    raw = text.encode("utf-8")
    return struct.pack("<B", len(raw)) + raw


def _member_entry(name: str, member: Member) -> bytes:
    revoked = 0 if member.revoked_height is None else member.revoked_height  # blocks start at 1
    return b"member\0" + _text(name) + struct.pack(
        "<B32sQQ", member.role, member.public_key, member.admitted_height, revoked
    )  # fmt: skip


def _run_entry(run_id: bytes, run: Run) -> bytes:
    rules = run.rules
    outcome = wire.RUN_OUTCOME_UNSPECIFIED if run.outcome is None else run.outcome
    return b"".join((
        b"run\0", run_id, _text(run.aggregator), _text(rules.rule),
        struct.pack(
            "<IQQ", rules.min_clients, rules.max_examples_per_client, rules.round_deadline_ms
        ),
        run.initial_model, run.model, struct.pack("<QB", run.closed_rounds, outcome),
        b"" if run.open_round is None else _round_entry(run.open_round),
    ))  # fmt: skip


def _round_entry(opened: Round) -> bytes:
    updates = opened.updates
    return b"".join((
        struct.pack(
            "<QQQII", opened.number, opened.opened_height, opened.deadline_ms,
            len(opened.cohort), len(updates),
        ),
        opened.base_model, opened.instruction,
        sha256(*(_text(name) for name in opened.cohort)),
        sha256(*(updates[name].entry for name in sorted(updates))),
    ))  # fmt: skip


def _evidence_entry(key: bytes, tx_id: bytes) -> bytes:
    return b"evidence\0" + tx_id + key
