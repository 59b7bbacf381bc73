"""`fedchain.launch` on real components: processes, SQLite, consensus, Flower messages."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord

import fedchain
from tests import tiny

POLICY = fedchain.Policy(min_clients=2, max_examples_per_client=1000, round_timeout_s=4.0)


def launch(workdir: Path, **changes: object) -> fedchain.Run:
    options: dict[str, object] = {
        "clients": 3,
        "rounds": 2,
        "workdir": workdir,
        "policy": POLICY,
        **changes,
    }
    misdeeds = options.pop("misdeeds", None)
    return fedchain.launch(tiny.make_app(misdeeds), tiny.initial_arrays(), **options)  # type: ignore[arg-type]


def test_run_returns_model_rounds_and_a_passing_audit(tmp_path: Path) -> None:
    """A run's records name every update with its signed weight, and its history audits."""
    seen = []
    run = launch(tmp_path / "run", on_round=seen.append)
    assert [r.number for r in run.rounds] == [1, 2]
    assert list(run.rounds) == seen
    for record in run.rounds:
        assert [(u.participant, u.examples) for u in record.updates] == [
            ("client-00", 10),
            ("client-01", 11),
            ("client-02", 12),
        ]
        assert record.exclusions == ()
    assert run.rounds[0].height < run.rounds[1].height
    assert set(run.arrays) == {"layer.weight", "layer.bias"}
    report = run.audit()
    assert report.verdict == "PASS"
    assert {c.id: c.verdict for c in report.claims}["C6"] == "PASS"
    assert "PASS" in str(report).splitlines()[0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"


def test_model_is_the_exact_weighted_mean(tmp_path: Path) -> None:
    """The last model is the average, by signed weights, of the kept updates, recomputed here."""
    from fedchain_proto.artifact import ArtifactFolder
    from fedchain_proto.hashing import parse_digest

    run = launch(tmp_path / "run", rounds=1)
    folder = ArtifactFolder(tmp_path / "run" / "artifacts")
    total = np.zeros((2, 3), np.float64)
    weights = 0
    for update in run.rounds[0].updates:
        with folder.open(parse_digest(update.digest), verify=True) as artifact:
            total += update.examples * artifact.arrays()["layer.weight"].astype(np.float64)
        weights += update.examples
    np.testing.assert_array_equal(
        run.arrays["layer.weight"].numpy(), (total / weights).astype(np.float32)
    )


@pytest.mark.parametrize("change", [{"workers": 1}, {"workers": 2}, {"validators": 1}])
def test_equal_seeds_give_equal_models(tmp_path: Path, change: dict[str, int]) -> None:
    """Workers, validators, fresh keys and the order of answers do not move a bit; a seed does."""
    first = launch(tmp_path / "a", seed=7)
    second = launch(tmp_path / "b", seed=7, **change)
    other = launch(tmp_path / "c", seed=8)
    assert first.rounds[-1].model == second.rounds[-1].model
    assert first.run_id != second.run_id
    assert first.rounds[-1].model != other.rounds[-1].model


@pytest.mark.parametrize(
    ("misdeed", "reason"),
    [
        ("raise", "client-failed"),
        ("exit", "client-failed"),
        ("hard-exit", "client-failed"),
        ("segfault", "client-failed"),
        ("spin", "client-overran"),
        ("sleep", "client-overran"),
        ("nothing", "malformed-reply"),
        ("no-arrays", "client-refused"),
        ("no-metrics", "client-refused"),
        ("nan", "not-finite"),
        ("infinity", "not-finite"),
        ("wrong-shape", "wrong-structure"),
        ("wrong-dtype", "wrong-structure"),
        ("extra-name", "wrong-structure"),
        ("zero-weight", "client-refused"),
        ("negative-weight", "client-refused"),
        ("over-cap", "weight-over-cap"),
    ],
)
def test_bad_client_costs_its_own_update_and_nothing_else(
    tmp_path: Path, misdeed: str, reason: str
) -> None:
    """Whatever one client does, the round goes on, it is named, and it is back in the next."""
    policy = fedchain.Policy(min_clients=2, max_examples_per_client=1000, round_timeout_s=2.0)
    run = launch(tmp_path / "run", misdeeds={(1, 1): misdeed}, policy=policy)
    first, second = run.rounds
    assert [(e.participant, e.reason) for e in first.exclusions] == [("client-01", reason)]
    assert [u.participant for u in first.updates] == ["client-00", "client-02"]
    assert len(second.updates) == 3
    assert run.audit().verdict == "PASS"


def test_too_few_updates_end_the_run_with_the_reasons(tmp_path: Path) -> None:
    """Below min_clients the run ends by name, and the ledger still audits."""
    with pytest.raises(fedchain.RuleError, match=r"client-01.*client-02|1 of 3"):
        launch(tmp_path / "run", misdeeds={(1, 2): "raise", (2, 2): "nan"})
    report = audit(tmp_path / "run")
    assert report["verdict"] == "PASS"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "aborted"


def audit(workdir: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "fedchain", "ledger", "audit", "--dir", str(workdir), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


SLOW_RUN = """
import sys
import fedchain
from tests import tiny

def main():
    fedchain.launch(
        tiny.make_app(pause_s=0.3), tiny.initial_arrays(), clients=4, rounds=50,
        workdir=sys.argv[1], on_round=lambda record: print(record.number, flush=True),
    )

main()
"""


@pytest.mark.parametrize(("number", "rounds"), [(signal.SIGINT, 1), (signal.SIGKILL, 2)])
def test_interrupted_run_leaves_a_ledger_that_audits(
    tmp_path: Path, number: signal.Signals, rounds: int
) -> None:
    """Ctrl-C and kill -9 in the middle of a round leave a valid history and no process."""
    folder = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    while int(child.stdout.readline()) < rounds:
        pass
    time.sleep(0.4)  # Into the next round's training.
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode != 0
    assert wait_until(lambda: not group_lives(child.pid)), "a worker outlived the run"
    assert audit(folder)["verdict"] == "PASS"
    with pytest.raises(fedchain.UsageError, match="already holds an"):
        launch(folder)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def group_lives(leader: int) -> bool:
    """Whether any process of the session that `leader` led is left (zombies aside)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z" and int(entry.name) != os.getpid():
                return True
    return False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds must be"),
        ({"clients": 0}, "clients must be"),
        ({"clients": True}, "clients must be"),
        ({"validators": 0}, "validators must be"),
        ({"workers": 0}, "workers must be"),
        ({"clients": 2, "policy": fedchain.Policy(min_clients=3)}, "asks for 3 updates"),
        ({"device": "cuda:99"}, "cuda"),
        ({"device": "toaster"}, "toaster"),
        ({"fraction_evaluate": 2.0}, "fraction_evaluate"),
        ({"seed": "today"}, "seed must be"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    """A usage error says what is wrong and leaves no folder behind."""
    with pytest.raises(fedchain.UsageError, match=words):
        launch(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_wrong_types_are_refused(tmp_path: Path) -> None:
    """An app or a model of the wrong kind is named as such."""
    with pytest.raises(fedchain.UsageError, match="client_app"):
        fedchain.launch(
            lambda m, c: m,  # type: ignore[arg-type]
            tiny.initial_arrays(),
            clients=3,
            rounds=1,
            workdir=tmp_path / "x",
        )
    with pytest.raises(fedchain.UsageError, match="no model"):
        fedchain.launch(tiny.make_app(), ArrayRecord(), clients=3, rounds=1, workdir=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [(np.array([np.nan], np.float32), "NaN"), (np.array([True]), "boolean")],
)
def test_model_that_cannot_be_trained_leaves_no_folder(
    tmp_path: Path, array: np.ndarray, words: str
) -> None:
    """What the strategy refuses at its start can be corrected and launched into the same folder."""
    with pytest.raises(fedchain.UsageError, match=words):
        fedchain.launch(
            tiny.make_app(),
            ArrayRecord({"x": Array(array)}),
            clients=3,
            rounds=1,
            workdir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
    launch(tmp_path / "run", rounds=1)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_ends_before_the_run_was_opened_leaves_no_folder(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """Ctrl-C or a bug of the caller's before round 1 leaves nothing; a file beside it stays."""
    folder = tmp_path / "run"

    def broken(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number == 0:
            assert (folder / "genesis.json").exists()
            (folder / "notes.txt").write_text("mine")
            raise error
        raise AssertionError("the run went on")

    with pytest.raises(error):
        launch(folder, server_evaluate=broken)
    assert [child.name for child in folder.iterdir()] == ["notes.txt"]


def test_folder_that_cannot_be_filled_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full before anything is recorded is one clear error, and leaves nothing."""

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(fedchain.UsageError, match=r"run: No space left"):
        launch(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_long_time_out_works_with_few_workers(tmp_path: Path) -> None:
    """A queue of patient clients asks the ledger for no longer a deadline than it can give."""
    policy = fedchain.Policy(min_clients=3, round_timeout_s=20 * 24 * 3600)
    assert len(launch(tmp_path / "run", rounds=1, workers=1, policy=policy).rounds) == 1


def test_finished_run_is_never_overwritten(tmp_path: Path) -> None:
    """A second launch into the folder is refused and changes nothing."""
    launch(tmp_path / "run", rounds=1)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(fedchain.UsageError, match="a finished run"):
        launch(tmp_path / "run", rounds=1)
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert before == after


def test_evaluation_by_server_and_by_clients(tmp_path: Path) -> None:
    """Server metrics stand in the round's record; clients evaluate when asked to."""
    calls = []

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        calls.append(number)
        return MetricRecord({"norm": float(np.abs(arrays["layer.bias"].numpy()).sum())})

    run = launch(tmp_path / "run", server_evaluate=evaluate, fraction_evaluate=1.0)
    assert calls == [0, 1, 2]
    assert run.rounds[0].metrics["norm"] > 0
    assert run.audit().verdict == "PASS"


def test_app_that_lists_attest_itself_is_signed_once(tmp_path: Path) -> None:
    """An app that already adopted fedchain runs embedded unchanged."""
    from flwr.clientapp import ClientApp

    app = ClientApp(mods=[fedchain.attest])
    app.train()(lambda message, context: tiny.reply(message))
    run = fedchain.launch(
        app, tiny.initial_arrays(), clients=3, rounds=2, workdir=tmp_path / "run", policy=POLICY
    )
    assert [len(r.updates) for r in run.rounds] == [3, 3]


def test_error_of_the_callers_own_callback_ends_the_run_cleanly(tmp_path: Path) -> None:
    """An exception in on_round reaches the caller, and the history audits."""

    def broken(record: fedchain.RoundRecord) -> None:
        raise ZeroDivisionError("the caller's own bug")

    with pytest.raises(ZeroDivisionError):
        launch(tmp_path / "run", on_round=broken)
    assert audit(tmp_path / "run")["verdict"] == "PASS"


def test_evaluation_that_nobody_can_parse_ends_no_run(tmp_path: Path) -> None:
    """An evaluation reply with a hostile array costs that evaluation, never the run."""
    from flwr.app import Array, Context, Message, RecordDict

    app = tiny.make_app()
    header = b"{'shape': (2,"
    junk = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    hostile = Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=junk)

    @app.evaluate("hostile")
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"a": ArrayRecord({"x": hostile})}), reply_to=message)

    app._registered_funcs["evaluate.default"] = evaluate
    run = fedchain.launch(
        app,
        tiny.initial_arrays(),
        clients=3,
        rounds=1,
        workdir=tmp_path / "run",
        policy=fedchain.Policy(min_clients=2, round_timeout_s=30 * 86400 - 60),
        fraction_evaluate=1.0,
    )
    assert len(run.rounds[0].updates) == 3
