"""A round's decision: whose updates are averaged, who is left out and why, and the new model.

The ledger has the last word on which updates stand; what it says is taken up here, never argued
with. The average is the rule "fedavg/v1" over stored arrays, in ascending order of names.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFile, ArtifactFolder
from fedchain_proto.average import RULE, check_weights
from fedchain_proto.digest import Arrays, model_digest
from fedchain_proto.errors import EvidenceError, RuleError, UsageError
from fedchain_proto.hashing import digest_text
from fedchain_proto.names import printable
from fedchain_proto.openfiles import allow_open_files
from fedchain_proto.receipts import VerifiedReceipt
from fedchain_server.arrays import Model
from fedchain_server.intake import MAX_DETAIL, Candidate, Intake
from fedchain_server.rounds import Refusal, RoundRecord, UpdateRecord

Outcome = VerifiedReceipt | RuleError | EvidenceError
Held = list[tuple[Candidate, ArtifactFile]]
Mean = Callable[[Sequence[tuple[int, ArtifactFile]]], Arrays]
_LOG = logging.getLogger("fedchain.server")

# What the ledger calls what it refuses (ledger core/rules/updates.py), in the words of a close.
_OF_CODE: dict[str, wire.Reason.ValueType] = {
    "wrong-chain": wire.REASON_WRONG_RUN,
    "unknown-run": wire.REASON_WRONG_RUN,
    "run-closed": wire.REASON_WRONG_RUN,
    "round-not-open": wire.REASON_WRONG_ROUND,
    "unknown-member": wire.REASON_UNKNOWN_PARTICIPANT,
    "wrong-role": wire.REASON_UNKNOWN_PARTICIPANT,
    "revoked": wire.REASON_UNKNOWN_PARTICIPANT,
    "not-in-cohort": wire.REASON_UNKNOWN_PARTICIPANT,
    "wrong-signer": wire.REASON_BAD_SIGNATURE,
    "wrong-base-model": wire.REASON_WRONG_BASE_MODEL,
    "wrong-instruction": wire.REASON_WRONG_INSTRUCTION,
    "weight-not-positive": wire.REASON_WEIGHT_NOT_POSITIVE,
    "weight-over-cap": wire.REASON_WEIGHT_OVER_CAP,
    "second-update": wire.REASON_CONFLICT,
    "late": wire.REASON_LATE,
}


@dataclass(frozen=True)
class Excluded:
    """A cohort member that is left out.

    Attributes:
        refusal: Why.
        transaction: Id of its update in the log, 32 bytes; empty if none stands there.
    """

    refusal: Refusal
    transaction: bytes = b""


@dataclass
class Settlement:
    """A decided round, from which its RoundClosed and its record are made.

    Attributes:
        opened: The round as it was opened.
        included: Averaged updates, ascending by participant.
        excluded: All others of the cohort, by name.
        model: The round's output; its base model if `abandoned`.
        abandoned: Fewer updates held than the run's policy asks for.
        kept: Done when the model is in the store, durably.
    """

    opened: wire.RoundOpened
    included: tuple[Candidate, ...]
    excluded: dict[str, Excluded]
    model: Model
    abandoned: bool
    kept: "Future[None]"

    @property
    def number(self) -> int:
        """The round's number, from 1."""
        return self.opened.round

    def statement(self) -> wire.RoundClosed:
        """Write the close; waits until the model that it names is in the store.

        Raises:
            UsageError: The store cannot be written.
        """
        self.kept.result()
        opened = self.opened
        return wire.RoundClosed(
            chain_id=opened.chain_id,
            run=opened.run,
            round=opened.round,
            outcome=wire.OUTCOME_ABANDONED if self.abandoned else wire.OUTCOME_AVERAGED,
            base_model=opened.base_model,
            included=[
                wire.Included(
                    participant=c.update.participant,
                    transaction=c.signed.tx_id,
                    num_examples=c.update.num_examples,
                )
                for c in self.included
            ],
            excluded=[
                wire.Exclusion(
                    participant=name, transaction=out.transaction, reason=out.refusal.reason
                )
                for name, out in sorted(self.excluded.items())
            ],
            total_weight=sum(c.update.num_examples for c in self.included),
            rule=RULE,
            model=self.model.digest,
        )

    def mend(self, error: Exception, standing: Callable[[], list[VerifiedReceipt]]) -> bool:
        """Take up why the ledger refused the close.

        The model stays: an update that stands in the log without our knowing came without arrays.

        Args:
            error: The refusal.
            standing: Reads the updates that stand in the log for this round.

        Returns:
            Whether the close now says something else, so that it can be tried again.
        """
        if not isinstance(error, RuleError):
            return False
        if error.code == "silent-early":
            return self._call_silent_overrun()
        if error.claim == "C8":
            return self._take_up(standing())
        return False

    def record(self, height: int, metrics: Mapping[str, float]) -> RoundRecord:
        """Show the round to people.

        Args:
            height: Of the block that closed it.
            metrics: As `RoundRecord.metrics`.
        """
        return RoundRecord(
            number=self.number,
            height=height,
            model=digest_text(self.model.digest),
            updates=tuple(
                UpdateRecord(
                    c.update.participant, c.update.num_examples, digest_text(c.update.update)
                )
                for c in self.included
            ),
            exclusions=tuple(
                out.refusal.record(name) for name, out in sorted(self.excluded.items())
            ),
            metrics=metrics,
            abandoned=self.abandoned,
        )

    def _call_silent_overrun(self) -> bool:
        """Without a passed deadline on the ledger, silence is the server's word."""
        silent = [n for n, o in self.excluded.items() if o.refusal.reason == wire.REASON_SILENT]
        for name in silent:
            self.excluded[name] = Excluded(Refusal(wire.REASON_CLIENT_OVERRAN))
        return bool(silent)

    def _take_up(self, standing: Sequence[VerifiedReceipt]) -> bool:
        """Name every update in the log that the close did not know."""
        before = dict(self.excluded)
        for receipt in standing:
            said = receipt.statement
            if not isinstance(said, wire.UpdateSubmitted) or said.participant not in self.excluded:
                continue
            out = self.excluded[said.participant]
            if out.transaction == receipt.signed.tx_id:
                continue
            conflict = out.refusal.reason == wire.REASON_CONFLICT
            refusal = out.refusal if conflict else Refusal(wire.REASON_ARRAYS_MISSING)
            self.excluded[said.participant] = Excluded(refusal, receipt.signed.tx_id)
        return self.excluded != before


