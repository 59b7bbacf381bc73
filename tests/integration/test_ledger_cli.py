"""`fedchain ledger`: history, show and audit of a folder, for good and for bad input."""

import json
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from fedchain_ledger.cli import app
from fedchain_ledger.client import LedgerClient
from fedchain_ledger.console import run_cli
from fedchain_ledger.service.embedded import EmbeddedLedger
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFolder
from fedchain_proto.average import MemoryArrays, weighted_mean
from fedchain_proto.digest import model_digest
from fedchain_proto.errors import RuleError, UnavailableError, UsageError
from fedchain_proto.receipts import VerifiedReceipt, verify_receipt
from fedchain_proto.statements import Statement
from tests.unit.chainkit import ALICE, BOB, CAROL, Consortium, tx_id
from tests.unit.nodekit import clock

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recorded:
    """A folder with one run: round 1 averaged without Carol, round 2 open with Alice's update."""

    folder: Path
    consortium: Consortium
    run: str
    update: str
    models: tuple[str, str]


def arrays(seed: int) -> Arrays:
    return {"weight": np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)}


def record(folder: Path, label: str = "chain") -> Recorded:
    consortium = Consortium(label=label)
    genesis = consortium.genesis
    folder.mkdir()
    (folder / "genesis.json").write_bytes(genesis.raw)
    (folder / "ledger").mkdir()
    kept = ArtifactFolder(folder / "artifacts")
    keys = {f"validator-{i + 1}": key for i, key in enumerate(consortium.validator_keys)}
    with EmbeddedLedger(genesis, keys, folder / "ledger", clock=clock) as ledger:
        client = ledger.client()
        base = kept.put(arrays(0))
        submit(client, *consortium.admissions())
        opened = consortium.run_opened(initial=base)
        run = tx_id(opened)
        say(client, consortium, opened, consortium.round_opened(run, 1, base))
        trained = {ALICE: arrays(1), BOB: arrays(2)}
        updates = [
            consortium.update(run, name, 1, base, examples, kept.put(trained[name]))
            for name, examples in ((ALICE, 10), (BOB, 30))
        ]
        say(client, consortium, *updates)
        mean = weighted_mean([(10, MemoryArrays(trained[ALICE])), (30, MemoryArrays(trained[BOB]))])
        model = kept.put(mean)
        gone = [(CAROL, b"", wire.REASON_CLIENT_FAILED)]
        closed = consortium.closed(run, updates, 1, base, model, gone)
        say(client, consortium, closed, consortium.round_opened(run, 2, model))
        late = consortium.update(run, ALICE, 2, model, 10, kept.put(arrays(3)))
        say(client, consortium, late)
    digests = (model_digest(arrays(0)).hex(), model.hex())
    return Recorded(folder, consortium, run.hex(), tx_id(updates[0]).hex(), digests)


def say(client: LedgerClient, consortium: Consortium, *said: Statement) -> None:
    submit(client, *(consortium.seal(one) for one in said))


def submit(client: LedgerClient, *envelopes: bytes) -> None:
    outcomes = client.submit(envelopes)
    assert all(isinstance(outcome, VerifiedReceipt) for outcome in outcomes), outcomes


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("ledger") / "run")


@pytest.fixture
def copy(recorded: Recorded, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded.folder, tmp_path / "copy"))


