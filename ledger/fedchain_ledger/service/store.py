"""A validator's durable memory: blocks, log, and what it has signed. One writer, one thread.

A decided block is one transaction, and so is what a vote promises; each is on the disk before
the call returns (WAL, synchronous=FULL). This judges nothing: the chain has, before it gets here.
"""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, bindparam, create_engine, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import NullPool

from fedchain_ledger.core.effects import JournalEntry
from fedchain_ledger.service.dberrors import damaged, explained
from fedchain_ledger.service.filelock import FileLock
from fedchain_ledger.service.reading import BUSY_TIMEOUT_S, ChainReader
from fedchain_ledger.service.schema import (
    FORMAT,
    blocks,
    journal,
    log_nodes,
    meta,
    metadata,
    transactions,
)
from fedchain_proto.errors import FedchainError, UsageError

_INSERT_META = insert(meta)
_INSERT_BLOCK = insert(blocks)
_INSERT_TRANSACTIONS = insert(transactions)
_INSERT_NODES = insert(log_nodes)
_INSERT_JOURNAL = insert(journal)
_REPLACE_CERTIFICATE = (
    update(blocks)
    .where(blocks.c.height == bindparam("decided"))
    .values(certificate=bindparam("replacement"))
)
_PRUNE_JOURNAL = delete(journal).where(journal.c.height <= bindparam("decided"))
_JOURNAL = select(journal.c.height, journal.c.round, journal.c.type, journal.c.data).order_by(
    journal.c.height, journal.c.round, journal.c.type
)
_JOURNAL_DATA = select(journal.c.data).where(
    journal.c.height == bindparam("height"),
    journal.c.round == bindparam("round"),
    journal.c.type == bindparam("type"),
)
_LOG_SIZE = select(func.max(transactions.c.seq))


