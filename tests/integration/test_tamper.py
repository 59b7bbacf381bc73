"""Whatever byte of a stored history is changed, the audit says so: claim, height, exit status 1."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedchain
from fedchain_proto.blocks import Certificate
from fedchain_proto.hashing import parse_digest
from fedchain_proto.wire_pb2 import Envelope
from tests import tiny

Edit = Callable[[sqlite3.Connection], int]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> fedchain.Run:
    """A small finished run: 3 owners, 2 rounds, 4 validators."""
    folder = tmp_path_factory.mktemp("history") / "run"
    return fedchain.launch(
        tiny.make_app(), tiny.initial_arrays(), clients=3, rounds=2, workdir=folder
    )


def audit(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "fedchain", "ledger", "audit", "--json", *options]
    command += ["--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def flipped(data: bytes, position: int) -> bytes:
    """The same bytes with one bit changed."""
    position %= len(data)
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def flip_column(table: str, column: str, row: str, position: int) -> Edit:
    def edit(db: sqlite3.Connection) -> int:
        height, data = db.execute(f"SELECT height, {column} FROM {table} {row}").fetchone()
        changed = db.execute(
            f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (flipped(data, position), data)
        )
        assert changed.rowcount == 1
        return int(height)

    return edit


def flip_in_envelope(part: str) -> Edit:
    """Change one bit of the payload or of the signature of an update, leaving the rest whole."""

    def edit(db: sqlite3.Connection) -> int:
        rows = db.execute("SELECT seq, height, envelope FROM transactions").fetchall()
        for seq, height, raw in rows:
            envelope = Envelope.FromString(raw)
            if "update-submitted" in envelope.payload_type:
                if part == "payload":
                    envelope.payload = flipped(envelope.payload, -3)
                else:
                    signature = envelope.signatures[0]
                    signature.signature = flipped(signature.signature, 40)
                new = envelope.SerializeToString()
                db.execute("UPDATE transactions SET envelope = ? WHERE seq = ?", (new, seq))
                return int(height)
        raise AssertionError("no update in the history")

    return edit


# Positions of the header's fields: see fedchain_proto.blocks.
HEADER_FIELDS = {"version": 0, "chain": 10, "height": 36, "parent": 50, "time": 76, "state": -5}

TAMPERINGS: dict[str, tuple[Edit, set[str]]] = {
    **{
        f"header-{name}": (
            flip_column("blocks", "header", "WHERE height = 3", position),
            {"C2", "C3"},
        )
        for name, position in HEADER_FIELDS.items()
    },
    "certificate-head": (
        flip_column("blocks", "certificate", "WHERE height = 2", 20),
        {"C2", "C3"},
    ),
    "certificate-signature": (
        flip_column("blocks", "certificate", "WHERE height = 2", -9),
        {"C3"},
    ),
    "certificate-of-the-tip": (
        flip_column("blocks", "certificate", "ORDER BY height DESC LIMIT 1", -9),
        {"C3"},
    ),
    "payload": (flip_in_envelope("payload"), {"C2", "C4"}),
    "signature": (flip_in_envelope("signature"), {"C2", "C4"}),
    "envelope-framing": (
        flip_column("transactions", "envelope", "WHERE seq = 0", 1),
        {"C1", "C2"},
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
@pytest.mark.parametrize("validator", [1, 3])
def test_flipped_bit_is_found_and_named(
    history: fedchain.Run, tmp_path: Path, name: str, validator: int
) -> None:
    """One bit in any region of any validator's database: FAIL, with claim and height."""
    folder = tmp_path / "copy"
    shutil.copytree(history.dir, folder)
    edit, claims = TAMPERINGS[name]
    with sqlite3.connect(folder / "ledger" / f"validator-{validator}.db") as db:
        height = edit(db)
    db.close()
    status, report = audit(folder)
    assert status == 1
    assert report["verdict"] == "FAIL"
    failed = {c["id"]: c["findings"] for c in report["claims"] if c["verdict"] == "FAIL"}
    assert claims & set(failed), failed
    heights = {finding["height"] for claim in claims & set(failed) for finding in failed[claim]}
    assert heights & {height, height + 1}, failed
    whys = " ".join(f["why"] for findings in failed.values() for f in findings)
    assert f"validator-{validator}" in whys


