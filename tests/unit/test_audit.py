"""The audit of one chain: what holds passes, and the report says what it leaves out."""

from fedchain_ledger.core.audit import audit
from fedchain_ledger.core.claims import CLAIMS, LIMITS
from fedchain_ledger.core.report import MAX_FINDINGS
from fedchain_ledger.core.rules.case import GRACE_MS
from fedchain_proto import wire_pb2 as wire
from tests.unit.auditkit import audit_of, claim, findings, verdicts
from tests.unit.chainkit import (
    ALICE,
    BOB,
    CAROL,
    MODEL_0,
    Consortium,
    MemorySource,
    Scribe,
    Stored,
    begun,
    key,
    trained,
    tx_id,
)
from tests.unit.policykit import DOUBLE_VOTE
from tests.unit.policykit import WHO as DOUBLE_VOTERS

WHO = Consortium()
CHECKED_AT_CHAIN = ["C1", "C2", "C3", "C4", "C5", "C7", "C8", "C10", "C11"]


def test_honest_chain_passes_and_says_what_it_left_out() -> None:
    """Nine claims pass at depth chain; C6 asks for depth full; the rest says why not."""
    scribe, _ = trained(rounds=2)
    report = audit_of(scribe, "validator-1", "validator-2", "validator-3", "validator-4")
    assert report.verdict == "PASS"
    assert report.exit_code == 0
    passed = [one for one, verdict in verdicts(report).items() if verdict == "PASS"]
    assert passed == CHECKED_AT_CHAIN
    assert "--depth full" in claim(report, "C6").notes[0]
    for one in report.claims:
        assert one.verdict == "PASS" or one.notes
        assert one.checked == 0 or one.verdict == "PASS"


def test_every_claim_counts_what_it_checked() -> None:
    """The numbers mean something: blocks, certificates, envelopes, rounds, updates."""
    scribe, _ = trained(rounds=2)
    report = audit_of(scribe)
    checked = {one.id: one.checked for one in report.claims if one.checked}
    envelopes, rounds, updates = 4 + 1 + 2 * (1 + 3 + 1), 2, 6
    assert checked == {
        "C1": envelopes,
        "C2": 8,
        "C3": 8,
        "C4": envelopes,
        "C5": 2 * rounds + updates,
        "C7": updates + rounds,
        "C8": rounds,
        "C10": envelopes,
        "C11": updates + rounds,
    }
    assert audit_of(scribe, "a", "b").to_json() == report.to_json()


def test_claim_with_nothing_to_look_at_is_not_checkable() -> None:
    """A check that could not run is never PASS: no round, no lineage."""
    scribe = Scribe(WHO)
    scribe.write(*WHO.admissions())
    report = audit_of(scribe)
    assert verdicts(report)["C5"] == verdicts(report)["C8"] == "NOT CHECKABLE"
    assert verdicts(report)["C4"] == "PASS"
    assert claim(report, "C8").notes == ("no round was closed",)


def test_empty_chain_proves_nothing() -> None:
    """Without a block there is no PASS, and no verdict by default."""
    report = audit([MemorySource([])], WHO.genesis)
    assert report.verdict == "FAIL"
    assert report.head_id == WHO.genesis.chain_id
    assert [one for one, _ in findings(report)] == ["C2"]


def test_open_round_is_named_and_fails_nothing() -> None:
    """A run that stopped in a round audits; whose updates stand there is said."""
    scribe, run = begun()
    scribe.write(WHO.round_opened(run))
    scribe.write(WHO.update(run, BOB))
    report = audit_of(scribe)
    assert report.verdict == "PASS"
    assert any("OPEN: round 1" in note and BOB in note for note in report.notes)
    scribe.write(WHO.run_closed(run, 0, MODEL_0, aborted=True))
    report = audit_of(scribe)
    assert report.verdict == "PASS"
    assert any("the run was ended" in note for note in report.notes)


def test_exclusions_are_counted_by_whose_word_they_rest_on() -> None:
    """PROVEN and CLAIMED exclusions are told apart, counted, and named with round and reason."""
    scribe, run = begun(min_clients=1, deadline_ms=1_000)
    updates = [WHO.update(run, ALICE), WHO.update(run, BOB)]
    scribe.write(WHO.round_opened(run))
    scribe.write(*updates)
    excluded = [
        (BOB, tx_id(updates[1]), wire.REASON_ARRAYS_MISSING),
        (CAROL, b"", wire.REASON_SILENT),
    ]
    close = WHO.closed(run, updates[:1], excluded=excluded)
    scribe.write(close, after_ms=2_000 + GRACE_MS)
    report = audit_of(scribe)
    assert report.verdict == "PASS"
    notes = "\n".join(claim(report, "C8").notes)
    assert "bob left out, CLAIMED" in notes
    assert "carol left out, PROVEN" in notes
    assert "PROVEN by chain or kept arrays: 1 (1 silent)" in notes
    assert "CLAIMED, on the server's word: 1 (1 arrays-missing)" in notes