def settle(
    intake: Intake,
    outcomes: Mapping[str, Outcome],
    *,
    opened: wire.RoundOpened,
    asked: frozenset[str],
    overdue: bool,
    min_clients: int,
    base: Model,
    store: ArtifactFolder,
    mean: Mean,
    pool: Executor,
    threads: int,
) -> Settlement:
    """Decide a round.

    Args:
        intake: What came in.
        outcomes: What the ledger said of each candidate, by participant.
        opened: The round.
        asked: Participants that were sent its instruction.
        overdue: Whether its deadline has passed beyond doubt.
        min_clients: Fewest updates that make an average.
        base: The base model.
        store: Holds the candidates' arrays; gets the new model.
        mean: The exact weighted mean of (examples, arrays) in canonical order.
        pool: Writes the new model to the store, while we go on.
        threads: For the new model's digest.

    Raises:
        FedchainError: The store or the averaging threads do not work.
    """
    missing = Refusal(wire.REASON_SILENT if overdue else wire.REASON_CLIENT_OVERRAN)
    excluded: dict[str, Excluded] = {}
    candidates: list[Candidate] = []
    for name in opened.cohort:  # ascending: the canonical order
        candidate = intake.candidates.get(name)
        if candidate is None:
            refusal = missing if name in asked else Refusal(wire.REASON_NOT_ASKED)
            excluded[name] = Excluded(intake.refusals.get(name, refusal))
            continue
        out = _judge(candidate, outcomes[name], conflict=name in intake.conflicts)
        if out is None:
            candidates.append(candidate)
        else:
            excluded[name] = out
    allow_open_files()
    with ExitStack() as files:
        held: Held = [
            (c, files.enter_context(store.open(c.update.update, verify=False))) for c in candidates
        ]
        held = _addable(held)
        included = tuple(candidate for candidate, _ in held)
        counted = {candidate.update.participant for candidate in included}
        for candidate in candidates:
            if candidate.update.participant not in counted:
                refusal = Refusal(wire.REASON_WEIGHT_SUM)
                excluded[candidate.update.participant] = Excluded(refusal, candidate.signed.tx_id)
        if len(held) < min_clients:
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return Settlement(opened, included, excluded, base, True, nothing)
        arrays = mean([(c.update.num_examples, file) for c, file in held])
    digest = model_digest(arrays, threads=threads)
    kept = pool.submit(keep_model, store, arrays, digest)
    return Settlement(opened, included, excluded, Model.from_arrays(arrays, digest), False, kept)