class Shell:
    """Runs a command in this process, with what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        status = run_cli(app, [str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return status, out, err

    def json(self, *arguments: object) -> Any:
        status, out, err = self(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    def fails(self, *arguments: object, status: int = 2) -> str:
        """The one line that a failing command prints."""
        got, out, err = self(*arguments)
        assert got == status, (out, err)
        assert out == ""
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


# ---------------------------------------------------------------- history


def test_history_tells_who_weighed_what_and_who_was_left_out(
    shell: Shell, recorded: Recorded
) -> None:
    """Newest round first; the open one shows what stands in it, the closed one its reasons."""
    document = shell.json("history", "--dir", recorded.folder)
    [run] = document["runs"]
    assert (run["run"], run["outcome"], run["aggregator"]) == (recorded.run, "open", "server")
    second, first = run["rounds"]
    assert (first["number"], first["height"], first["outcome"]) == (1, 4, "averaged")
    assert [(u["participant"], u["examples"]) for u in first["updates"]] == [(ALICE, 10), (BOB, 30)]
    assert first["updates"][0]["transaction"] == recorded.update
    [left_out] = first["exclusions"]
    assert (left_out["participant"], left_out["reason"]) == (CAROL, "client-failed")
    assert left_out["proven"] is False
    assert first["model"] == second["base_model"] == "sha256:" + recorded.models[1]
    assert (second["outcome"], second["height"], second["model"]) == ("open", None, None)
    assert [u["participant"] for u in second["updates"]] == [ALICE]
    assert document["head"]["height"] == 5
    assert document["chain"]["operators"] == 2


def test_history_for_people_shows_the_same(shell: Shell, recorded: Recorded) -> None:
    """The table names rounds, weights, reasons and digests; nothing of it is on stderr."""
    status, out, err = shell("history", "--dir", recorded.folder)
    assert (status, err) == (0, "")
    for text in ("alice 10, bob 30", "carol: client-failed (claimed)", recorded.models[1][:12]):
        assert text in out
    assert out.index("alice 10\n" if "alice 10\n" in out else "alice 10 ") < out.index("bob 30")


def test_history_of_an_empty_chain(shell: Shell, tmp_path: Path) -> None:
    """A chain without a block has a history: none."""
    consortium = Consortium(1)
    (tmp_path / "genesis.json").write_bytes(consortium.genesis.raw)
    (tmp_path / "ledger").mkdir()
    keys = {"validator-1": consortium.validator_keys[0]}
    with EmbeddedLedger(consortium.genesis, keys, tmp_path / "ledger", clock=clock):
        pass
    document = shell.json("history", "--dir", tmp_path)
    assert document["runs"] == []
    assert document["head"] == {"height": 0, "id": consortium.genesis.chain_id.hex()}
    assert shell("history", "--dir", tmp_path)[0] == 0
    assert "blocks 1 to 0" in shell.fails("show", "--dir", tmp_path, "--height", 1)
    assert shell("audit", "--dir", tmp_path)[0] == 1


def test_history_goes_on_beside_one_damaged_database(shell: Shell, copy: Path) -> None:
    """A damaged copy is named on stderr and another validator's is shown; without any, an error."""
    for number in (1, 2):
        (copy / "ledger" / f"validator-{number}.db").write_bytes(b"rubbish" * 999)
    status, out, err = shell("history", "--dir", copy, "--json")
    assert (status, json.loads(out)["database"]) == (0, "validator-3")
    assert [line.split(":")[0] for line in err.splitlines()] == ["note", "note"]
    assert "validator-1.db" in err
    for number in (3, 4):
        (copy / "ledger" / f"validator-{number}.db").write_bytes(b"rubbish" * 999)
    assert "validator-4.db" in shell.fails("history", "--dir", copy)


def test_history_of_damaged_bytes_names_the_block(shell: Shell, copy: Path) -> None:
    """A statement that cannot be read ends the history with file and height, not a traceback."""
    for path in (copy / "ledger").glob("*.db"):
        with sqlite3.connect(path) as db:
            db.execute("UPDATE transactions SET envelope = zeroblob(40) WHERE height = 3")
        db.close()
    error = shell.fails("history", "--dir", copy)
    assert "validator-1.db, block 3" in error
    assert "ledger audit" in error


# ---------------------------------------------------------------- show


def test_show_block_is_whole(shell: Shell, recorded: Recorded) -> None:
    """A block comes with header, every envelope and signature, and a quorum's certificate."""
    block = shell.json("show", "--dir", recorded.folder, "--height", 3)["block"]
    assert block["height"] == block["header"]["height"] == 3
    assert len(block["transactions"]) == 2
    assert len(block["certificate"]["signatures"]) == 3
    assert {entry["validator"] for entry in block["certificate"]["signatures"]} <= {
        f"validator-{number}" for number in (1, 2, 3, 4)
    }
    first = block["transactions"][0]
    assert first["type"] == "update-submitted"
    assert first["statement"]["participant"] == ALICE
    assert first["statement"]["num_examples"] == 10
    assert len(first["signatures"][0]["signature"]) == 128
    parent = shell.json("show", "--dir", recorded.folder, "--height", 2)["block"]
    assert block["header"]["parent_id"] == parent["id"]


