"""All validators in one process: starting, stopping, and what a caller learns when it cannot."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedchain_ledger.service.embedded import EmbeddedLedger
from fedchain_ledger.service.store import NewBlock, Store
from fedchain_proto.errors import FedchainError, UnavailableError, UsageError
from fedchain_proto.keys import SigningKey
from fedchain_proto.receipts import VerifiedReceipt
from tests.unit.chainkit import Consortium
from tests.unit.nodekit import QUICK, clock

CONSORTIUM = Consortium(label="embedded")


def keys() -> dict[str, SigningKey]:
    return {f"validator-{i + 1}": key for i, key in enumerate(CONSORTIUM.validator_keys)}


def embedded(folder: Path) -> EmbeddedLedger:
    return EmbeddedLedger(CONSORTIUM.genesis, keys(), folder, clock=clock, timing=QUICK)


def our_threads() -> list[str]:
    for thread in threading.enumerate():
        if thread.name.startswith("disk"):
            thread.join(5.0)  # it has nothing to do any more, and ends in a moment
    names = (thread.name for thread in threading.enumerate() if thread.is_alive())
    return [name for name in names if name.startswith(("fedchain", "disk"))]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert our_threads() == []


def test_ledger_starts_stops_and_starts_again(tmp_path: Path) -> None:
    """Start and stop may be repeated; what was committed is there after each."""
    ledger = embedded(tmp_path)
    ledger.stop()
    for _ in range(2):
        ledger.start()
        ledger.start()
        outcomes = ledger.client().submit(CONSORTIUM.admissions())
        assert all(isinstance(outcome, VerifiedReceipt) for outcome in outcomes)
        assert ledger.client().head()[0] == 1
        assert ledger.states() == dict.fromkeys(keys(), "running")
        ledger.stop()
        ledger.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.db" for name in keys()]


def test_many_threads_may_submit(tmp_path: Path) -> None:
    """The client is thread-safe: everybody's envelope gets its own receipt."""
    answers: dict[str, object] = {}
    with embedded(tmp_path) as ledger:
        client = ledger.client()

        def submit(name: str) -> None:
            [answers[name]] = client.submit([CONSORTIUM.seal(CONSORTIUM.admitted(name))])

        threads = [threading.Thread(target=submit, args=(f"owner-{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 8
    for name, receipt in answers.items():
        assert isinstance(receipt, VerifiedReceipt)
        assert getattr(receipt.statement, "name", None) == name


def test_question_that_a_stop_overtakes_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may stop the ledger between a look at it and the question: retry, no crash."""
    ended = asyncio.new_event_loop()
    ended.close()
    ledger = embedded(tmp_path)
    monkeypatch.setattr(ledger, "_loop", ended)
    with pytest.raises(UnavailableError, match="stopped meanwhile"):
        ledger.client().head()
    monkeypatch.undo()


def test_wrong_or_missing_key_is_refused(tmp_path: Path) -> None:
    """A ledger is not even made without the very keys that the genesis names."""
    some = keys()
    some["validator-2"] = SigningKey.from_seed(bytes(32))
    for wrong in (some, dict(list(keys().items())[:3])):
        with pytest.raises(UsageError, match="no key, or another one"):
            EmbeddedLedger(CONSORTIUM.genesis, wrong, tmp_path)


def test_missing_folder_is_refused_whole(tmp_path: Path) -> None:
    """A folder that is not there is one line, and nothing runs or is made."""
    ledger = embedded(tmp_path / "missing")
    with pytest.raises(UsageError, match="no such folder"):
        ledger.start()
    assert not (tmp_path / "missing").exists()
    with pytest.raises(UnavailableError, match="does not run"):
        ledger.client().head()
    ledger.stop()


def test_folder_in_use_is_refused_and_its_owner_goes_on(tmp_path: Path) -> None:
    """A second ledger on the same databases is refused; the first does not notice."""
    with embedded(tmp_path) as first:
        with pytest.raises(UsageError, match="in use by another process"):
            embedded(tmp_path).start()
        [outcome] = first.client().submit(CONSORTIUM.admissions()[:1])
        assert isinstance(outcome, VerifiedReceipt)


def test_damaged_database_starts_nothing(tmp_path: Path) -> None:
    """One damaged database of four: an error that names it, no thread, and no lock left."""
    with embedded(tmp_path) as ledger:
        ledger.client().submit(CONSORTIUM.admissions())
    whole = (tmp_path / "validator-3.db").read_bytes()
    (tmp_path / "validator-3.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(FedchainError, match=r"validator-3\.db"):
        embedded(tmp_path).start()
    assert our_threads() == []
    (tmp_path / "validator-3.db").write_bytes(whole)
    with embedded(tmp_path) as ledger:
        assert ledger.client().head()[0] == 1


def test_no_answer_in_time_is_said(tmp_path: Path) -> None:
    """A caller with no patience learns that the outcome is unknown, and may ask again."""
    with embedded(tmp_path) as ledger:
        with pytest.raises(UnavailableError, match="outcome is unknown"):
            ledger.client().submit(CONSORTIUM.admissions(), timeout_s=0.0)
        outcomes = ledger.client().submit(CONSORTIUM.admissions())
        assert all(isinstance(outcome, VerifiedReceipt) for outcome in outcomes)


def test_halted_validators_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When every validator has halted the caller gets their reasons, and stop still works."""

    def fail(store: Store, block: NewBlock) -> None:
        raise FedchainError("the disk is full")

    monkeypatch.setattr(Store, "append", fail)
    with (
        embedded(tmp_path) as ledger,
        pytest.raises(UnavailableError, match="validator-4 halted: the disk is full"),
    ):
        ledger.client().submit(CONSORTIUM.admissions(), timeout_s=2.0)


def test_one_halted_validator_is_stepped_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's validator halts in the middle: the retry goes to another, and succeeds."""
    append = Store.append

    def fail(store: Store, block: NewBlock) -> None:
        if store.name == "validator-1":
            raise FedchainError("the disk is full")
        append(store, block)

    monkeypatch.setattr(Store, "append", fail)
    with embedded(tmp_path) as ledger:
        outcomes = ledger.client().submit(CONSORTIUM.admissions())
        assert all(isinstance(outcome, VerifiedReceipt) for outcome in outcomes)
        assert ledger.states()["validator-1"] == "halted: the disk is full"
