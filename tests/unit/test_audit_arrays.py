"""Depth full: every round's model recomputed, and every exclusion that arrays must show."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedchain_ledger.core.audit import audit
from fedchain_ledger.core.report import Report
from fedchain_proto import average
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFile, ArtifactFolder
from fedchain_proto.average import MemoryArrays
from fedchain_proto.digest import Arrays
from fedchain_proto.errors import UnavailableError
from tests.unit.auditkit import claim, findings, verdicts
from tests.unit.chainkit import ALICE, BOB, CAROL, Consortium, Scribe, tx_id

WHO = Consortium()
NAMES = (ALICE, BOB, CAROL)


def model(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "layer.weight": random.normal(size=(5, 3)).astype(np.float32),
        "layer.bias": random.normal(size=3).astype(np.float32),
        "steps": np.array(seed, dtype=np.int64),
    }


def mean(updates: list[wire.UpdateSubmitted], arrays: Mapping[str, Arrays]) -> Arrays:
    return average.weighted_mean(
        [(one.num_examples, MemoryArrays(arrays[one.participant])) for one in updates]
    )


@dataclass
class Training:
    """A run whose artifacts are kept in a folder; `rounds` closed rounds of everybody's updates."""

    folder: ArtifactFolder
    rounds: int = 0
    scribe: Scribe = field(default_factory=lambda: Scribe(WHO))

    def __post_init__(self) -> None:
        self.model = self.folder.put(model(0))
        said = WHO.run_opened(min_clients=1, initial=self.model)
        self.run = tx_id(said)
        self.scribe.write(*WHO.admissions(), said)
        for number in range(1, self.rounds + 1):
            self.train(number)

    def train(
        self,
        number: int,
        changed: Mapping[str, Arrays] | None = None,
        excluded: dict[str, wire.Reason.ValueType] | None = None,
        output: bytes | None = None,
    ) -> dict[str, wire.UpdateSubmitted]:
        """One round in which everybody answers.

        Args:
            number: Of the round.
            changed: Arrays that some send instead of sound ones.
            excluded: Whom the server leaves out, and why.
            output: Model that the server publishes instead of the average.
        """
        self.scribe.write(WHO.round_opened(self.run, number, self.model))
        arrays: dict[str, Arrays] = {name: model(10 * number + at) for at, name in enumerate(NAMES)}
        arrays |= changed or {}
        updates = {
            name: WHO.update(
                self.run, name, number, self.model, 7 + at, self.folder.put(arrays[name])
            )
            for at, name in enumerate(NAMES)
        }
        self.scribe.write(*updates.values())
        out = excluded or {}
        included = [updates[name] for name in NAMES if name not in out]
        if output is None:
            output = self.folder.put(mean(included, arrays))
        left_out = [(name, tx_id(updates[name]), reason) for name, reason in out.items()]
        close = WHO.closed(self.run, included, number, self.model, output, left_out)
        self.scribe.write(close)
        self.model = output
        return updates

    def audit(self) -> Report:
        return audit(
            [self.scribe.source()],
            WHO.genesis,
            artifacts=self.folder.open_unverified,
            depth="full",
        )


@pytest.fixture
def folder(tmp_path: Path) -> ArtifactFolder:
    return ArtifactFolder(tmp_path)


def test_full_audit_recomputes_every_round(folder: ArtifactFolder) -> None:
    """Every averaged round counts, every artifact is verified once, and the run passes."""
    training = Training(folder, rounds=3)
    report = training.audit()
    assert report.verdict == "PASS"
    assert claim(report, "C6").checked == 3
    envelopes, artifacts = 4 + 1 + 3 * 5, 1 + 3 * 3 + 3
    assert claim(report, "C1").checked == envelopes + artifacts
    assert report.headline.startswith("PASS at depth full; not checked: C9, C12")


def test_four_databases_cost_one_recomputation(folder: ArtifactFolder) -> None:
    """A round that several databases share is averaged once."""
    training = Training(folder, rounds=1)
    opened: list[bytes] = []

    def counting(digest: bytes) -> ArtifactFile:
        opened.append(digest)
        return folder.open_unverified(digest)

    sources = [training.scribe.source(f"validator-{i}") for i in range(4)]
    tip = sources[3].blocks[-1]
    tip.certificate = tip.certificate[:-1] + b"\0"
    report = audit(sources, WHO.genesis, artifacts=counting, depth="full")
    assert claim(report, "C6").checked == 1
    assert len(opened) == len(set(opened)) + 1  # the base model is opened for the round again


