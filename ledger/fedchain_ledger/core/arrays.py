"""The part of an audit that opens arrays: claim C6, and the exclusions that arrays must prove.

Round by round, every update memory-mapped and read slice by slice, so that memory holds about one
model however many updates there are. The arithmetic is proto's `average`, the rule itself.
"""

import errno
from contextlib import ExitStack
from dataclasses import dataclass

from fedchain_ledger.core.report import Notebook
from fedchain_ledger.core.state import CommittedUpdate, Round, Run
from fedchain_proto import average, reasons
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFile, ArtifactReader
from fedchain_proto.digest import model_digest
from fedchain_proto.errors import EvidenceError, FedchainError, RuleError, UnavailableError
from fedchain_proto.hashing import short

_BY_ARRAYS = reasons.PROVEN - {wire.REASON_SILENT}
_OUR_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """A round at its close.

    Attributes:
        height: Of RoundClosed's block.
        run: As it was just before.
        round: With every update that stands in the log.
        said: The close, which the rules let through.
    """

    height: int
    run: Run
    round: Round
    said: wire.RoundClosed


@dataclass(frozen=True, slots=True)
class _Find:
    """Writes findings about one round, or about a run."""

    notebook: Notebook
    height: int
    run: bytes
    round: int | None = None

    def __call__(self, claim: str, why: str, participant: str | None = None) -> None:
        self.notebook.find(
            claim,
            why,
            height=self.height,
            run=self.run,
            round=self.round,
            participant=participant,
        )


