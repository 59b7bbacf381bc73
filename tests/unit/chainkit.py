"""A small consortium in memory, for tests of the ledger's core: keys, statements, blocks.

`Consortium` signs whatever a test wants said. `Scribe` writes a chain of it, honestly through
`Chain`, or as validators would who all collude: with a certificate, and without a rule.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from fedchain_ledger.core.blockrules import parent_of
from fedchain_ledger.core.chain import Chain, Committed
from fedchain_ledger.core.verification import VerificationCache
from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import NO_CERTIFICATE, Certificate, Header
from fedchain_proto.envelope import decode
from fedchain_proto.errors import FedchainError
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import SigningKey, possession
from fedchain_proto.statements import Statement, seal_statement
from fedchain_proto.trust import Genesis, Validator, make_genesis, validator_possession
from fedchain_proto.votes import sign_vote

START_MS = 1_700_000_000_000
SHARED = VerificationCache()  # signatures of the same bytes, verified once for the whole session
MODEL_0, MODEL_1, MODEL_2 = (sha256(b"model", bytes([i])) for i in range(3))
INSTRUCTION = sha256(b"instruction")
ALICE, BOB, CAROL, SERVER = "alice", "bob", "carol", "server"
PARTICIPANTS = (ALICE, BOB, CAROL)


def key(label: str) -> SigningKey:
    """A key that is the same in every test."""
    return SigningKey.from_seed(sha256(b"test key", label.encode()))


@dataclass(frozen=True)
class Consortium:
    """Who is on a chain, and what they say.

    Attributes:
        validators: How many.
        operators: One for each validator; cycled.
        threshold: Of the three admission keys.
        participants: Data owners.
    """

    validators: int = 4
    operators: tuple[str, ...] = ("Hospital A", "Hospital B")
    threshold: int = 1
    participants: tuple[str, ...] = PARTICIPANTS
    label: str = "chain"

    @cached_property
    def validator_keys(self) -> list[SigningKey]:
        return [key(f"validator-{i}") for i in range(self.validators)]

    @cached_property
    def admission_keys(self) -> list[SigningKey]:
        keys = [key(f"admission-{i}") for i in range(3)]
        return sorted(keys, key=lambda one: one.key_id)

    @cached_property
    def genesis(self) -> Genesis:
        entries = []
        for i, validator in enumerate(self.validator_keys):
            operator = self.operators[i % len(self.operators)]
            entry = Validator(f"validator-{i + 1}", operator, validator.public)
            entries.append((entry, validator_possession(validator, entry.name, operator)))
        raw = make_genesis(
            self.label,
            START_MS,
            bytes(16),
            entries,
            [one.public for one in self.admission_keys],
            self.threshold,
        )
        return Genesis.parse(raw)

    # ------------------------------------------------------------ statements

    def admitted(
        self, name: str, role: wire.Role.ValueType = wire.ROLE_PARTICIPANT
    ) -> wire.MemberAdmitted:
        chain_id, own = self.genesis.chain_id, key(name)
        return wire.MemberAdmitted(
            chain_id=chain_id,
            name=name,
            role=role,
            public_key=own.public,
            possession=possession(own, chain_id, name, role),
        )

    def revoked(self, name: str) -> wire.MemberRevoked:
        return wire.MemberRevoked(chain_id=self.genesis.chain_id, name=name, reason="left")

    def run_opened(
        self,
        *,
        nonce: bytes = bytes(16),
        min_clients: int = 2,
        cap: int = 1000,
        deadline_ms: int = 60_000,
        rule: str = "fedavg/v1",
        initial: bytes = MODEL_0,
    ) -> wire.RunOpened:
        return wire.RunOpened(
            chain_id=self.genesis.chain_id,
            nonce=nonce,
            aggregator=SERVER,
            initial_model=initial,
            policy=wire.RunPolicy(
                min_clients=min_clients,
                max_examples_per_client=cap,
                round_deadline_ms=deadline_ms,
                rule=rule,
            ),
        )

    def round_opened(
        self,
        run: bytes,
        number: int = 1,
        base: bytes = MODEL_0,
        cohort: Sequence[str] | None = None,
    ) -> wire.RoundOpened:
        return wire.RoundOpened(
            chain_id=self.genesis.chain_id,
            run=run,
            round=number,
            base_model=base,
            instruction=INSTRUCTION,
            cohort=sorted(self.participants) if cohort is None else cohort,
        )

    def update(
        self,
        run: bytes,
        name: str,
        number: int = 1,
        base: bytes = MODEL_0,
        examples: int = 10,
        digest: bytes | None = None,
    ) -> wire.UpdateSubmitted:
        return wire.UpdateSubmitted(
            chain_id=self.genesis.chain_id,
            run=run,
            round=number,
            participant=name,
            base_model=base,
            instruction=INSTRUCTION,
            update=digest or sha256(b"update", name.encode(), bytes([number])),
            num_examples=examples,
        )

    def closed(
        self,
        run: bytes,
        updates: Iterable[wire.UpdateSubmitted],
        number: int = 1,
        base: bytes = MODEL_0,
        model: bytes = MODEL_1,
        excluded: Sequence[tuple[str, bytes, wire.Reason.ValueType]] = (),
    ) -> wire.RoundClosed:
        """A close that includes `updates` and averages, whatever the rules think of it."""
        included = [
            wire.Included(
                participant=update.participant,
                transaction=tx_id(update),
                num_examples=update.num_examples,
            )
            for update in sorted(updates, key=lambda update: update.participant)
        ]
        return wire.RoundClosed(
            chain_id=self.genesis.chain_id,
            run=run,
            round=number,
            outcome=wire.OUTCOME_AVERAGED,
            base_model=base,
            included=included,
            excluded=[
                wire.Exclusion(participant=name, transaction=tx, reason=reason)
                for name, tx, reason in sorted(excluded)
            ],
            total_weight=sum(entry.num_examples for entry in included),
            rule="fedavg/v1",
            model=model,
        )

    def run_closed(
        self, run: bytes, rounds: int = 1, model: bytes = MODEL_1, *, aborted: bool = False
    ) -> wire.RunClosed:
        outcome = wire.RUN_OUTCOME_ABORTED if aborted else wire.RUN_OUTCOME_COMPLETED
        return wire.RunClosed(
            chain_id=self.genesis.chain_id, run=run, outcome=outcome, rounds=rounds, model=model
        )

    def seal(self, said: Statement, *signers: SigningKey) -> bytes:
        """Sign a statement with the keys of whom it names, unless a test names others."""
        return seal_statement(said, *(signers or self._signers(said)))

    def _signers(self, said: Statement) -> list[SigningKey]:
        if isinstance(said, wire.MemberAdmitted | wire.MemberRevoked):
            return self.admission_keys[: self.threshold]
        if isinstance(said, wire.UpdateSubmitted):
            return [key(said.participant)]
        return [key(SERVER)]

    def admissions(self) -> list[bytes]:
        """Envelopes that let everybody in."""
        said = [self.admitted(name) for name in self.participants]
        said.append(self.admitted(SERVER, wire.ROLE_AGGREGATOR))
        return [self.seal(one) for one in said]

    def certificate(
        self, header: Header, signers: Sequence[int] | None = None, round_: int = 0
    ) -> Certificate:
        """A certificate of a quorum: the first validators, unless a test names others."""
        validators = self.genesis.validators
        indices = range(validators.quorum) if signers is None else signers
        signatures = [
            sign_vote(
                self.validator_keys[i],
                self.genesis.chain_id,
                validators.hash,
                wire.VOTE_TYPE_COMMIT,
                header.height,
                round_,
                header.id,
                0,
                i,
            ).signature
            for i in indices
        ]
        pairs = tuple(zip(indices, signatures, strict=True))
        return Certificate(header.height, round_, header.id, validators.hash, pairs)


def tx_id(said: Statement) -> bytes:
    """Transaction id of a statement; it does not depend on who signs."""
    return decode(seal_statement(said, key("anybody"))).tx_id


@dataclass
class Stored:
    """One block as a validator's database has it."""

    header: bytes
    envelopes: list[bytes]
    certificate: bytes


