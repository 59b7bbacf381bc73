"""What every database under a validator must do, through the store's public face."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedchain_ledger.core.effects import JournalEntry
from fedchain_ledger.service.reading import StoredTransaction, open_reader
from fedchain_ledger.service.store import NewBlock, NewTransaction, Store
from fedchain_proto import merkle
from fedchain_proto.errors import FedchainError, UsageError
from tests.permissions import BECOME_NOBODY

CHAIN = bytes(range(32))
RUN = b"r" * 32


def transaction(
    name: str, *, run: bytes | None = None, number: int | None = None
) -> NewTransaction:
    return NewTransaction(f"envelope {name}".encode(), name.encode().ljust(32, b"."), run, number)


def block(height: int, *items: NewTransaction, parent: bytes | None = None) -> NewBlock:
    return NewBlock(height, b"header %d" % height, b"certificate %d" % height, parent, items, [])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "validator-1.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path, CHAIN)
    yield store
    store.close()


def reopened(store: Store) -> Store:
    store.close()
    return Store(store.path, CHAIN)


# ---------------------------------------------------------------- blocks


def test_block_comes_back_byte_for_byte(store: Store) -> None:
    """What was stored is what is read, in block order, before and after a restart."""
    store.append(block(1, transaction("b"), transaction("a")))
    store.append(block(2, transaction("c")))
    for _ in range(2):
        assert store.head_height() == 2
        assert store.log_size == 3
        assert store.block(1) == (b"header 1", [b"envelope b", b"envelope a"], b"certificate 1")
        assert store.block(2) == (b"header 2", [b"envelope c"], b"certificate 2")
        store = reopened(store)
    store.close()


def test_empty_store_has_height_zero(store: Store) -> None:
    """Before the first block the head is the genesis, and block 1 is an error, not None."""
    assert (store.head_height(), store.log_size) == (0, 0)
    with pytest.raises(FedchainError, match="block 1 is missing"):
        store.block(1)


@pytest.mark.parametrize("height", [0, 1, 3])
def test_gap_or_second_block_of_a_height_is_refused(store: Store, height: int) -> None:
    """Heights follow one another; nothing that is stored is ever stored over."""
    store.append(block(1, transaction("a")))
    with pytest.raises(FedchainError, match=f"block {height} does not follow block 1"):
        store.append(block(height, transaction("b")))
    assert store.block(1)[1] == [b"envelope a"]


def test_failed_block_leaves_nothing(store: Store) -> None:
    """A block that repeats a transaction is refused whole, journal and certificate included."""
    store.append(block(1, transaction("a")))
    store.save_journal([JournalEntry(2, 0, 2, b"vote")])
    with pytest.raises(FedchainError, match=r"block 2: refuses to store one thing a second time"):
        store.append(block(2, transaction("b"), transaction("a"), parent=b"other"))
    assert store.head_height() == 1
    assert store.block(1) == (b"header 1", [b"envelope a"], b"certificate 1")
    assert store.journal() == [JournalEntry(2, 0, 2, b"vote")]
    store.append(block(2, transaction("b")))
    assert store.block(2)[1] == [b"envelope b"]


def test_next_block_replaces_its_parents_certificate(store: Store) -> None:
    """The stored certificate of h becomes the one that the header of h+1 names; no other does."""
    store.append(block(1))
    store.append(block(2))
    store.append(block(3, parent=b"named by 3"))
    certificates = [store.block(height)[2] for height in (1, 2, 3)]
    assert certificates == [b"certificate 1", b"named by 3", b"certificate 3"]


# ---------------------------------------------------------------- lookups


def test_transaction_is_found_by_id(store: Store) -> None:
    """A committed transaction is found by its id with its place in the log; another is not."""
    store.append(block(1, transaction("a")))
    store.append(block(2, transaction("b"), transaction("c")))
    assert store.transaction(transaction("c").tx_id) == StoredTransaction(2, 2, b"envelope c")
    assert store.transaction(bytes(32)) is None


def test_round_lists_its_transactions_only(store: Store) -> None:
    """One round's statements are found in log order, without those of other rounds and runs."""
    store.append(block(1, transaction("open", run=RUN, number=0), transaction("member")))
    store.append(
        block(
            2,
            transaction("z", run=RUN, number=1),
            transaction("other", run=b"o" * 32, number=1),
            transaction("y", run=RUN, number=1),
            transaction("next", run=RUN, number=2),
        )
    )
    found = store.round_transactions(RUN, 1)
    assert [item.envelope for item in found] == [b"envelope z", b"envelope y"]
    assert [item.envelope for item in store.round_transactions(RUN, 0)] == [b"envelope open"]
    assert store.round_transactions(RUN, 9) == []
    assert store.round_transactions(RUN, 2**64) == []