def test_kept_evidence_is_reported_and_fails_nothing() -> None:
    """Evidence on the chain is one voice at work: it names whom it convicts."""
    scribe = Scribe(DOUBLE_VOTERS)
    scribe.write(*DOUBLE_VOTERS.admissions())
    scribe.write(DOUBLE_VOTERS.seal(DOUBLE_VOTE, key(ALICE)))
    report = audit_of(scribe)
    assert report.verdict == "PASS"
    assert claim(report, "C11").notes == (
        "evidence is kept against validator validator-2: double vote",
    )


def test_report_says_how_many_operators_stand_behind_the_validators() -> None:
    """Replicas that one party runs are one party, and the report says so."""
    alone = Consortium(operators=("One Hospital",))
    scribe = Scribe(alone)
    scribe.write(*alone.admissions())
    report = audit_of(scribe)
    assert report.to_json()["operators"] == 1
    assert "one operator stands: One Hospital" in " ".join(str(report).split())
    assert audit_of(trained()[0]).to_json()["operators"] == 2


def dropped_update() -> Scribe:
    """A round whose close hides Alice's update, certified by every validator."""
    scribe, run = begun()
    scribe.write(WHO.round_opened(run))
    updates = [WHO.update(run, name) for name in (ALICE, BOB, CAROL)]
    scribe.write(*updates)
    excluded = [(ALICE, b"", wire.REASON_CLIENT_FAILED)]
    scribe.forge(WHO.closed(run, updates[1:], excluded=excluded))
    return scribe


# ---------------------------------------------------------------- the report


def test_first_line_says_verdict_depth_and_what_was_not_checked() -> None:
    """Nobody can read PASS without reading what it leaves out."""
    report = audit_of(trained()[0])
    first = str(report).splitlines()[0]
    assert first == ("PASS at depth chain; not checked: C6, C9, C12, C13, C14, C15, C16, C17")
    assert first == report.headline


def test_report_always_says_what_no_ledger_proves() -> None:
    """Limits and every claim stand in every report, passing or failing."""
    for scribe in (trained()[0], dropped_update()):
        text = " ".join(str(audit_of(scribe)).split())
        for limit in LIMITS:
            assert " ".join(limit.split()) in text
        for one in CLAIMS:
            assert one.title in text


def test_report_fits_a_terminal() -> None:
    """No line is broken in the middle of a word where a terminal has 80 columns; but the first
    one, which may have all claims to name, stays one."""
    for scribe in (trained()[0], dropped_update()):
        _, *lines = str(audit_of(scribe)).splitlines()
        assert max(map(len, lines)) < 80


def test_json_has_exactly_the_agreed_fields() -> None:
    """Programs that read the verdict find what they were promised, and nothing else."""
    scribe = dropped_update()
    (run,) = scribe.chain.state.runs
    document = audit_of(scribe).to_json()
    assert set(document) == {"verdict", "head", "operators", "claims"}
    assert set(document["head"]) == {"height", "id"}
    assert [one["id"] for one in document["claims"]] == [f"C{i}" for i in range(1, 18)]
    for one in document["claims"]:
        assert set(one) == {"id", "title", "verdict", "checked", "findings"}
    (finding,) = document["claims"][7]["findings"]
    assert finding == {
        "height": 5,
        "run": run.hex(),
        "round": 1,
        "participant": ALICE,
        "why": finding["why"],
    }
    assert "hides the update of alice" in finding["why"]


def test_json_says_why_a_claim_was_not_checked() -> None:
    """A program, too, learns the reason; a claim that passed has no finding."""
    for one in audit_of(trained()[0]).to_json()["claims"]:
        assert one["verdict"] in ("PASS", "NOT CHECKABLE")
        assert bool(one["findings"]) is (one["verdict"] == "NOT CHECKABLE")
        for reason in one["findings"]:
            assert reason["why"]
            assert {reason[key] for key in ("height", "run", "round", "participant")} == {None}


def test_findings_are_capped_and_the_rest_is_counted() -> None:
    """A chain that is wrong everywhere gives a report that a person can read."""
    scribe = Scribe(WHO)
    for i in range(MAX_FINDINGS + 7):
        scribe.forge(bytes([i]), height=i + 1)
    report = audit_of(scribe)
    assert len(claim(report, "C1").findings) == MAX_FINDINGS
    assert claim(report, "C1").more == 7
    assert "and 7 more" in str(report)


def test_what_a_stranger_wrote_cannot_steer_the_readers_terminal() -> None:
    """Control characters in what a damaged database says are escaped."""

    rude = MemorySource([Stored(b"", [], b"")], "\x1b[2J\u202edatabase")
    report = audit([rude], WHO.genesis)
    assert "\x1b" not in str(report)
    assert "\u202e" not in str(report)