def test_published_model_that_is_not_the_average_is_found(folder: ArtifactFolder) -> None:
    """The server computed one model and published another: C6 names the round and the server."""
    training = Training(folder, rounds=1)
    training.train(2, output=folder.put(model(99)))
    training.train(3)
    report = training.audit()
    [(filed, finding)] = findings(report)
    assert (filed, finding.height, finding.round) == ("C6", 7, 2)
    assert "server closed the round with" in finding.why
    assert claim(report, "C6").checked == 2


def _corrupt(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.chmod(0o600)
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("at", [0, 9, 40, -1, -60, -100])
def test_flipped_bit_in_an_updates_artifact_is_found(folder: ArtifactFolder, at: int) -> None:
    """An artifact's header, padding or data: the bytes are those of the signed digest, or not."""
    training = Training(folder, rounds=1)
    updates = training.train(2)
    _corrupt(folder.path(updates[BOB].update), at)
    report = training.audit()
    assert {one for one, _ in findings(report)} == {"C1", "C6"}
    for _, finding in findings(report):
        assert (finding.height, finding.round, finding.participant) == (7, 2, BOB)


def test_every_byte_of_an_artifact_counts(folder: ArtifactFolder) -> None:
    """No bit of an artifact file can flip unseen, header and padding included."""
    training = Training(folder)
    path = folder.path(training.model)
    original = path.read_bytes()
    for at in range(len(original)):
        _corrupt(path, at)
        report = training.audit()
        assert verdicts(report)["C1"] == "FAIL", at
        assert claim(report, "C1").findings[0].height == 1
        path.write_bytes(original)
    assert training.audit().verdict == "PASS"


def test_withheld_update_fails_aggregation(folder: ArtifactFolder) -> None:
    """Losing evidence buys no PASS: the round, the participant and the word withheld."""
    training = Training(folder, rounds=1)
    updates = training.train(2)
    folder.path(updates[CAROL].update).unlink()
    [(filed, finding)] = findings(training.audit())
    assert (filed, finding.height, finding.round, finding.participant) == ("C6", 7, 2, CAROL)
    assert "withheld" in finding.why


@pytest.mark.parametrize("which", ["initial", "output"])
def test_withheld_model_fails_aggregation(folder: ArtifactFolder, which: str) -> None:
    """A base model or an output that is gone is said once, where it was made."""
    training = Training(folder)
    initial = training.model
    training.train(1)
    output = training.model
    training.train(2)
    folder.path(initial if which == "initial" else output).unlink()
    [(filed, finding)] = findings(training.audit())
    assert filed == "C6"
    assert finding.height == (1 if which == "initial" else 4)
    assert "withheld" in finding.why


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.EPERM])
def test_auditor_who_may_not_look_accuses_nobody(folder: ArtifactFolder, number: int) -> None:
    """That this process may open no more files, or not this one, convicts nobody of withholding."""
    training = Training(folder, rounds=1)

    def exhausted(digest: bytes) -> ArtifactFile:
        raise UnavailableError("it cannot be opened") from OSError(number, "")

    with pytest.raises(UnavailableError):
        audit([training.scribe.source()], WHO.genesis, artifacts=exhausted, depth="full")


def test_depth_chain_opens_nothing(folder: ArtifactFolder) -> None:
    """What only arrays show is not checkable without them, and is not passed."""
    training = Training(folder)
    training.train(1, output=folder.put(model(99)))
    report = audit([training.scribe.source()], WHO.genesis, artifacts=folder.open_unverified)
    assert report.verdict == "PASS"
    assert verdicts(report)["C6"] == "NOT CHECKABLE"


def test_run_of_abandoned_rounds_has_no_average_to_check(folder: ArtifactFolder) -> None:
    """C6 without a single averaged round is not checkable."""
    report = Training(folder).audit()
    assert verdicts(report)["C6"] == "NOT CHECKABLE"
    assert claim(report, "C6").notes == ("no round was averaged",)