def test_transactions_outside_runs_are_listed_alone(store: Store) -> None:
    """Admissions and the like are found in log order, without anything of a run."""
    store.append(block(1, transaction("b"), transaction("open", run=RUN, number=0)))
    store.append(block(2, transaction("update", run=RUN, number=1), transaction("a")))
    found = [item.envelope for item in store.runless_transactions()]
    assert found == [b"envelope b", b"envelope a"]
    assert store.runs() == [RUN]


def test_stored_nodes_answer_every_proof(store: Store) -> None:
    """Inclusion paths built from stored nodes verify under the root of the log's frontier."""
    frontier = merkle.Frontier()
    leaves = []
    for height in range(1, 12):
        leaf = merkle.leaf_hash(b"envelope %d" % height)
        leaves.append(leaf)
        nodes = merkle.stored_nodes(frontier, leaf)
        frontier = frontier.append(leaf)
        store.append(NewBlock(height, b"h", b"c", None, [transaction(str(height))], nodes))
    for index, leaf in enumerate(leaves):
        path = merkle.path_from_nodes(store.node, index, frontier.size)
        merkle.verify_path(leaf, path, frontier.root())
    with pytest.raises(FedchainError, match="log node 9/0 is missing"):
        store.node(9, 0)


# ---------------------------------------------------------------- journal


def test_journal_survives_a_restart(store: Store) -> None:
    """What a validator promised is there after a restart, in key order."""
    store.save_journal([JournalEntry(1, 1, 4, b"round change"), JournalEntry(1, 0, 2, b"prepare")])
    store = reopened(store)
    expected = [JournalEntry(1, 0, 2, b"prepare"), JournalEntry(1, 1, 4, b"round change")]
    assert store.journal() == expected
    store.close()


def test_equal_vote_may_be_saved_again(store: Store) -> None:
    """Saving the same bytes again is no contradiction, alone or beside new entries."""
    vote, more = JournalEntry(1, 0, 2, b"prepare"), JournalEntry(1, 0, 3, b"commit")
    store.save_journal([vote])
    store.save_journal([vote])
    store.save_journal([vote, more])
    assert store.journal() == [vote, more]


def test_second_different_vote_is_refused(store: Store) -> None:
    """The database refuses a contradicting message, and everything that was to be saved with it."""
    vote = JournalEntry(5, 3, 2, b"prepare A")
    store.save_journal([vote])
    with pytest.raises(FedchainError, match="second, different message of type 2 for height 5"):
        store.save_journal([JournalEntry(5, 3, 3, b"commit"), JournalEntry(5, 3, 2, b"prepare B")])
    assert store.journal() == [vote]


def test_decided_block_prunes_the_journal_up_to_its_height(store: Store) -> None:
    """Votes of decided heights are forgotten, in the block's transaction; later ones stay."""
    for height in (1, 2, 3):
        store.save_journal([JournalEntry(height, 0, 2, b"vote")])
    store.append(block(1))
    assert [entry.height for entry in store.journal()] == [2, 3]
    store.append(block(2))
    assert [entry.height for entry in store.journal()] == [3]


# ---------------------------------------------------------------- opening


def test_other_chain_is_refused(store: Store) -> None:
    """A database of one chain is never opened for another."""
    store.close()
    with pytest.raises(UsageError, match="holds the chain 000102030405, not ffffffffffff"):
        Store(store.path, b"\xff" * 32)