def test_show_transaction_carries_a_receipt_that_holds(shell: Shell, recorded: Recorded) -> None:
    """The receipt that is shown proves the transaction to a holder of the genesis."""
    document = shell.json("show", "--dir", recorded.folder, "--tx", recorded.update)
    receipt = verify_receipt(bytes.fromhex(document["receipt"]), recorded.consortium.genesis)
    assert receipt.signed.tx_id.hex() == recorded.update == document["transaction"]["id"]
    assert receipt.leaf_index == document["transaction"]["index"]
    assert document["block"]["height"] == 3


@pytest.mark.parametrize("digits", [64, 6])
def test_show_round_is_whole(shell: Shell, recorded: Recorded, digits: int) -> None:
    """A round comes with its opening, updates and close, and the blocks that certify them."""
    name = f"{recorded.run[:digits]}/1"
    shown = shell.json("show", "--dir", recorded.folder, "--round", name)["round"]
    assert [one["type"] for one in shown["transactions"]] == [
        "round-opened",
        "update-submitted",
        "update-submitted",
        "round-closed",
    ]
    assert (shown["run"], shown["number"], shown["state"]) == (recorded.run, 1, "closed")
    assert [block["height"] for block in shown["blocks"]] == [2, 3, 4]
    assert shown["transactions"][3]["statement"]["excluded"] == [
        {"participant": CAROL, "transaction": "", "reason": "client-failed"}
    ]
    second = f"{recorded.run[:digits]}/2"
    shown = shell.json("show", "--dir", recorded.folder, "--round", second)["round"]
    assert (shown["number"], shown["state"]) == (2, "open")


@pytest.mark.parametrize("what", [("--height", 3), ("--tx", "update"), ("--round", "run")])
def test_show_for_people(shell: Shell, recorded: Recorded, what: tuple[str, object]) -> None:
    """What programs get, people get too: the signatures and the certificate are printed."""
    names = {"update": recorded.update, "run": f"{recorded.run}/1"}
    status, out, err = shell(
        "show", "--dir", recorded.folder, what[0], names.get(str(what[1]), what[1])
    )
    assert (status, err) == (0, "")
    for text in ("participant: alice", "certificate:", "signature: ", "validator: validator-"):
        assert text in out


def test_show_wants_exactly_one_thing(shell: Shell, recorded: Recorded) -> None:
    """None or two of the options are wrong usage, before anything is opened."""
    one_thing = "name one thing to show"
    assert one_thing in shell.fails("show", "--dir", recorded.folder)
    both = ("--height", 1, "--tx", recorded.update)
    assert one_thing in shell.fails("show", "--dir", recorded.folder, *both)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (("--height", 6), "no block 6"),
        (("--height", 0), "no block 0"),
        (("--height", -1), "no block -1"),
        (("--height", 2**70), "no block"),
        (("--tx", "ab" * 32), "no transaction abab"),
        (("--tx", "ab"), "64 hex digits"),
        (("--tx", "\x1b[31m"), "64 hex digits"),
        (("--round", "{run}/3"), "has no round 3"),
        (("--round", "{run}/0"), "a round is RUN/N"),
        (("--round", "{run}"), "a round is RUN/N"),
        (("--round", "{run}/9999999999"), "has no round"),
        (("--round", "xyz/1"), "a round is RUN/N"),
        (("--round", "{other}/1"), "no run begins with"),
        (("--height", "three"), "--height"),
    ],
)
def test_show_what_is_not_there(
    shell: Shell, recorded: Recorded, what: tuple[str, object], message: str
) -> None:
    """Whatever cannot be shown is one line, exit status 2, and no control character."""
    other = ("0" if recorded.run[0] != "0" else "1") + "a" * 20
    value = str(what[1]).format(run=recorded.run, other=other)
    error = shell.fails("show", "--dir", recorded.folder, what[0], value)
    assert message in error
    assert "\x1b" not in error


# ---------------------------------------------------------------- audit


def test_audit_of_an_honest_folder_passes(shell: Shell, recorded: Recorded, tmp_path: Path) -> None:
    """PASS with exit status 0, for people and for programs, with the auditor's own genesis."""
    own = tmp_path / "own.json"
    own.write_bytes(recorded.consortium.genesis.raw)
    status, out, err = shell("audit", "--dir", recorded.folder, "--trust", own)
    assert (status, err) == (0, "")
    assert "PASS" in out.splitlines()[0]
    report = shell.json("audit", "--dir", recorded.folder, "--trust", own)
    verdicts = {claim["id"]: claim["verdict"] for claim in report["claims"]}
    assert report["verdict"] == "PASS"
    assert report["head"]["height"] == 5
    assert verdicts["C6"] == "PASS"


