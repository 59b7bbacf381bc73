"""A quorum that breaks the rules together: its certificate excuses nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from fedchain_ledger.core.rules.case import GRACE_MS
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Header
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import possession
from tests.unit.auditkit import audit_of, claim, findings, verdicts
from tests.unit.chainkit import (
    ALICE,
    BOB,
    CAROL,
    MODEL_0,
    MODEL_1,
    MODEL_2,
    SERVER,
    Consortium,
    Scribe,
    begun,
    key,
    trained,
    tx_id,
)

WHO = Consortium()


def _in_round() -> tuple[Scribe, bytes]:
    scribe, run = begun()
    scribe.write(WHO.round_opened(run))
    return scribe, run


def _forged(*said: Any, in_round: bool = True) -> Scribe:
    scribe, _ = _in_round() if in_round else begun()
    scribe.forge(*said)
    return scribe


RUN = tx_id(WHO.run_opened())
THREE = [WHO.update(RUN, name) for name in (ALICE, BOB, CAROL)]


ABANDONED = WHO.closed(
    RUN,
    [],
    model=MODEL_0,
    excluded=[(name, b"", wire.REASON_CLIENT_FAILED) for name in (ALICE, BOB, CAROL)],
)
ABANDONED.outcome = wire.OUTCOME_ABANDONED
ROUND_2 = WHO.round_opened(RUN, 2, MODEL_1)


class _Story(Scribe):
    """A chain that goes well up to its last block."""

    def crime(self, said: Any) -> Scribe:
        self.forge(said)
        return self


def _after_round(*said: Any) -> _Story:
    """Round 1 is open, and then this was decided, a block each."""
    story = _Story(WHO)
    story.write(*WHO.admissions())
    for one in (WHO.run_opened(), WHO.round_opened(RUN), *said):
        story.write(one)
    return story


def _renamed(name: str) -> bytes:
    """Admit another key under a name."""
    said, chain_id, other = WHO.admitted(name), WHO.genesis.chain_id, key("new key")
    said.public_key = other.public
    said.possession = possession(other, chain_id, name, wire.ROLE_PARTICIPANT)
    return WHO.seal(said)


def _half_admitted() -> Scribe:
    strict = Consortium(threshold=2)
    scribe = Scribe(strict)
    scribe.write(*strict.admissions())
    scribe.forge(strict.seal(strict.admitted("mallory"), strict.admission_keys[0]))
    return scribe


def _between_runs() -> Scribe:
    said = WHO.run_opened(nonce=b"another run's no")
    other = tx_id(said)
    story = _after_round(*THREE, said, WHO.round_opened(other))
    return story.crime(WHO.closed(other, THREE))


def _closing(close: wire.RoundClosed) -> Scribe:
    """A round with all three updates, closed like this by a quorum that looks away."""
    scribe, _ = _in_round()
    scribe.write(*THREE)
    scribe.forge(close)
    return scribe


def _second_close() -> Scribe:
    scribe, run = trained()
    scribe.forge(WHO.closed(run, THREE, model=MODEL_2))
    return scribe


CRIMES: dict[str, tuple[str, Callable[[], Scribe], str | None]] = {
    "an update of a stranger": ("C4", lambda: _forged(WHO.update(RUN, "mallory")), "mallory"),
    "an update under another's signature": (
        "C4",
        lambda: _forged(WHO.seal(WHO.update(RUN, ALICE), key(BOB))),
        ALICE,
    ),
    "an update with a garbage signature": (
        "C4",
        lambda: _forged(WHO.seal(WHO.update(RUN, ALICE))[:-64] + bytes(64)),
        ALICE,
    ),
    "an update for another chain": (
        "C4",
        lambda: _forged(
            Consortium(label="other").seal(Consortium(label="other").update(RUN, ALICE))
        ),
        ALICE,
    ),
    "an update from another model": (
        "C5",
        lambda: _forged(WHO.update(RUN, ALICE, base=MODEL_1)),
        ALICE,
    ),
    "a round from a model nobody made": (
        "C5",
        lambda: _forged(WHO.round_opened(RUN, 1, MODEL_2), in_round=False),
        None,
    ),
    "a skipped round": ("C5", lambda: _forged(WHO.round_opened(RUN, 2), in_round=False), None),
    "a weight over the cap": (
        "C7",
        lambda: _forged(WHO.update(RUN, ALICE, examples=1_001)),
        ALICE,
    ),
    "a weight in the sum that nobody signed": (
        "C7",
        lambda: _closing(_heavier()),
        ALICE,
    ),
    "a silently dropped update": (
        "C8",
        lambda: _closing(
            WHO.closed(RUN, THREE[1:], excluded=[(ALICE, b"", wire.REASON_CLIENT_FAILED)])
        ),
        ALICE,
    ),
    "an unmentioned member": ("C8", lambda: _closing(WHO.closed(RUN, THREE[1:])), ALICE),
    "an invented update": (
        "C8",
        lambda: _closing(WHO.closed(RUN, [WHO.update(RUN, ALICE, examples=11), *THREE[1:]])),
        ALICE,
    ),
    "a close before anybody answered": (
        "C8",
        lambda: _forged(WHO.closed(RUN, THREE)),
        ALICE,
    ),
    "silence before the deadline": ("C10", lambda: _early_silence(), CAROL),
    "an admission that no admission key signed": (
        "C10",
        lambda: _forged(WHO.seal(WHO.admitted("mallory"), key(SERVER))),
        "mallory",
    ),
    "an average of too few": ("C10", lambda: _too_few(), None),
    "an update after the deadline": ("C10", lambda: _late(), ALICE),
    "a second update": (
        "C11",
        lambda: _forged(THREE[0], WHO.update(RUN, ALICE, examples=11)),
        ALICE,
    ),
    "a second close": ("C11", _second_close, None),
    "an update of a member revoked since the round opened": (
        "C4",
        lambda: _after_round(WHO.revoked(ALICE)).crime(THREE[0]),
        ALICE,
    ),
    "a name admitted again after its revocation": (
        "C10",
        lambda: _after_round(WHO.revoked(ALICE)).crime(_renamed(ALICE)),
        ALICE,
    ),
    "an admission by fewer keys than the threshold": ("C10", lambda: _half_admitted(), "mallory"),
    "a round from what an abandoned round did not make": (
        "C5",
        lambda: _after_round(ABANDONED).crime(WHO.round_opened(RUN, 2, MODEL_1)),
        None,
    ),
    "an update of the round before, counted again": (
        "C8",
        lambda: _after_round(*THREE, WHO.closed(RUN, THREE), ROUND_2).crime(
            WHO.closed(RUN, THREE, 2, MODEL_1, MODEL_2)
        ),
        ALICE,
    ),
    "an update of another run, counted here": ("C8", lambda: _between_runs(), ALICE),
    "a run ended with a model that it did not make": (
        "C5",
        lambda: _after_round(*THREE, WHO.closed(RUN, THREE)).crime(WHO.run_closed(RUN, 1, MODEL_2)),
        None,
    ),
    "a round of a run that has ended": (
        "C10",
        lambda: _after_round(*THREE, WHO.closed(RUN, THREE), WHO.run_closed(RUN)).crime(ROUND_2),
        None,
    ),
    "bytes that are no envelope": ("C1", lambda: _forged(b"\x00\x01\x02"), None),
}


def _out(index: int, reason: str) -> tuple[str, bytes, wire.Reason.ValueType]:
    update = THREE[index]
    return (update.participant, tx_id(update), wire.Reason.Value(reason))


def _heavier() -> wire.RoundClosed:
    close = WHO.closed(RUN, THREE)
    close.included[0].num_examples = 1_000
    close.total_weight += 990
    return close


def _early_silence() -> Scribe:
    scribe, _ = _in_round()
    scribe.write(*THREE[:2])
    scribe.forge(WHO.closed(RUN, THREE[:2], excluded=[(CAROL, b"", wire.REASON_SILENT)]))
    return scribe


def _too_few() -> Scribe:
    excluded = [_out(1, "REASON_ARRAYS_MISSING"), _out(2, "REASON_ARRAYS_MISSING")]
    return _closing(WHO.closed(RUN, THREE[:1], excluded=excluded))


def _late() -> Scribe:
    scribe, _ = _in_round()
    scribe.forge(THREE[0], after_ms=60_000 + GRACE_MS + 1)
    return scribe


@pytest.mark.parametrize("name", CRIMES)
def test_what_a_malicious_quorum_certified_is_found_under_its_claim(name: str) -> None:
    """A certificate of all validators excuses nothing: height, participant and claim are named."""
    filed, commit, participant = CRIMES[name]
    scribe = commit()
    report = audit_of(scribe)
    height = len(scribe.blocks)
    assert report.verdict == "FAIL"
    assert [one for one, _ in findings(report)] == [filed]
    (finding,) = claim(report, filed).findings
    assert (finding.height, finding.participant) == (height, participant)
    assert claim(report, "C3").verdict == "PASS"
    assert any(f"from height {height} on were not replayed" in note for note in report.notes)


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "another chain": ({"chain_id": sha256(b"chain")}, "C2"),
    "a height": ({"height": 9}, "C2"),
    "another parent": ({"parent_id": sha256(b"parent")}, "C2"),
    "a time before its parent's": ({"time_ms": 1}, "C2"),
    "a proposer beyond the set": ({"proposer": 4}, "C3"),
    "a log size": ({"log_size": 99}, "C2"),
    "a log root": ({"log_root": sha256(b"log")}, "C2"),
    "transactions": ({"tx_root": sha256(b"txs")}, "C2"),
    "a validator set": ({"next_validators_hash": sha256(b"set")}, "C3"),
    "a certificate": ({"last_commit_hash": sha256(b"certificate")}, "C2"),
    "a state root": ({}, "C2"),
}


@pytest.mark.parametrize("name", LIES)
def test_certified_header_that_lies_is_found(name: str) -> None:
    """Every field of a header is recomputed, whoever certified it."""
    changes, filed = LIES[name]
    scribe, run = begun()
    scribe.forge(WHO.round_opened(run), **changes)
    report = audit_of(scribe)
    assert report.verdict == "FAIL"
    assert filed in [one for one, finding in findings(report) if finding.height == 3]


def test_round_opened_at_the_end_of_time_is_a_finding_and_no_crash() -> None:
    """A time whose deadline would not fit 64 bits is refused as a header, by an audit too."""
    scribe, run = begun()
    stored = scribe.forge(WHO.round_opened(run))
    time_at = stored.header.index(scribe.now_ms.to_bytes(8, "little"))
    stored.header = stored.header[:time_at] + b"\xff" * 8 + stored.header[time_at + 8 :]
    report = audit_of(scribe)
    assert report.verdict == "FAIL"
    assert [f.height for f in claim(report, "C1").findings] == [3]


def test_replay_stops_and_later_structure_is_still_judged() -> None:
    """Past a block that cannot be applied links and certificates are judged, statements are not."""
    scribe, run = begun()
    scribe.forge(WHO.round_opened(run, 1, MODEL_2))
    third = Header.decode(scribe.blocks[2].header)
    scribe.forge(WHO.update(run, ALICE), height=4, parent_id=third.id, last_commit_hash=bytes(32))
    report = audit_of(scribe)
    assert verdicts(report)["C5"] == "FAIL"
    assert verdicts(report)["C4"] == "NOT CHECKABLE"
    assert [f.height for f in claim(report, "C2").findings] == [4, 4, 4]
    assert claim(report, "C3").checked == 4
