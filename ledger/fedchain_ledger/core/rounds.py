"""What an audit says of each round that closed: who was left out, on whose word, and the average.

Called by the replay after the rules have let a statement through. A round that two histories
share is looked at once.
"""

from collections import Counter

from fedchain_ledger.core.arrays import ArrayAudit, ClosedRound
from fedchain_ledger.core.report import Notebook
from fedchain_ledger.core.state import ChainState, Run
from fedchain_ledger.core.verification import Verified
from fedchain_proto import reasons
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.hashing import short


class RoundAudit:
    """Collects what concerns claims C6, C7, C8 and C11 beyond the rules themselves.

    Args:
        notebook: Gets findings, notes and counts.
        arrays: Opens artifacts; None at depth chain.
    """

    def __init__(self, notebook: Notebook, arrays: ArrayAudit | None) -> None:
        self._notebook = notebook
        self._arrays = arrays
        self._seen: set[bytes] = set()
        self._proven: Counter[str] = Counter()
        self._claimed: Counter[str] = Counter()
        self._by_arrays = 0
        self._updates = 0

    def applied(
        self, height: int, before: Run | None, state: ChainState, verified: Verified
    ) -> None:
        """Look at a statement that the rules have let through.

        Args:
            height: Of its block.
            before: The run that it names, as it was; None if it names none or opens it.
            state: The state after it.
            verified: The statement.
        """
        tx_id, said = verified.signed.tx_id, verified.statement
        if tx_id in self._seen:
            return
        self._seen.add(tx_id)
        match said:
            case wire.UpdateSubmitted():
                self._updates += 1
            case wire.RunOpened() if self._arrays is not None:
                self._arrays.initial_model(height, state.runs[tx_id])
            case wire.RoundClosed() if before is not None and before.open_round is not None:
                self._closed(ClosedRound(height, before, before.open_round, said))

    def _closed(self, closed: ClosedRound) -> None:
        for entry in closed.said.excluded:
            code = reasons.code(entry.reason)
            if not reasons.is_proven(entry.reason):
                self._claimed[code] += 1
            else:
                self._proven[code] += 1
                self._by_arrays += entry.reason != wire.REASON_SILENT
            self._notebook.note(
                "C8",
                f"round {closed.round.number} of run {short(closed.run.id)}, height "
                f"{closed.height}: {entry.participant} left out, "
                f"{'PROVEN' if reasons.is_proven(entry.reason) else 'CLAIMED'}: "
                f"{reasons.describe(entry.reason)} ({code})",
            )
        if self._arrays is not None:
            self._arrays.closed_round(closed)

    def summarise(self, state: ChainState) -> None:
        """Write the notes that count; `state` is the last one of the longest history."""
        note = self._notebook.note
        if self._updates:
            note("C7", f"{self._updates} weights are self-declared: no data set's size is recorded")
        if self._proven or self._claimed:
            note("C8", f"exclusions PROVEN by chain or kept arrays: {_counts(self._proven)}")
            note("C8", f"exclusions CLAIMED, on the server's word: {_counts(self._claimed)}")
        if self._by_arrays and self._arrays is None:
            note(
                "C8",
                f"{self._by_arrays} of the PROVEN exclusions need the kept arrays, which depth "
                "chain does not open",
            )
        for key in sorted(state.evidence):
            note("C11", _evidence(state, key))


def open_rounds(state: ChainState) -> list[str]:
    """Name every round that was not closed, and whose updates stand in it."""
    notes = []
    for run in state.runs.values():
        current = run.open_round
        if current is None:
            continue
        names = ", ".join(sorted(current.updates)) or "nobody"
        ended = "" if run.outcome is None else ", and the run was ended"
        notes.append(
            f"OPEN: round {current.number} of run {short(run.id)}, opened at height "
            f"{current.opened_height}, was not closed{ended}; updates recorded from {names}"
        )
    return notes


def _counts(counter: Counter[str]) -> str:
    total = sum(counter.values())
    parts = ", ".join(f"{count} {code}" for code, count in sorted(counter.items()))
    return f"{total} ({parts})" if total else "none"


def _evidence(state: ChainState, key: bytes) -> str:
    """Name whom kept evidence convicts; `key` as rules.evidence.evidence_key made it."""
    accused, offence = key[:32], key[32]
    index = state.validators.index_of(accused)
    member = state.member_of(accused)
    if index is not None:
        name = f"validator {state.validators[index].name}"
    else:
        name = short(accused) if member is None else member.name
    words = wire.Offence.Name(wire.Offence.ValueType(offence)).removeprefix("OFFENCE_")
    return f"evidence is kept against {name}: {words.lower().replace('_', ' ')}"