def test_audit_says_that_the_trust_root_is_the_folders(shell: Shell, recorded: Recorded) -> None:
    """Without --trust one line on stderr tells an auditor to bring their own genesis."""
    status, out, err = shell("audit", "--dir", recorded.folder, "--json")
    assert status == 0
    assert json.loads(out)["verdict"] == "PASS"
    assert len(err.splitlines()) == 1
    assert "an auditor brings their own" in err


def test_audit_at_depth_chain_leaves_the_average_unchecked(
    shell: Shell, recorded: Recorded, copy: Path
) -> None:
    """Without artifacts depth chain still judges the rest; depth full fails C6 as withheld."""
    shutil.rmtree(copy / "artifacts")
    report = shell.json("audit", "--dir", copy, "--depth", "chain")
    verdicts = {claim["id"]: claim["verdict"] for claim in report["claims"]}
    assert (report["verdict"], verdicts["C6"]) == ("PASS", "NOT CHECKABLE")
    status, out, _ = shell("audit", "--dir", copy, "--json")
    assert status == 1
    verdicts = {claim["id"]: claim["verdict"] for claim in json.loads(out)["claims"]}
    assert verdicts["C6"] == "FAIL"


def test_audit_of_a_changed_folder_fails(shell: Shell, copy: Path) -> None:
    """One changed byte in one of four databases: exit status 1, with height and database."""
    with sqlite3.connect(copy / "ledger" / "validator-3.db") as db:
        [envelope] = db.execute("SELECT envelope FROM transactions WHERE seq = 6").fetchone()
        changed = envelope[:-9] + bytes([envelope[-9] ^ 1]) + envelope[-8:]
        db.execute("UPDATE transactions SET envelope = ? WHERE seq = 6", (changed,))
    db.close()
    status, out, _ = shell("audit", "--dir", copy, "--json")
    assert status == 1
    findings = [f for claim in json.loads(out)["claims"] for f in claim["findings"]]
    assert any(f["height"] == 3 and "validator-3" in f["why"] for f in findings)
    status, out, _ = shell("audit", "--dir", copy)
    assert status == 1
    assert "FAIL" in out.splitlines()[0]


def test_audit_of_a_destroyed_database_fails_and_names_it(shell: Shell, copy: Path) -> None:
    """A file that is no database is a finding beside the others, not the end of the audit."""
    (copy / "ledger" / "validator-2.db").write_bytes(b"rubbish" * 999)
    status, out, _ = shell("audit", "--dir", copy, "--json")
    assert status == 1
    findings = [f["why"] for claim in json.loads(out)["claims"] for f in claim["findings"]]
    assert any("validator-2.db" in why for why in findings)


def test_foreign_genesis_is_refused(shell: Shell, recorded: Recorded, tmp_path: Path) -> None:
    """Another chain's genesis does not vouch for this folder: one line, with both chains."""
    other = tmp_path / "other.json"
    other.write_bytes(Consortium(label="another").genesis.raw)
    error = shell.fails("audit", "--dir", recorded.folder, "--trust", other)
    assert "bring the genesis of this chain" in error


@pytest.mark.parametrize("command", ["history", "audit", "show"])
def test_folder_that_is_none_is_refused(shell: Shell, tmp_path: Path, command: str) -> None:
    """A missing folder, one without genesis, one without databases: one line, exit status 2."""
    extra = ("--height", 1) if command == "show" else ()
    assert "cannot read the genesis" in shell.fails(command, "--dir", tmp_path / "no", *extra)
    assert "cannot read the genesis" in shell.fails(command, "--dir", tmp_path, *extra)
    (tmp_path / "genesis.json").write_text("{}")
    assert "is not a genesis" in shell.fails(command, "--dir", tmp_path, *extra)
    (tmp_path / "genesis.json").write_bytes(Consortium(1).genesis.raw)
    assert "no ledger here" in shell.fails(command, "--dir", tmp_path, *extra)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["genesis.json"]