class ArrayAudit:
    """Opens artifacts and compares; of a round, all included updates at once.

    Args:
        artifacts: Digest -> opened, unverified artifact.
        notebook: Gets findings and counts.

    Raises (every method):
        UnavailableError: This process may open no more files (ulimit -n), map no more memory, or
            not read a file that is there.
    """

    def __init__(self, artifacts: ArtifactReader, notebook: Notebook) -> None:
        self._artifacts = artifacts
        self._notebook = notebook
        # Models come up twice, as one round's output and the next one's base.
        self._judged_models: dict[bytes, bool] = {}

    def initial_model(self, height: int, run: Run) -> None:
        """Check that a run's initial model is kept and is what its name says."""
        find = _Find(self._notebook, height, run.id)
        self._check_model(run.initial_model, "the initial model", find)

    def closed_round(self, closed: ClosedRound) -> None:
        """Recompute one round's average, and prove again whom its arrays excluded."""
        number = closed.round.number
        find = _Find(self._notebook, closed.height, closed.run.id, number)
        with ExitStack() as opened:
            base = self._model(closed.round.base_model, "the base model", find, opened)
            included = self._included(closed, find, opened)
            if closed.said.outcome == wire.OUTCOME_AVERAGED and included is not None:
                self._recompute(closed, included, base, find)
            for entry in closed.said.excluded:
                if entry.reason in _BY_ARRAYS:
                    self._prove_exclusion(closed, entry, included, base, find)
        self._check_model(closed.said.model, f"the model of round {number}", find)

    # ------------------------------------------------------------ the average

    def _included(
        self, closed: ClosedRound, find: _Find, opened: ExitStack
    ) -> list[tuple[int, ArtifactFile]] | None:
        """Open the included updates in canonical order; None if one cannot be had."""
        result: list[tuple[int, ArtifactFile]] = []
        complete = True
        for entry in closed.said.included:
            update = closed.round.updates[entry.participant]
            artifact = self._update(update, find, opened)
            if artifact is None:
                complete = False
            else:
                result.append((entry.num_examples, artifact))
        return result if complete else None

    def _recompute(
        self,
        closed: ClosedRound,
        included: list[tuple[int, ArtifactFile]],
        base: ArtifactFile | None,
        find: _Find,
    ) -> None:
        if base is not None:
            for entry, (_, artifact) in zip(closed.said.included, included, strict=True):
                if artifact.structure != base.structure:
                    why = "is averaged although its arrays differ from the model's in structure"
                    find("C6", f"the update of {entry.participant} {why}", entry.participant)
        try:
            model = model_digest(average.weighted_mean(included))
        except RuleError as error:
            find("C6", f"the included updates have no average: {error}")
            return
        if model != closed.said.model:
            find(
                "C6",
                f"the recorded updates average to {short(model)}, but {closed.run.aggregator} "
                f"closed the round with {short(closed.said.model)}",
            )
            return
        self._notebook.checked["C6"] += 1

    # ------------------------------------------------------------ exclusions

    def _prove_exclusion(
        self,
        closed: ClosedRound,
        entry: wire.Exclusion,
        included: list[tuple[int, ArtifactFile]] | None,
        base: ArtifactFile | None,
        find: _Find,
    ) -> None:
        """Check that the kept arrays show the fault for which an update was left out."""
        update = closed.round.updates[entry.participant]
        excludes = (
            f"{closed.run.aggregator} excluded {entry.participant} as {reasons.code(entry.reason)}"
        )
        with ExitStack() as opened:
            artifact = self._update(update, find, opened)
            if artifact is None or base is None or included is None:
                find("C8", f"{excludes}, which no kept arrays show", entry.participant)
                return
            if entry.reason == wire.REASON_WEIGHT_SUM:
                shown = _overflows([*included, (update.num_examples, artifact)])
            else:
                shown = average.check_update(artifact, base) == entry.reason
        if shown:
            self._notebook.checked["C8"] += 1
        else:
            find("C8", f"{excludes}, but its arrays show no such fault", entry.participant)

    # ------------------------------------------------------------ artifacts

    def _update(
        self, update: CommittedUpdate, find: _Find, opened: ExitStack
    ) -> ArtifactFile | None:
        who = update.participant
        return self._open(update.digest, f"the update of {who}", find, opened, who)

    def _model(
        self, digest: bytes, what: str, find: _Find, opened: ExitStack
    ) -> ArtifactFile | None:
        """Open a model; verify it, and complain of it, the first time only."""
        known = self._judged_models.get(digest)
        if known is None:
            artifact = self._open(digest, what, find, opened, None)
            self._judged_models[digest] = artifact is not None
            return artifact
        if not known:
            return None
        try:
            return opened.enter_context(self._artifacts(digest))
        except FedchainError as error:  # it was there a moment ago
            find("C6", f"withheld: {what}, {short(digest)}, went away: {error}")
            return None

    def _check_model(self, digest: bytes, what: str, find: _Find) -> None:
        if digest not in self._judged_models:
            with ExitStack() as opened:
                self._model(digest, what, find, opened)

    def _open(
        self, digest: bytes, what: str, find: _Find, opened: ExitStack, who: str | None
    ) -> ArtifactFile | None:
        """Open an artifact whose bytes are those of its digest; else say so."""
        try:
            artifact = opened.enter_context(self._artifacts(digest))
            holds = artifact.digest() == digest
        except UnavailableError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _OUR_OWN_LIMITS:
                raise  # that we cannot open it convicts nobody
            find("C6", f"withheld: {what}, {short(digest)}, is not kept ({error})", who)
            return None
        except (EvidenceError, RuleError) as error:
            find("C1", f"{what}, {short(digest)}, is no artifact: {error}", who)
        else:
            if holds:
                self._notebook.checked["C1"] += 1
                return artifact
            find("C1", f"{what} has other bytes than its digest {short(digest)} says", who)
        find("C6", f"withheld: {what}, {short(digest)}, is kept in damaged form only", who)
        return None


def _overflows(updates: list[tuple[int, ArtifactFile]]) -> bool:
    """Whether these updates together leave the range in which the average is exact."""
    try:
        average.check_weights([n for n, _ in updates], [source for _, source in updates])
    except RuleError as error:
        return error.code == "weight-sum"
    return False