def keep_model(store: ArtifactFolder, arrays: Arrays, digest: bytes) -> None:
    """Put a model into the store; on disk when this returns.

    Raises:
        UsageError: The store cannot be written.
    """
    try:
        store.put(arrays, digest)
    except OSError as error:
        raise UsageError(f"cannot keep the model in {store.root}: {error.strerror}") from error


def _judge(candidate: Candidate, outcome: Outcome, *, conflict: bool) -> Excluded | None:
    """Say why a candidate is left out; None if it holds. No receipt, no weight."""
    if isinstance(outcome, RuleError):
        reason = _OF_CODE.get(outcome.code, wire.REASON_MALFORMED_REPLY)
        return Excluded(Refusal(reason, printable(str(outcome), MAX_DETAIL)))
    if isinstance(outcome, EvidenceError):
        detail = printable(str(outcome), MAX_DETAIL)
        return Excluded(Refusal(wire.REASON_BAD_SIGNATURE, detail))
    transaction = candidate.signed.tx_id
    if conflict:
        return Excluded(Refusal(wire.REASON_CONFLICT), transaction)
    refusal = candidate.arrays.result()
    return Excluded(refusal, transaction) if refusal is not None else None


def _addable(held: Held) -> Held:
    """Keep as many updates as can be summed exactly, in their order; the largest leave first.

    Each one that leaves would break the sum of those that stay, which is what an auditor checks.
    Only integer tensors can be too large: the weights alone cannot (4096 members, 29 bits each).
    """
    stay, out = list(held), []
    while not _has_sum(stay):
        out.append(stay.pop(max(range(len(stay)), key=lambda i: _largest_integer(*stay[i]))))
    # The largest update need not have been the one whose element overflowed.
    for entry in reversed(out):
        names = {c.update.participant for c, _ in (*stay, entry)}
        with_it = [(c, file) for c, file in held if c.update.participant in names]
        if _has_sum(with_it):
            stay = with_it
    return stay


def _has_sum(held: Held) -> bool:
    if not held:
        return True
    try:
        check_weights([c.update.num_examples for c, _ in held], [file for _, file in held])
    except RuleError as error:
        if error.code != "weight-sum":
            raise
        return False
    return True


def _largest_integer(candidate: Candidate, file: ArtifactFile) -> int:
    """Largest examples * abs(value) of an update's integer tensors."""
    largest = 0
    for name in file.names:
        flat = file.flat(name)
        if flat.dtype.kind in "iu" and flat.size:
            largest = max(largest, abs(int(np.min(flat))), abs(int(np.max(flat))))
    return largest * candidate.update.num_examples