# ---------------------------------------------------------------- exclusions


def _nan(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays["layer.weight"][2, 1] = np.nan
    return arrays


def _wide(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays["layer.bias"] = np.zeros(4, np.float32)
    return arrays


def _huge(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays["steps"] = np.array(2**62, dtype=np.int64)
    return arrays


FAULTS: dict[str, tuple[Callable[..., dict[str, np.ndarray]], wire.Reason.ValueType]] = {
    "NaN": (_nan, wire.REASON_NOT_FINITE),
    "another shape": (_wide, wire.REASON_WRONG_STRUCTURE),
    "an integer out of range": (_huge, wire.REASON_WEIGHT_SUM),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_true_exclusion_is_proved_again(folder: ArtifactFolder, fault: str) -> None:
    """A fault of the arrays is shown by the kept arrays; C8 counts one thing more."""
    spoil, reason = FAULTS[fault]
    training = Training(folder)
    training.train(1, changed={BOB: spoil(model(5))}, excluded={BOB: reason})
    report = training.audit()
    assert report.verdict == "PASS"
    assert claim(report, "C8").checked == 2
    assert "PROVEN by chain or kept arrays: 1" in "\n".join(claim(report, "C8").notes)


@pytest.mark.parametrize("fault", FAULTS)
def test_false_exclusion_convicts_the_server(folder: ArtifactFolder, fault: str) -> None:
    """A rival's sound update, left out for a fault that it has not, is found and named."""
    _, reason = FAULTS[fault]
    training = Training(folder)
    training.train(1, excluded={BOB: reason})
    report = training.audit()
    [(filed, finding)] = findings(report)
    assert (filed, finding.height, finding.round, finding.participant) == ("C8", 4, 1, BOB)
    assert "server excluded bob" in finding.why
    assert verdicts(report)["C6"] == "PASS"


def test_exclusion_for_another_fault_than_it_has_is_false(folder: ArtifactFolder) -> None:
    """The reason must be the one that the arrays show."""
    training = Training(folder)
    changed = {BOB: _nan(model(5))}
    training.train(1, changed=changed, excluded={BOB: wire.REASON_WRONG_STRUCTURE})
    assert [filed for filed, _ in findings(training.audit())] == ["C8"]


def test_exclusion_whose_arrays_are_gone_proves_nothing(folder: ArtifactFolder) -> None:
    """PROVEN rests on kept arrays: without them it is withheld, and no proof."""
    training = Training(folder)
    updates = training.train(
        1, changed={BOB: _nan(model(5))}, excluded={BOB: wire.REASON_NOT_FINITE}
    )
    folder.path(updates[BOB].update).unlink()
    found = findings(training.audit())
    assert [filed for filed, _ in found] == ["C6", "C8"]
    assert {finding.participant for _, finding in found} == {BOB}


def test_claimed_exclusion_is_not_judged_by_arrays(folder: ArtifactFolder) -> None:
    """The server's word is counted as its word; sound arrays do not refute it."""
    training = Training(folder)
    training.train(1, excluded={BOB: wire.REASON_ARRAYS_MISSING})
    report = training.audit()
    assert report.verdict == "PASS"
    assert "on the server's word: 1 (1 arrays-missing)" in "\n".join(claim(report, "C8").notes)


def test_faulty_update_that_was_averaged_is_found(folder: ArtifactFolder) -> None:
    """NaN in an included update leaves no average; another shape is no update of this model."""
    for fault in (_nan, _huge):
        training = Training(folder)
        output = folder.put(model(99))
        training.train(1, changed={BOB: fault(model(5))}, output=output)
        assert [filed for filed, _ in findings(training.audit())] == ["C6"]


def test_round_of_updates_of_another_model_is_found(folder: ArtifactFolder) -> None:
    """Updates that agree with each other and not with the model are named one by one."""
    training = Training(folder)
    training.train(1, changed={name: _wide(model(at)) for at, name in enumerate(NAMES)})
    found = findings(training.audit())
    assert [(filed, finding.participant) for filed, finding in found] == [
        ("C6", name) for name in NAMES
    ]