def test_audit_refuses_wrong_usage(shell: Shell, recorded: Recorded, tmp_path: Path) -> None:
    """An unknown depth, an unknown option, a missing trust root: one line, exit status 2."""
    folder = recorded.folder
    assert "--depth" in shell.fails("audit", "--dir", folder, "--depth", "deep")
    assert "--frobnicate" in shell.fails("audit", "--dir", folder, "--frobnicate")
    missing = shell.fails("audit", "--dir", folder, "--trust", tmp_path / "missing.json")
    assert "cannot read the genesis" in missing
    assert "--dir" in shell.fails("audit")


def test_help_is_plain_to_read(shell: Shell) -> None:
    """--help says what a command does and exits 0; no command at all shows it, and exits 2."""
    for command in ("history", "show", "audit"):
        status, out, _ = shell(command, "--help")
        assert (status, "--dir" in out, "\\[" in out) == (0, True, False)
    status, out, _ = shell()
    assert status == 2
    assert "history" in out


# ---------------------------------------------------------------- as a process


def fedchain(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    program = "import sys; from fedchain_ledger import cli, console; "
    program += "sys.exit(console.run_cli(cli.app))"
    return subprocess.run(
        [sys.executable, "-c", program, *(str(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


def test_reading_changes_nothing(recorded: Recorded) -> None:
    """History, show and audit leave every file as it was, and make none."""

    def content() -> dict[str, bytes]:
        files = (path for path in recorded.folder.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    before = content()
    for arguments in (("history",), ("show", "--height", "1"), ("audit",)):
        assert fedchain(*arguments, "--dir", recorded.folder, "--json").returncode == 0
    assert content() == before


def test_json_is_the_only_thing_on_stdout(recorded: Recorded) -> None:
    """A program that reads stdout gets one ASCII document, in a terminal's environment too."""
    done = fedchain(
        "audit",
        "--dir",
        recorded.folder,
        "--json",
        env={"FORCE_COLOR": "1", "TERM": "xterm-256color", "PATH": "/usr/bin"},
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["verdict"] == "PASS"
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout


def test_closed_pipe_ends_quietly(recorded: Recorded) -> None:
    """`| head -1` gets its line, and nobody gets a traceback."""
    program = "import sys; from fedchain_ledger import cli, console; "
    program += "sys.exit(console.run_cli(cli.app))"
    command = f"'{sys.executable}' -c '{program}' show --height 1 --dir '{recorded.folder}'"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"], capture_output=True, text=True, timeout=60
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_history_while_the_ledger_runs(tmp_path: Path) -> None:
    """Another process reads a folder whose validators are at work, and sees what is committed."""
    consortium = Consortium()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "genesis.json").write_bytes(consortium.genesis.raw)
    (folder / "ledger").mkdir()
    keys = {f"validator-{i + 1}": key for i, key in enumerate(consortium.validator_keys)}
    with EmbeddedLedger(consortium.genesis, keys, folder / "ledger", clock=clock) as ledger:
        submit(ledger.client(), *consortium.admissions())
        opened = consortium.run_opened()
        say(ledger.client(), consortium, opened)
        done = fedchain("history", "--dir", folder, "--json")
        assert json.loads(done.stdout)["runs"][0]["run"] == tx_id(opened).hex()
        assert fedchain("audit", "--dir", folder, "--depth", "chain").returncode == 0
        second = consortium.round_opened(tx_id(opened))
        say(ledger.client(), consortium, second)


# ---------------------------------------------------------------- the wrapper itself


def test_errors_become_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """What does not hold is 1; wrong usage, no answer and our own bugs are 2, Ctrl-C is 130."""
    for error, status, text in (
        (RuleError("refused"), 1, "error: refused\n"),
        (UsageError("two\nlines \x1b[2J"), 2, "error: two lines \\x1b[2J\n"),
        (UnavailableError("no answer"), 2, "error: no answer\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
    ):
        plain = typer.Typer(pretty_exceptions_enable=False)
        plain.command()(_raiser(error))
        assert run_cli(plain, []) == status
        assert capsys.readouterr().err == text
    plain = typer.Typer(pretty_exceptions_enable=False)
    plain.command()(_raiser(ZeroDivisionError("a bug")))
    assert run_cli(plain, []) == 2
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


def _raiser(error: BaseException) -> Any:
    def command() -> None:
        raise error

    return command
