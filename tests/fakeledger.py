"""A ledger in memory for tests of its users: real receipts, no consensus, no policy.

Each accepted submission is one block, certified by the test validators. What the real ledger
would refuse is refused by a function that the test gives.
"""

from collections.abc import Callable, Sequence

from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import NO_CERTIFICATE, Header, tx_root
from fedchain_proto.envelope import decode
from fedchain_proto.errors import EvidenceError, RuleError
from fedchain_proto.keys import SigningKey, possession
from fedchain_proto.receipts import VerifiedReceipt, make_receipt, verify_receipt
from fedchain_proto.statements import Statement, parse
from tests.builders import CREATED_MS, certify, key, make_test_genesis, sealed

Refuse = Callable[[Statement], RuleError | EvidenceError | None]


class FakeLedger:
    """Records everything in order, except what `refuse` refuses.

    Attributes:
        genesis: Of a chain with one validator.
        statements: What was recorded, in order.
        refuse: Asked before each recording; None lets it pass.
    """

    def __init__(self) -> None:
        self.genesis, self._validators, self._admission = make_test_genesis(1)
        self.statements: list[Statement] = []
        self.refuse: Refuse = lambda statement: None
        self._envelopes: list[bytes] = []
        self._header: Header | None = None
        self._receipts: dict[bytes, bytes] = {}

    @property
    def chain_id(self) -> bytes:
        """The chain's id."""
        return self.genesis.chain_id

    def admit(self, name: str, holder: SigningKey, role: wire.Role.ValueType) -> None:
        """Record a member's admission."""
        proof = possession(holder, self.chain_id, name, role)
        admitted = wire.MemberAdmitted(
            chain_id=self.chain_id,
            name=name,
            role=role,
            public_key=holder.public,
            possession=proof,
        )
        self.submit([sealed(admitted, *self._admission)])

    def revoke(self, name: str) -> None:
        """Record a member's revocation."""
        revoked = wire.MemberRevoked(chain_id=self.chain_id, name=name, reason="test")
        self.submit([sealed(revoked, *self._admission)])

    def record(self, statement: Statement, *keys: SigningKey) -> bytes:
        """Record a statement; its receipt."""
        outcome = self.submit([sealed(statement, *keys)])[0]
        assert isinstance(outcome, VerifiedReceipt)
        return outcome.raw

    def submit(
        self, envelopes: Sequence[bytes], *, flush: bool = True, timeout_s: float = 30.0
    ) -> list[VerifiedReceipt | RuleError | EvidenceError]:
        """As `LedgerClient.submit`; accepted ones share a block."""
        errors: dict[int, RuleError | EvidenceError] = {}
        fresh = []
        for at, envelope in enumerate(envelopes):
            signed = decode(envelope)
            statement = parse(signed.payload_type, signed.payload)
            error = self.refuse(statement)
            if error is not None:
                errors[at] = error
            elif signed.tx_id not in self._receipts and envelope not in fresh:
                fresh.append(envelope)
                self.statements.append(statement)
        if fresh:
            self._cut(fresh)
        return [
            errors[at]
            if at in errors
            else verify_receipt(self._receipts[decode(envelope).tx_id], self.genesis)
            for at, envelope in enumerate(envelopes)
        ]

    def round_updates(self, run: bytes, round: int) -> list[VerifiedReceipt]:
        """As `LedgerClient.round_updates`."""
        return [
            r
            for r in self._all()
            if isinstance(r.statement, wire.UpdateSubmitted)
            and (r.statement.run, r.statement.round) == (run, round)
        ]

    def members(self) -> list[VerifiedReceipt]:
        """As `LedgerClient.members`."""
        kinds = (wire.MemberAdmitted, wire.MemberRevoked)
        return [r for r in self._all() if isinstance(r.statement, kinds)]

    def _all(self) -> list[VerifiedReceipt]:
        return [verify_receipt(raw, self.genesis) for raw in self._receipts.values()]

    def _cut(self, fresh: list[bytes]) -> None:
        """Make a block of new envelopes, and everybody's receipts under it."""
        before = self._header
        self._envelopes += fresh
        leaves = [merkle.leaf_hash(e) for e in self._envelopes]
        validators = self.genesis.validators.hash
        header = Header(
            chain_id=self.chain_id,
            height=1 if before is None else before.height + 1,
            parent_id=self.chain_id if before is None else before.id,
            time_ms=CREATED_MS + 1 if before is None else before.time_ms + 1,
            proposer=0,
            tx_root=tx_root(fresh),
            log_size=len(leaves),
            log_root=merkle.root(leaves),
            validators_hash=validators,
            next_validators_hash=validators,
            last_commit_hash=NO_CERTIFICATE,
            state_root=bytes(32),
        )
        certificate = certify(header, self.genesis, self._validators).encode()
        start = len(self._envelopes) - len(fresh)
        for at, envelope in enumerate(fresh, start):
            path = merkle.path(leaves, at)
            raw = make_receipt(envelope, path, header.encode(), certificate)
            self._receipts[decode(envelope).tx_id] = raw
        self._header = header


def member_key(number: int) -> SigningKey:
    """Key of a test member, apart from validators and admission."""
    return key(100 + number)
