"""What an audit found, for people and for programs.

A verdict is PASS, FAIL or NOT CHECKABLE; a check that could not run is never PASS, and the first
line says how deep the audit went and what it left unchecked.
"""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedchain_ledger.core.claims import LIMITS
from fedchain_proto.hashing import short
from fedchain_proto.names import printable

Depth = Literal["chain", "full"]
Verdict = Literal["PASS", "FAIL", "NOT CHECKABLE"]

MAX_FINDINGS = 100  # of one claim; the rest is counted
MAX_NOTES = 100
_MAX_WHY = 600
_WIDTH = 79  # a line that fits a terminal


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation; None where a field does not apply.

    Attributes:
        height: Block in which it stands.
        run: Run id, 32 bytes.
        round: Round's number.
        participant: Whose statement, or whom it concerns.
        why: In plain words, with the databases in which it was found.
    """

    height: int | None
    run: bytes | None
    round: int | None
    participant: str | None
    why: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; the run in hex."""
        return {
            "height": self.height,
            "run": None if self.run is None else self.run.hex(),
            "round": self.round,
            "participant": self.participant,
            "why": self.why,
        }

    def __str__(self) -> str:
        places = (
            ("height", self.height),
            ("run", None if self.run is None else short(self.run)),
            ("round", self.round),
            ("participant", self.participant),
        )
        where = ", ".join(f"{name} {value}" for name, value in places if value is not None)
        return f"{where}: {self.why}" if where else self.why


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """One claim's verdict.

    Attributes:
        id: "C1" to "C17".
        title: The claim in plain words.
        verdict: PASS only if something was checked and nothing was found.
        checked: How many things held.
        findings: Violations, at most MAX_FINDINGS.
        more: How many further violations there are.
        notes: What a reader should know beside; for NOT CHECKABLE, the reason first.
    """

    id: str
    title: str
    verdict: Verdict
    checked: int
    findings: tuple[Finding, ...] = ()
    more: int = 0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; what was not checked has no fault, but says why it was not."""
        unchecked = self.notes if self.verdict == "NOT CHECKABLE" else ()
        reasons = [Finding(None, None, None, None, note) for note in unchecked]
        return {
            "id": self.id,
            "title": self.title,
            "verdict": self.verdict,
            "checked": self.checked,
            "findings": [finding.to_json() for finding in (*self.findings, *reasons)],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """An audit's result.

    Attributes:
        depth: "chain", or "full" with every average recomputed.
        chain: The chain's name.
        height: Of the highest block seen.
        head_id: Its id, 32 bytes.
        validators: How many the genesis names.
        operators: Who runs them, distinct, in order.
        claims: C1 to C17.
        notes: What concerns no single claim: lagging databases, open rounds.
        limits: What no ledger proves.
    """

    depth: Depth
    chain: str
    height: int
    head_id: bytes
    validators: int
    operators: tuple[str, ...]
    claims: tuple[ClaimResult, ...]
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = field(default=LIMITS, repr=False)

    @property
    def verdict(self) -> Literal["PASS", "FAIL"]:
        """FAIL if any claim fails; what was not checked is named beside it."""
        return "FAIL" if any(claim.verdict == "FAIL" for claim in self.claims) else "PASS"

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Ids of the claims that were not checked."""
        return tuple(claim.id for claim in self.claims if claim.verdict == "NOT CHECKABLE")

    @property
    def exit_code(self) -> int:
        """0 if it holds, 1 if it does not."""
        return 0 if self.verdict == "PASS" else 1

    def to_json(self) -> dict[str, Any]:
        """As one JSON document; ids in hex."""
        return {
            "verdict": self.verdict,
            "head": {"height": self.height, "id": self.head_id.hex()},
            "operators": len(self.operators),
            "claims": [claim.to_json() for claim in self.claims],
        }

    @property
    def headline(self) -> str:
        """Verdict, depth and unchecked claims in one line."""
        unchecked = ", ".join(self.unchecked) or "nothing"
        return f"{self.verdict} at depth {self.depth}; not checked: {unchecked}"

    def __str__(self) -> str:
        lines = [self.headline, "", *self._about(), ""]
        for claim in self.claims:
            lines += _claim_lines(claim)
        if self.notes:
            lines += ["", "Also seen:"]
            lines += _indented(self.notes)
        lines += ["", "What no ledger proves, this one included:"]
        lines += _indented(self.limits)
        return "\n".join(lines)

    def _about(self) -> list[str]:
        count = len(self.operators)
        who = "one operator stands" if count == 1 else f"{count} operators stand"
        text = (
            f"Chain {self.chain}, head at height {self.height}, block {short(self.head_id)}. "
            f"Behind its {self.validators} validators {who}: {', '.join(self.operators)}."
        )
        return textwrap.wrap(text, _WIDTH)


def _claim_lines(claim: ClaimResult) -> list[str]:
    found = len(claim.findings) + claim.more
    outcome = {
        "PASS": f"{claim.checked} checked",
        "FAIL": f"{found} found, {claim.checked} held",
        "NOT CHECKABLE": "",
    }[claim.verdict]
    lead = f"{claim.id:<4}{claim.verdict:<14} "
    lines = _wrapped(claim.title + (outcome and f" ({outcome})"), lead)
    lines += _indented([str(finding) for finding in claim.findings], "     ! ")
    if claim.more:
        lines.append(f"     ! and {claim.more} more")
    return lines + _indented(claim.notes, "       ")


def _indented(texts: Sequence[str], lead: str = "  - ") -> list[str]:
    return [line for text in texts for line in _wrapped(text, lead)]


def _wrapped(text: str, lead: str) -> list[str]:
    rest = " " * len(lead)
    return textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=rest)


class Notebook:
    """Where an audit writes down what it finds while it goes.

    Attributes:
        checked: By claim, how many things held.
    """

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter()
        self._findings: dict[str, list[Finding]] = {}
        self._more: Counter[str] = Counter()
        self._notes: dict[str, list[str]] = {}

    def find(
        self,
        claim: str,
        why: str,
        *,
        height: int | None = None,
        run: bytes | None = None,
        round: int | None = None,
        participant: str | None = None,
    ) -> None:
        """Write down a violation of a claim."""
        findings = self._findings.setdefault(claim, [])
        if len(findings) < MAX_FINDINGS:
            findings.append(Finding(height, run, round, participant, printable(why, _MAX_WHY)))
        else:
            self._more[claim] += 1

    def note(self, claim: str, text: str) -> None:
        """Write down what a reader of a claim should know beside its verdict."""
        notes = self._notes.setdefault(claim, [])
        if len(notes) < MAX_NOTES:
            notes.append(printable(text, _MAX_WHY))
        elif len(notes) == MAX_NOTES:
            notes.append("and more of the kind")

    def result(self, claim: str, title: str, open_because: str | None) -> ClaimResult:
        """Judge a claim by what was written down.

        Args:
            claim: Its id.
            title: Its title.
            open_because: Why it cannot be PASS although nothing was found, if so.
        """
        findings = tuple(self._findings.get(claim, ()))
        notes = tuple(self._notes.get(claim, ()))
        verdict: Verdict = "PASS"
        if findings:
            verdict = "FAIL"
        elif open_because is not None:
            verdict, notes = "NOT CHECKABLE", (open_because, *notes)
        return ClaimResult(
            claim, title, verdict, self.checked[claim], findings, self._more[claim], notes
        )