@pytest.mark.parametrize("which", ["update", "model"])
@pytest.mark.parametrize("position", [0, 9, -1])
def test_flipped_bit_of_an_artifact_is_found(
    history: fedchain.Run, tmp_path: Path, which: str, position: int
) -> None:
    """One bit of a kept update or model, in its framing or its numbers: FAIL, with the round."""
    folder = tmp_path / "copy"
    shutil.copytree(history.dir, folder)
    record = history.rounds[0]
    digest = parse_digest(record.updates[1].digest if which == "update" else record.model).hex()
    files = [p for p in (folder / "artifacts").rglob("*") if p.is_file() and digest[2:] in p.name]
    assert len(files) == 1
    files[0].chmod(0o600)
    files[0].write_bytes(flipped(files[0].read_bytes(), position))
    status, report = audit(folder)
    assert status == 1
    findings = [f for c in report["claims"] if c["verdict"] == "FAIL" for f in c["findings"]]
    assert {c["id"] for c in report["claims"] if c["verdict"] == "FAIL"} & {"C1", "C6"}
    assert any(f["round"] == 1 and f["height"] for f in findings)
    assert audit(folder, "--depth", "chain")[0] == 0


def test_withheld_artifact_fails_the_aggregation_claim(
    history: fedchain.Run, tmp_path: Path
) -> None:
    """Losing evidence does not buy a PASS: C6 fails and says which participant's update."""
    folder = tmp_path / "copy"
    shutil.copytree(history.dir, folder)
    digest = parse_digest(history.rounds[1].updates[2].digest).hex()
    next(p for p in (folder / "artifacts").rglob("*") if digest[2:] in p.name).unlink()
    status, report = audit(folder)
    assert status == 1
    c6 = next(c for c in report["claims"] if c["id"] == "C6")
    assert c6["verdict"] == "FAIL"
    assert any(f["participant"] == "client-02" and f["round"] == 2 for f in c6["findings"])


@pytest.mark.parametrize("statement", ["DELETE FROM blocks WHERE height = 2", "rows"])
def test_removed_history_is_found(history: fedchain.Run, tmp_path: Path, statement: str) -> None:
    """A missing block or a missing transaction in the middle is a FAIL."""
    folder = tmp_path / "copy"
    shutil.copytree(history.dir, folder)
    with sqlite3.connect(folder / "ledger" / "validator-2.db") as db:
        db.execute("DELETE FROM transactions WHERE seq = 5" if statement == "rows" else statement)
    db.close()
    status, report = audit(folder)
    assert status == 1
    assert any(c["id"] == "C2" and c["verdict"] == "FAIL" for c in report["claims"])


def test_certificates_that_swap_are_found(history: fedchain.Run, tmp_path: Path) -> None:
    """A genuine certificate of another block proves nothing."""
    folder = tmp_path / "copy"
    shutil.copytree(history.dir, folder)
    with sqlite3.connect(folder / "ledger" / "validator-1.db") as db:
        other = db.execute("SELECT certificate FROM blocks WHERE height = 1").fetchone()[0]
        assert Certificate.decode(other).height == 1
        db.execute("UPDATE blocks SET certificate = ? WHERE height = 2", (other,))
    db.close()
    status, report = audit(folder)
    assert status == 1
    assert any(c["id"] == "C3" and c["verdict"] == "FAIL" for c in report["claims"])


GARBAGE = [b"", b"SQLite format 3\x00", b"\x00" * 8192, b"not a database"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_damaged_database_file_is_one_line_or_a_finding(
    history: fedchain.Run, tmp_path: Path, garbage: bytes
) -> None:
    """A file that is no database never ends in a traceback, and never in a PASS."""
    folder = tmp_path / "copy"
    shutil.copytree(history.dir, folder)
    for litter in (folder / "ledger").glob("validator-1.db-*"):
        litter.unlink()
    (folder / "ledger" / "validator-1.db").write_bytes(garbage)
    command = [sys.executable, "-m", "fedchain", "ledger", "audit", "--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr + done.stdout
    assert "validator-1" in done.stderr + done.stdout


def test_foreign_genesis_is_refused(history: fedchain.Run, tmp_path: Path) -> None:
    """Somebody else's trust root does not vouch for this chain."""
    other = fedchain.launch(
        tiny.make_app(), tiny.initial_arrays(), clients=3, rounds=1, workdir=tmp_path / "other"
    )
    command = [sys.executable, "-m", "fedchain", "ledger", "audit", "--dir", str(history.dir)]
    command += ["--trust", str(other.dir / "genesis.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