def test_second_writer_is_refused(store: Store) -> None:
    """Two processes never run one validator; when the first is gone, the next may."""
    program = (
        "import sys, pathlib\n"
        "from fedchain_ledger.service.store import Store\n"
        "from fedchain_proto.errors import UsageError\n"
        "try:\n"
        "    Store(pathlib.Path(sys.argv[1]), bytes(range(32))).close()\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )

    def attempt() -> str:
        return subprocess.run(
            [sys.executable, "-c", program, str(store.path)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    assert "is in use by another process" in attempt()
    with pytest.raises(UsageError, match="is in use by another process"):
        Store(store.path, CHAIN)
    store.close()
    assert attempt() == ""


def test_closing_leaves_one_plain_file(store: Store) -> None:
    """After a stop in order there is the database and nothing else; closing twice is fine."""
    store.append(block(1, transaction("a")))
    store.close()
    store.close()
    assert [child.name for child in store.path.parent.iterdir()] == ["validator-1.db"]


def test_every_commit_reaches_the_disk(store: Store) -> None:
    """SQLite runs with a write-ahead log and syncs it on every commit."""
    connection = store._connection
    assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2


# ---------------------------------------------------------------- readers


def test_reader_sees_blocks_while_the_validator_runs(store: Store) -> None:
    """A reader follows a running validator, and neither hinders nor changes it."""
    store.append(block(1, transaction("a")))
    with open_reader(store.path) as reader:
        assert reader.head_height() == 1
        assert reader.chain_id == CHAIN
        assert reader.name == "validator-1"
        store.append(block(2, transaction("b")))
        assert reader.head_height() == 2
        assert reader.block(2) == store.block(2)


def test_reader_leaves_no_file_behind(store: Store) -> None:
    """Reading a stopped validator's database makes no file beside it and changes no byte."""
    store.append(block(1, transaction("a")))
    store.close()
    before = store.path.read_bytes()
    with open_reader(store.path) as reader:
        assert reader.block(1)[1] == [b"envelope a"]
    assert [child.name for child in store.path.parent.iterdir()] == ["validator-1.db"]
    assert store.path.read_bytes() == before


def test_reader_cannot_write(store: Store) -> None:
    """A reader's connection refuses to write, whatever a bug may try."""
    store.close()
    with (
        open_reader(store.path) as reader,
        pytest.raises(Exception, match="readonly database"),
    ):
        reader._connection.exec_driver_sql("DELETE FROM meta")


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_reader_works_where_it_may_not_write(
    store: Store, public_folder: Path, killed: bool
) -> None:
    """A copy on read-only ground is read, also one of a killed validator with its -wal."""
    store.append(block(1, transaction("a")))
    if not killed:
        store.close()
    folder = public_folder
    for child in store.path.parent.glob("validator-1.db*"):
        if not child.name.endswith("-shm"):
            (folder / child.name).write_bytes(child.read_bytes())
    program = (
        "import sys, pathlib\n"
        "from fedchain_ledger.service.reading import open_reader\n"
        f"{BECOME_NOBODY}"
        "with open_reader(pathlib.Path(sys.argv[1])) as reader:\n"
        "    print(reader.block(1)[1])\n"
    )
    for child in folder.iterdir():
        child.chmod(0o444)
    folder.chmod(0o555)
    before = sorted(child.name for child in folder.iterdir())
    result = subprocess.run(
        [sys.executable, "-c", program, str(folder / "validator-1.db")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.stdout.strip() == "[b'envelope a']", result.stderr
    assert sorted(child.name for child in folder.iterdir()) == before


def test_missing_database_is_a_usage_error(tmp_path: Path) -> None:
    """Asking for a database that is not there is the caller's mistake, and makes no file."""
    with (
        pytest.raises(UsageError, match="there is no ledger database"),
        open_reader(tmp_path / "validator-1.db"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="no such folder"):
        Store(tmp_path / "missing" / "validator-1.db", CHAIN)


def test_foreign_sqlite_file_is_refused(path: Path) -> None:
    """A database of somebody else's is named as such and stays as it is."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE meta (key TEXT, value BLOB)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(FedchainError, match="not a fedchain ledger of this version"):
        Store(path, CHAIN)
    foreign = pytest.raises(FedchainError, match="not a fedchain ledger of this version")
    with foreign, open_reader(path):
        pass
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
