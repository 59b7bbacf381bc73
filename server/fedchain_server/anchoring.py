"""One run's statements on the ledger, in their order: who takes part, opening, rounds, the end.

Nothing is believed to have happened without its receipt. What is decided but not yet anchored (a
computed round) is remembered, so that an abort can still record it.
"""

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.average import RULE
from fedchain_proto.envelope import transaction_id
from fedchain_proto.errors import FedchainError, RuleError, UnavailableError
from fedchain_proto.hashing import short
from fedchain_proto.keys import SigningKey
from fedchain_proto.receipts import VerifiedReceipt
from fedchain_proto.statements import NONCE_SIZE, Policy, Statement, payload_type, seal_statement
from fedchain_proto.trust import Genesis
from fedchain_server.settlement import Outcome, Settlement

ABORT_TIMEOUT_S = 5.0  # An abort is on the way out: better an open round than a hung command.
SUBMIT_TIMEOUT_S = 60.0
CLOSE_ATTEMPTS = 4
OPEN_ATTEMPTS = 3
_LOG = logging.getLogger("fedchain.server")


class Ledger(Protocol):
    """What the server needs of a `fedchain_ledger.client.LedgerClient`."""

    genesis: Genesis

    def submit(self, envelopes: Sequence[bytes], *, timeout_s: float = ...) -> list[Outcome]:
        """Have envelopes recorded; a receipt or a refusal for each, in order."""
        ...

    def round_updates(self, run: bytes, round: int) -> list[VerifiedReceipt]:
        """Read what stands in the log for one round."""
        ...

    def members(self) -> list[VerifiedReceipt]:
        """Read every MemberAdmitted and MemberRevoked, in log order."""
        ...


