"""Several databases of one chain: which of them is damaged, behind, or another history."""

from typing import Any

import pytest

from fedchain_ledger.core.audit import audit
from fedchain_ledger.core.report import MAX_FINDINGS
from fedchain_proto.blocks import Header
from fedchain_proto.errors import FedchainError, UsageError
from tests.unit.auditkit import audit_of, claim, findings, verdicts
from tests.unit.chainkit import (
    ALICE,
    BOB,
    Consortium,
    MemorySource,
    Scribe,
    begun,
    trained,
)

WHO = Consortium()


def test_databases_behind_are_named_and_fail_nothing() -> None:
    """A validator that was down holds a prefix; the report says how far behind it is."""
    scribe, _ = trained()
    behind = scribe.source("validator-2")
    del behind.blocks[3:]
    empty = MemorySource([], "validator-3")
    report = audit([scribe.source(), behind, empty], WHO.genesis)
    assert report.verdict == "PASS"
    assert report.height == 5
    assert report.notes[0] == "validator-2 stands at height 3, 2 behind"
    assert report.notes[1] == "validator-3 stands at height 0, 5 behind"


def test_database_named_to_steer_a_terminal_is_shown_harmless() -> None:
    """Whoever packs a folder names its files; no name paints, or breaks, an auditor's report."""
    scribe, _ = trained()
    behind = scribe.source("\x1b[2J\udcff")
    del behind.blocks[3:]
    broken = scribe.source("\x1b]0;owned\x07")
    broken.broken = {2}
    shown = str(audit([scribe.source(), behind, broken], WHO.genesis))
    assert "\\x1b[2J\\udcff stands at height 3" in shown
    assert "\\x1b]0;owned\\x07" in shown
    assert shown.replace("\n", "").isprintable()


def test_certificate_of_the_tip_may_differ_between_validators() -> None:
    """Each validator keeps the quorum that it saw; all of them are valid, and counted once."""
    scribe, _ = trained()
    other = scribe.source("validator-2")
    tip = Header.decode(other.blocks[-1].header)
    other.blocks[-1].certificate = WHO.certificate(tip, [1, 2, 3], round_=2).encode()
    report = audit([scribe.source(), other], WHO.genesis)
    assert report.verdict == "PASS"
    assert report.to_json() == audit_of(scribe).to_json()


def test_inner_certificate_must_be_the_one_that_the_next_block_names() -> None:
    """An exchanged certificate is found even if it is valid: the chain names one."""
    scribe, _ = trained()
    other = scribe.source("validator-2")
    inner = Header.decode(other.blocks[2].header)
    other.blocks[2].certificate = WHO.certificate(inner, [1, 2, 3]).encode()
    report = audit([scribe.source(), other], WHO.genesis)
    [(filed, finding)] = findings(report)
    assert (filed, finding.height) == ("C2", 4)
    assert "[validator-2]" in finding.why


def test_fork_between_databases_convicts_who_signed_both() -> None:
    """Two certified blocks of one height fail finality and name the double signers."""
    one, run = begun()
    other = Scribe(WHO)
    for stored in one.blocks:
        other.write(*stored.envelopes)
    one.write(WHO.round_opened(run))
    other.write(WHO.round_opened(run, cohort=[ALICE, BOB]))
    one.write(WHO.update(run, ALICE))
    report = audit([one.source("a"), other.source("b")], WHO.genesis)
    [(filed, finding)] = findings(report)
    assert (filed, finding.height) == ("C3", 3)
    assert "both were signed by validator-1, validator-2, validator-3" in finding.why


def test_damage_in_one_database_is_found_and_the_rest_still_judged() -> None:
    """One bad row fails, with its database's name; the others carry the claims through."""
    scribe, _ = trained(rounds=2)
    damaged = scribe.source("validator-3")
    damaged.broken = {4}
    report = audit([scribe.source(), damaged], WHO.genesis)
    [(filed, finding)] = findings(report)
    assert (filed, finding.height) == ("C2", 4)
    assert "[validator-3]" in finding.why
    assert verdicts(report)["C8"] == "PASS"
    alone = audit([damaged], WHO.genesis)
    assert verdicts(alone)["C8"] == "NOT CHECKABLE"
    assert claim(alone, "C3").checked == 7


class _Hopeless:
    """A database that cannot be read at all."""

    def __init__(self, height: int | None) -> None:
        self.name = "hopeless"
        self._height = height

    def head_height(self) -> int:
        if self._height is None:
            raise FedchainError("no such table: blocks")
        return self._height

    def block(self, height: int) -> tuple[bytes, list[bytes], bytes]:
        raise FedchainError(f"row {height} is gone")


@pytest.mark.parametrize("height", [None, 2**40])
def test_database_that_cannot_be_read_fails_and_ends(height: int | None) -> None:
    """Neither a missing table nor an absurd height stalls the audit or hides the others."""
    scribe, _ = trained()
    report = audit([scribe.source()], WHO.genesis)
    assert report.verdict == "PASS"
    both = audit([scribe.source(), _Hopeless(height)], WHO.genesis)
    assert both.verdict == "FAIL"
    assert {one for one, _ in findings(both)} == {"C2"}
    assert len(claim(both, "C2").findings) <= MAX_FINDINGS
    assert audit([_Hopeless(height)], WHO.genesis).verdict == "FAIL"


def test_wrong_genesis_fails_from_the_first_block() -> None:
    """Another consortium's genesis does not vouch for this chain."""
    scribe, _ = trained()
    report = audit([scribe.source()], Consortium(label="foreign").genesis)
    assert report.verdict == "FAIL"
    assert claim(report, "C3").findings[0].height == 1


@pytest.mark.parametrize(
    ("sources", "options"),
    [
        ([], {}),
        ([MemorySource([], "same"), MemorySource([], "same")], {}),
        ([MemorySource([])], {"depth": "deep"}),
        ([MemorySource([])], {"depth": "full"}),
    ],
)
def test_wrong_use_is_told_from_a_bad_chain(
    sources: list[MemorySource], options: dict[str, Any]
) -> None:
    """What the caller did wrong is an error, never a verdict."""
    with pytest.raises(UsageError):
        audit(sources, WHO.genesis, **options)


def test_progress_is_told_height_by_height() -> None:
    """A long audit can show how far it is."""
    scribe, _ = trained()
    told: list[tuple[int, int]] = []
    audit([scribe.source()], WHO.genesis, on_progress=lambda *at: told.append(at))
    assert told == [(height, 5) for height in range(1, 6)]
