"""What a failing disk, a killed process or flipped bits do to a validator's database."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fedchain_ledger.core.effects import JournalEntry
from fedchain_ledger.service.reading import open_reader
from fedchain_ledger.service.store import NewBlock, NewTransaction, Store
from fedchain_proto.errors import FedchainError, UsageError
from tests.permissions import BECOME_NOBODY

CHAIN = bytes(range(32))


def numbered_block(height: int, size: int = 400) -> NewBlock:
    envelope = b"%08d" % height * (size // 8)
    item = NewTransaction(envelope, b"%032d" % height, b"r" * 32, height)
    return NewBlock(height, b"h" * 300, b"c" * 300, None, [item], [(0, height, b"n" * 32)])


def stored_chain(path: Path, blocks: int = 40) -> list[tuple[bytes, list[bytes], bytes]]:
    store = Store(path, CHAIN)
    for height in range(1, blocks + 1):
        store.append(numbered_block(height))
    store.save_journal([JournalEntry(blocks + 1, 0, 2, b"vote")])
    stored = [store.block(height) for height in range(1, blocks + 1)]
    store.close()
    return stored


def read_everything(path: Path) -> list[tuple[bytes, list[bytes], bytes]]:
    with open_reader(path) as reader:
        return [reader.block(height) for height in range(1, reader.head_height() + 1)]


def test_flipped_bits_are_read_as_such_or_named(tmp_path: Path) -> None:
    """Wherever one bit flips, reading gives other bytes, or one error of ours naming the file."""
    path = tmp_path / "validator-1.db"
    intact = stored_chain(path)
    raw = path.read_bytes()
    assert read_everything(path) == intact
    chance = random.Random(7)
    changed, errors = 0, []
    for _ in range(400):
        bit = chance.randrange(len(raw) * 8)
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            changed += read_everything(path) != intact
        except FedchainError as error:
            errors.append(str(error))
    assert changed > 50
    assert len(errors) > 10
    assert all(str(path) in error and "\n" not in error for error in errors)


def test_flipped_envelope_bit_comes_back_flipped(tmp_path: Path) -> None:
    """The reader hands the audit the damaged bytes of exactly that block, and the others whole."""
    path = tmp_path / "validator-1.db"
    intact = stored_chain(path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"00000017" * 50) + 5] ^= 0x10
    path.write_bytes(raw)
    found = read_everything(path)
    assert [height for height in range(1, 41) if found[height - 1] != intact[height - 1]] == [17]


def test_damaged_page_is_named_with_its_height(tmp_path: Path) -> None:
    """A database page that is rubbish costs the blocks on it, each named by its height."""
    path = tmp_path / "validator-1.db"
    stored_chain(path)
    raw = bytearray(path.read_bytes())
    page = raw.index(b"00000017" * 50) // 4096 * 4096
    raw[page : page + 4096] = bytes(4096)
    path.write_bytes(raw)
    with open_reader(path) as reader, pytest.raises(FedchainError, match="block 17") as caught:
        reader.block(17)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, b"SQLite format 3\0"])
def test_rubbish_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no database is refused in one line; a reader never makes it one."""
    path = tmp_path / "validator-1.db"
    path.write_bytes(content)
    with pytest.raises(FedchainError, match=r"validator-1\.db"), open_reader(path):
        pass
    assert path.read_bytes() == content


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    """A copy that was cut short is refused by name, by whoever opens it."""
    path = tmp_path / "validator-1.db"
    stored_chain(path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(FedchainError, match="damaged"):
        read_everything(path)


def test_full_disk_refuses_the_block_whole(tmp_path: Path) -> None:
    """When the disk is full nothing of a block is stored, and it can be stored once there is room.

    SQLite's own limit on pages stands in for the disk: it fails with the same result code.
    """
    path = tmp_path / "validator-1.db"
    store = Store(path, CHAIN)
    store.append(numbered_block(1))
    connection = store._connection
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    connection.rollback()
    with pytest.raises(FedchainError, match="block 2: cannot grow, the disk is full"):
        store.append(numbered_block(2, size=200_000))
    assert store.head_height() == 1
    connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    connection.rollback()
    store.append(numbered_block(2, size=200_000))
    assert store.head_height() == 2
    store.close()


def test_database_locked_by_another_program_is_named(tmp_path: Path) -> None:
    """A database that another program writes to right now is in use, in plain words."""
    path = tmp_path / "validator-1.db"
    stored_chain(path)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageError, match="in use by another process"):
            Store(path, CHAIN)
        other.execute("ROLLBACK")
    other.close()
    Store(path, CHAIN).close()


def test_folder_that_may_not_be_written_is_named(public_folder: Path) -> None:
    """A validator whose folder is closed to it says so in one line."""
    folder = public_folder
    folder.chmod(0o555)
    program = (
        "import sys, pathlib\n"
        "from fedchain_ledger.service.store import Store\n"
        "from fedchain_proto.errors import UsageError\n"
        f"{BECOME_NOBODY}"
        "try:\n"
        "    Store(pathlib.Path(sys.argv[1]), bytes(32))\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    result = _python(program, str(folder / "validator-1.db"))
    assert "cannot lock" in result.stdout, result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    """Whatever append had returned for is there after a kill -9, and the next block fits on it."""
    path = tmp_path / "validator-1.db"
    program = (
        "import sys, pathlib\n"
        "from fedchain_ledger.service.store import NewBlock, NewTransaction, Store\n"
        "store = Store(pathlib.Path(sys.argv[1]), bytes(range(32)))\n"
        "height = store.head_height()\n"
        "while True:\n"
        "    height += 1\n"
        "    item = NewTransaction(b'%08d' % height * 50, b'%032d' % height, None, None)\n"
        "    store.append(NewBlock(height, b'h' * 300, b'c' * 300, None, [item], []))\n"
        "    print(height, flush=True)\n"
    )
    acknowledged = 0
    for run in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                acknowledged = int(line)
                if acknowledged % 50 == 37 + run:
                    os.kill(process.pid, signal.SIGKILL)
                    break
            # What the pipe still holds was acknowledged before the kill, too.
            for line in process.stdout:
                if line.endswith("\n"):
                    acknowledged = int(line)
        stored = read_everything(path)
        assert len(stored) >= acknowledged
        assert [envelopes[0][:8] for _, envelopes, _ in stored] == [
            b"%08d" % height for height in range(1, len(stored) + 1)
        ]
    store = Store(path, CHAIN)
    store.append(numbered_block(store.head_height() + 1))
    store.close()


def _python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
    )