class RunAnchor:
    """One run of one aggregator on one ledger.

    Args:
        ledger: The way to it.
        key: The aggregator's signing key.
        name: The aggregator's name on the ledger.
        policy: The run's rules.
        model: Digest of the initial model, 32 bytes.

    Attributes:
        participants: Public key (32 bytes) of every participant admitted and not revoked.
        run: The run's id, 32 bytes.
        closed: The receipt of the last RoundClosed, None before.
    """

    def __init__(
        self, ledger: Ledger, key: SigningKey, name: str, policy: Policy, model: bytes
    ) -> None:
        self._ledger = ledger
        self._key = key
        self._chain = ledger.genesis.chain_id
        self._opening = wire.RunOpened(
            chain_id=self._chain,
            nonce=secrets.token_bytes(NONCE_SIZE),
            aggregator=name,
            initial_model=model,
            policy=wire.RunPolicy(
                min_clients=policy.min_clients,
                max_examples_per_client=policy.max_examples_per_client,
                round_deadline_ms=policy.round_deadline_ms,
                rule=RULE,
            ),
        )
        payload = self._opening.SerializeToString(deterministic=True)
        self.run = transaction_id(payload_type(self._opening), payload)
        self.closed: VerifiedReceipt | None = None
        self._opened: VerifiedReceipt | None = None
        self._model = model  # what the ledger holds for the run's model
        self._rounds = 0  # closed ones
        self._settled: Settlement | None = None  # decided, not yet anchored
        self._live = False
        self.participants: Mapping[str, bytes] = {}
        self.refresh()

    @property
    def opened(self) -> VerifiedReceipt:
        """The receipt of the open round's RoundOpened."""
        if self._opened is None:
            raise AssertionError("no round was opened")
        return self._opened

    def refresh(self) -> None:
        """Read again who takes part."""
        keys: dict[str, bytes] = {}
        for receipt in self._ledger.members():
            said = receipt.statement
            if isinstance(said, wire.MemberAdmitted) and said.role == wire.ROLE_PARTICIPANT:
                keys[said.name] = said.public_key
            elif isinstance(said, wire.MemberRevoked):
                keys.pop(said.name, None)
        self.participants = keys

    def open_run(self, instruction: bytes) -> None:
        """Open the run and its first round, in one block.

        Args:
            instruction: Digest of the first round's.

        Raises:
            RuleError: The ledger refuses, e.g. the aggregator is not admitted.
            UnavailableError: No receipt in time; the outcome is unknown.
        """
        self._live = True  # From here on an abort has something to say.
        outcomes = self._submit(self._opening, self._round(1, self._model, instruction))
        _receipt(outcomes[0])
        self._opened = self._open(outcomes[1], instruction)
        _LOG.info("run %s opened at height %d", short(self.run), self.opened.header.height)

    def submit_updates(self, envelopes: Sequence[bytes]) -> list[Outcome]:
        """Anchor updates, in one batch; a receipt or a refusal for each, in order."""
        if not envelopes:
            return []
        return self._ledger.submit(envelopes, timeout_s=SUBMIT_TIMEOUT_S)

    def standing(self) -> list[VerifiedReceipt]:
        """Read which updates stand in the log for the open round."""
        return self._ledger.round_updates(self.run, self._rounds + 1)

    def accuse(self, first: bytes, second: bytes, accused: bytes) -> None:
        """Record two updates of one key for one round, for all to see; best effort.

        Args:
            first: One sealed update.
            second: Another one.
            accused: Id of the key that signed both.
        """
        evidence = wire.Evidence(
            chain_id=self._chain,
            offence=wire.OFFENCE_TWO_UPDATES,
            accused=accused,
            first=min(first, second),
            second=max(first, second),
        )
        try:
            _receipt(self._submit(evidence)[0])
        except FedchainError as error:
            _LOG.warning("the evidence against %s was not recorded: %s", short(accused), error)

    def settle(self, settlement: Settlement) -> None:
        """Remember a decided round; whatever comes next anchors it."""
        self._settled = settlement

    def next_round(self, instruction: bytes) -> VerifiedReceipt:
        """Close the decided round and open the next one, in one block.

        Args:
            instruction: Digest of the next round's.

        Returns:
            The receipt of the RoundClosed.

        Raises:
            RuleError: The ledger refuses.
            UnavailableError: No receipt in time; the outcome is unknown.
        """
        settled = self._decided()
        following = self._round(settled.number + 1, settled.model.digest, instruction)
        closing, outcome = self._close(settled, following)
        self._opened = self._open(outcome, instruction)
        return closing

    def end_run(self, outcome: wire.RunOutcome.ValueType) -> VerifiedReceipt:
        """Close the decided round and the run, in one block.

        Returns:
            The receipt of the RoundClosed.

        Raises:
            RuleError: The ledger refuses.
            UnavailableError: No receipt in time; the outcome is unknown.
        """
        settled = self._decided()
        following = self._end(outcome, settled.number, settled.model.digest)
        closing, ending = self._close(settled, following)
        _receipt(ending)
        self._live = False
        return closing

    def abort(self) -> None:
        """Record that the run ended early, as far as that can be done in a few seconds.

        Never raises a FedchainError: the reason of the abort is what the caller will raise.
        """
        if not self._live:
            return
        self._live = False
        aborted, settled = wire.RUN_OUTCOME_ABORTED, self._settled
        if settled is not None:
            end = self._end(aborted, settled.number, settled.model.digest)
            if self._try_abort(lambda: [settled.statement(), end]):
                return
        self._try_abort(lambda: [self._end(aborted, self._rounds, self._model)])

    def _try_abort(self, statements: Callable[[], list[Statement]]) -> bool:
        """Try to record an abort in these words; whether no others need to be tried."""
        try:
            _receipt(self._submit(*statements(), timeout_s=ABORT_TIMEOUT_S)[-1])
        except FedchainError as error:
            _LOG.warning("the abort of run %s was not recorded: %s", short(self.run), error)
            return isinstance(error, UnavailableError)
        return True

    def _decided(self) -> Settlement:
        if self._settled is None:
            raise AssertionError("no round was decided")
        return self._settled

    def _close(self, settled: Settlement, following: Statement) -> tuple[VerifiedReceipt, Outcome]:
        """Anchor a decided round and what follows it; try again with what the ledger says."""
        for _ in range(CLOSE_ATTEMPTS):
            closing, outcome = self._submit(settled.statement(), following)
            if isinstance(closing, VerifiedReceipt):
                break
            _LOG.warning("the close of round %d was refused: %s", settled.number, closing)
            if not settled.mend(closing, self.standing):
                break
        self.closed = _receipt(closing)
        self._rounds, self._model, self._settled = settled.number, settled.model.digest, None
        return self.closed, outcome

    def _open(self, outcome: Outcome, instruction: bytes) -> VerifiedReceipt:
        """Return the opening's receipt; the cohort may have changed since it was read."""
        for _ in range(OPEN_ATTEMPTS):
            if not isinstance(outcome, RuleError) or outcome.code != "cohort-not-admitted":
                break
            self.refresh()
            again = self._round(self._rounds + 1, self._model, instruction)
            outcome = self._submit(again)[0]
        return _receipt(outcome)

    def _round(self, number: int, base: bytes, instruction: bytes) -> wire.RoundOpened:
        return wire.RoundOpened(
            chain_id=self._chain,
            run=self.run,
            round=number,
            base_model=base,
            instruction=instruction,
            cohort=sorted(self.participants),  # names are ASCII: by characters is by bytes
        )

    def _end(self, outcome: wire.RunOutcome.ValueType, rounds: int, model: bytes) -> wire.RunClosed:
        return wire.RunClosed(
            chain_id=self._chain, run=self.run, outcome=outcome, rounds=rounds, model=model
        )

    def _submit(self, *statements: Statement, timeout_s: float = SUBMIT_TIMEOUT_S) -> list[Outcome]:
        envelopes = [seal_statement(statement, self._key) for statement in statements]
        return self._ledger.submit(envelopes, timeout_s=timeout_s)


def _receipt(outcome: Outcome) -> VerifiedReceipt:
    """Return a receipt, or raise the refusal that came in its place."""
    if isinstance(outcome, VerifiedReceipt):
        return outcome
    raise outcome