@dataclass
class MemorySource:
    """A ChainSource over a list of blocks, the first at height 1."""

    blocks: list[Stored]
    name: str = "validator-1"
    broken: set[int] = field(default_factory=set)

    def head_height(self) -> int:
        return len(self.blocks)

    def block(self, height: int) -> tuple[bytes, list[bytes], bytes]:
        if height in self.broken:
            raise FedchainError(f"{self.name}: row {height} cannot be read")
        stored = self.blocks[height - 1]
        return stored.header, stored.envelopes, stored.certificate


class Scribe:
    """Writes one chain, block by block."""

    def __init__(self, consortium: Consortium) -> None:
        self.consortium = consortium
        self.chain = Chain(consortium.genesis, cache=SHARED)
        self.blocks: list[Stored] = []
        self.now_ms = START_MS

    def source(self, name: str = "validator-1") -> MemorySource:
        blocks = [Stored(b.header, list(b.envelopes), b.certificate) for b in self.blocks]
        return MemorySource(blocks, name)

    def write(self, *said: Statement | bytes, after_ms: int = 10) -> Committed:
        """Decide one block of these statements, by the rules."""
        self.now_ms += after_ms
        for one in said:
            raw = one if isinstance(one, bytes) else self.consortium.seal(one)
            self.chain.admit(raw, now_ms=self.now_ms)
        block = self.chain.propose(
            self.now_ms, self.chain.tip_height % 4 % self.consortium.validators
        )
        if block is None:
            raise AssertionError("nothing to decide")
        committed = self._commit(block)
        if len(committed.valid.transactions) != len(said):
            raise AssertionError("not all of it was decided")
        return committed

    def _commit(self, block: wire.Block) -> Committed:
        header = Header.decode(block.header)
        certificate = self.consortium.certificate(header)
        block_id = self.chain.validate(block, proposer=None, now_ms=None)
        committed = self.chain.commit(block_id, certificate)
        self.blocks.append(Stored(block.header, list(block.envelopes), certificate.encode()))
        return committed

    def forge(self, *said: Statement | bytes, after_ms: int = 10, **changes: int | bytes) -> Stored:
        """Append a block that every validator has certified, whatever the rules say of it.

        Its roots are right but for the state's; `changes` replaces header fields.
        """
        raws = [one if isinstance(one, bytes) else self.consortium.seal(one) for one in said]
        self.now_ms += after_ms
        state = self.chain.state
        log = state.log
        for raw in raws:
            log = log.append(merkle.leaf_hash(raw))
        parent, last = parent_of(state), self.chain.certificate
        header = Header(
            chain_id=self.consortium.genesis.chain_id,
            height=parent.height + 1,
            parent_id=parent.id,
            time_ms=self.now_ms,
            proposer=0,
            tx_root=merkle.root([merkle.leaf_hash(raw) for raw in raws]),
            log_size=log.size,
            log_root=log.root(),
            validators_hash=self.consortium.genesis.validators.hash,
            next_validators_hash=self.consortium.genesis.validators.hash,
            last_commit_hash=last.hash if last else NO_CERTIFICATE,
            state_root=sha256(b"whatever"),
        )
        header = replace(header, **changes)  # type: ignore[arg-type]  # tests forge any field
        certificate = self.consortium.certificate(header)
        stored = Stored(header.encode(), raws, certificate.encode())
        self.blocks.append(stored)
        return stored


def begun(consortium: Consortium | None = None, **policy: int) -> tuple[Scribe, bytes]:
    """A chain on which everybody is admitted and a run is open; its id."""
    scribe = Scribe(consortium or Consortium())
    scribe.write(*scribe.consortium.admissions())
    said = scribe.consortium.run_opened(**policy)  # type: ignore[arg-type]  # the integer ones
    scribe.write(said)
    return scribe, tx_id(said)


def trained(
    consortium: Consortium | None = None, rounds: int = 1, **policy: int
) -> tuple[Scribe, bytes]:
    """A chain with a run of so many closed rounds in which everybody took part; the run's id."""
    scribe, run = begun(consortium, **policy)
    who = scribe.consortium
    model = MODEL_0
    for number in range(1, rounds + 1):
        scribe.write(who.round_opened(run, number, model))
        updates = [who.update(run, name, number, model) for name in who.participants]
        scribe.write(*updates)
        output = sha256(b"output", bytes([number]))
        scribe.write(who.closed(run, updates, number, model, output))
        model = output
    return scribe, run
