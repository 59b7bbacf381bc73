"""Folders that somebody packed to harm who looks into them: one line or a finding, soon."""

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from fedchain_ledger.service.reading import ChainReader
from tests.integration.test_ledger_cli import Recorded, Shell, copy, recorded, shell

__all__ = ["copy", "recorded", "shell"]  # fixtures

ENDLESS = """
    WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more)
    SELECT n AS seq, 3 AS height, zeroblob(32) AS tx_id, NULL AS run, NULL AS round,
        zeroblob(1000) AS envelope FROM more
"""


def _edit(folder: Path, script: str) -> None:
    """Do the same to every database of a folder."""
    for path in (folder / "ledger").glob("*.db"):
        with sqlite3.connect(path) as db:
            db.executescript(script)
        db.close()


def _whys(shell: Shell, folder: Path) -> str:
    """What an audit that fails finds."""
    status, out, _ = shell("audit", "--dir", folder, "--json")
    assert status == 1
    return "\n".join(one["why"] for c in json.loads(out)["claims"] for one in c["findings"])


def _endless(folder: Path) -> None:
    _edit(folder, f"DROP TABLE transactions; CREATE VIEW transactions AS {ENDLESS}")


def _trigger(folder: Path) -> None:
    _edit(folder, "CREATE TRIGGER t AFTER INSERT ON blocks BEGIN DELETE FROM blocks; END")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pack", [_endless, _trigger])
def test_database_that_runs_its_makers_sql_is_not_read(
    shell: Shell, copy: Path, pack: Callable[[Path], None]
) -> None:
    """A view in a table's place could feed an auditor rows without end: it is damage, named."""
    pack(copy)
    assert "it holds more than plain tables" in _whys(shell, copy)
    assert "more than plain tables" in shell.fails("history", "--dir", copy)


def test_row_of_absurd_size_is_a_finding(shell: Shell, copy: Path) -> None:
    """A row far over any envelope is never brought into memory; the audit names its block."""
    _edit(copy, "UPDATE transactions SET envelope = zeroblob(300000000) WHERE seq = 5")
    whys = _whys(shell, copy)
    assert "block 2" in whys
    assert "too big" in whys


def test_block_of_too_many_rows_is_a_finding(shell: Shell, copy: Path) -> None:
    """However many rows a database claims for one block, a bounded number is read."""
    rows = "WITH RECURSIVE more(n) AS (SELECT 100 UNION ALL SELECT n + 1 FROM more LIMIT 200000)"
    _edit(
        copy,
        "INSERT INTO transactions(seq, height, tx_id, envelope)"
        f" {rows} SELECT n, 3, CAST(n AS BLOB), zeroblob(60) FROM more",
    )
    assert "holds more than 1000 transactions" in _whys(shell, copy)


@pytest.mark.parametrize("place", [-5, 2**40, 2**63 - 1])
def test_transaction_out_of_place_is_one_line(
    shell: Shell, recorded: Recorded, copy: Path, place: int
) -> None:
    """A row that claims a place beyond the log is damage that is said, not a traceback."""
    _edit(copy, f"UPDATE transactions SET seq = {place} WHERE tx_id = x'{recorded.update}'")
    error = shell.fails("show", "--dir", copy, "--tx", recorded.update)
    assert "block 3" in error
    assert "ledger audit" in error


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_named_pipe_beside_a_database_is_a_finding(shell: Shell, copy: Path, suffix: str) -> None:
    """SQLite would open it and wait for a writer; the audit says what it is, and goes on."""
    os.mkfifo(copy / "ledger" / f"validator-2.db{suffix}")
    whys = _whys(shell, copy)
    assert f"validator-2.db{suffix} beside it is not a file" in whys
    assert "validator-1" not in whys


@pytest.mark.timeout(60)
def test_genesis_that_is_a_named_pipe_is_one_line(shell: Shell, copy: Path) -> None:
    """Nobody waits for whoever may one day write into it."""
    (copy / "genesis.json").unlink()
    os.mkfifo(copy / "genesis.json")
    assert "not a genesis" in shell.fails("audit", "--dir", copy)


@pytest.mark.parametrize("what", ["--round", "--tx"])
def test_showing_one_thing_reads_no_whole_block(
    shell: Shell, recorded: Recorded, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a round of n updates in one block would cost n * n, to whoever looks at it."""

    def whole(reader: ChainReader, height: int) -> tuple[bytes, list[bytes], bytes]:
        raise AssertionError(f"block {height} was read whole")

    monkeypatch.setattr(ChainReader, "block", whole)
    name = f"{recorded.run}/1" if what == "--round" else recorded.update
    status, out, err = shell("show", "--dir", recorded.folder, what, name)
    assert (status, err) == (0, "")
    assert recorded.update in out