@dataclass(frozen=True, slots=True)
class NewTransaction:
    """One envelope to store, with what it is looked up by.

    Attributes:
        envelope: The whole envelope, verbatim.
        tx_id: Its transaction id, 32 bytes.
        run: Id of the run that it belongs to (a RunOpened's is its own id), or None.
        round: Its round, 0 if it belongs to the run as a whole, or None.
    """

    envelope: bytes
    tx_id: bytes
    run: bytes | None = None
    round: int | None = None


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A decided block, ready to be stored.

    Attributes:
        height: Its height, one above the stored head.
        header: Encoded header.
        certificate: Encoded commit certificate.
        parent_certificate: The certificate of the block before that this header hashes, if it
            may differ from the stored one, which it then replaces; None to leave that one.
        transactions: In block order.
        nodes: (level, position, hash) of the log's subtrees that this block completes.
    """

    height: int
    header: bytes
    certificate: bytes
    parent_certificate: bytes | None
    transactions: Sequence[NewTransaction]
    nodes: Sequence[tuple[int, int, bytes]]


class Store(ChainReader):
    """One validator's database, open for writing."""

    def __init__(self, path: Path, chain_id: bytes) -> None:
        """Open a validator's database, or make it.

        Args:
            path: The SQLite file; its folder must exist.
            chain_id: The chain that it must hold, 32 bytes.

        Raises:
            UsageError: In use, not writable, or it holds another chain.
            FedchainError: It is damaged.
        """
        if not os.path.isdir(path.parent):  # Unlike Path's: false where we may not look.
            raise UsageError(f"{path.parent}: there is no such folder, or it is closed to us")
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), str(path))
        try:
            connection = _connect(path)
            try:
                with explained(path):
                    _create(connection, chain_id)
                super().__init__(path, connection, path.stem)
                self._open_at_end(chain_id)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            self._lock.release()
            raise

    def _open_at_end(self, chain_id: bytes) -> None:
        if self.chain_id != chain_id:
            raise UsageError(
                f"{self.path} holds the chain {self.chain_id.hex()[:12]}, not "
                f"{chain_id.hex()[:12]}: use that chain's genesis, or another folder"
            )
        # Only now: somebody else's file stays as it is.
        with explained(self.path), self._connection.begin():
            self._connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        self._height = self.head_height()
        [[last]] = self._rows(_LOG_SIZE, {}, "the last transaction")
        if last is not None and not isinstance(last, int):
            raise damaged(self.path, "the last transaction's position is not a number")
        self._log_size = 0 if last is None else last + 1

    @property
    def log_size(self) -> int:
        """Number of transactions stored."""
        return self._log_size

    def append(self, block: NewBlock) -> None:
        """Store a decided block; on the disk, whole, when this returns.

        One transaction: block, certificate, the parent's certificate that its header names,
        envelopes, log nodes; what was signed up to its height is forgotten.

        Raises:
            FedchainError: It does not follow the stored head, repeats a stored transaction, or
                could not be written. Nothing of it is stored then.
        """
        where = f"block {block.height}"
        if block.height != self._height + 1:
            raise FedchainError(f"{self.path}: {where} does not follow block {self._height}")
        with explained(self.path, where), self._connection.begin():
            run = self._connection.execute
            run(
                _INSERT_BLOCK,
                {
                    "height": block.height,
                    "header": block.header,
                    "certificate": block.certificate,
                },
            )
            if block.parent_certificate is not None:
                replaced = {
                    "decided": block.height - 1,
                    "replacement": block.parent_certificate,
                }
                run(_REPLACE_CERTIFICATE, replaced)
            if block.transactions:
                run(_INSERT_TRANSACTIONS, self._transaction_rows(block))
            if block.nodes:
                run(_INSERT_NODES, [_node_row(*node) for node in block.nodes])
            run(_PRUNE_JOURNAL, {"decided": block.height})
        self._height = block.height
        self._log_size += len(block.transactions)

    def _transaction_rows(self, block: NewBlock) -> list[dict[str, object]]:
        return [
            {
                "seq": seq,
                "height": block.height,
                "tx_id": item.tx_id,
                "run": item.run,
                "round": item.round,
                "envelope": item.envelope,
            }
            for seq, item in enumerate(block.transactions, self._log_size)
        ]

    def save_journal(self, entries: Sequence[JournalEntry]) -> None:
        """Remember what is about to be sent; on the disk, all of it, when this returns.

        Raises:
            FedchainError: One of them contradicts what was signed before for its height, round
                and type (equal bytes are fine), or could not be written. None is stored then.
        """
        rows = [_journal_row(entry) for entry in entries]
        with explained(self.path, "the journal"):
            try:
                with self._connection.begin():
                    self._connection.execute(_INSERT_JOURNAL, rows)
            except IntegrityError:
                self._save_journal_again(rows)

    def _save_journal_again(self, rows: Sequence[dict[str, object]]) -> None:
        with self._connection.begin():
            for row in rows:
                stored = self._connection.execute(_JOURNAL_DATA, row).scalar_one_or_none()
                if stored is None:
                    self._connection.execute(_INSERT_JOURNAL, row)
                elif stored != row["data"]:
                    raise FedchainError(
                        f"{self.path}: refuses to sign a second, different message of type "
                        f"{row['type']} for height {row['height']}, round {row['round']}"
                    )

    def journal(self) -> list[JournalEntry]:
        """Return what was signed at heights that are not decided, by height, round and type."""
        entries = []
        for row in self._rows(_JOURNAL, {}, "the journal"):
            height, round_, kind, data = row
            if not all(isinstance(number, int) for number in (height, round_, kind)):
                raise damaged(self.path, "a journal entry's key is not a number")
            entries.append(JournalEntry(height, round_, kind, self._bytes(data, "a journal entry")))
        return entries

    def close(self) -> None:
        """Close the database as a plain file without a `-wal`; a second call does nothing."""
        if self._connection.closed:
            return
        # Refused if somebody reads right now: everything is in the -wal then, durable, and the
        # next one to open the database takes it in.
        with suppress(DBAPIError):
            self._connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
        super().close()
        self._lock.release()


def _connect(path: Path) -> Connection:
    engine = create_engine(
        "sqlite+pysqlite://",
        # IMMEDIATE: a transaction that writes takes the lock when it starts, so that it never
        # fails in the middle.
        creator=lambda: sqlite3.connect(
            str(path), timeout=BUSY_TIMEOUT_S, isolation_level="IMMEDIATE"
        ),
        poolclass=NullPool,
    )
    with explained(path):
        connection = engine.connect()
        try:
            connection.exec_driver_sql("PRAGMA synchronous=FULL")
            connection.rollback()
        except BaseException:
            connection.close()
            raise
    return connection


def _create(connection: Connection, chain_id: bytes) -> None:
    """Make the tables of an empty file, in one transaction; leave any other file as it is."""
    with connection.begin():
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        if connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one() > 0:
            return
        metadata.create_all(connection)
        rows = [
            {"key": "format", "value": FORMAT.encode()},
            {"key": "chain_id", "value": chain_id},
        ]
        connection.execute(_INSERT_META, rows)


def _node_row(level: int, position: int, digest: bytes) -> dict[str, object]:
    return {"level": level, "position": position, "hash": digest}


def _journal_row(entry: JournalEntry) -> dict[str, object]:
    return {
        "height": entry.height,
        "round": entry.round,
        "type": entry.type,
        "data": entry.data,
    }
