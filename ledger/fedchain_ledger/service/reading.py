"""Reading a validator's database, and never writing to it.

Blocks come back as the bytes that are stored, unjudged: a flipped bit is the audit's to find and
to name. Only what cannot be read at all, or is missing, is an error here.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Executable, bindparam, create_engine, func, select, text
from sqlalchemy.pool import NullPool

from fedchain_ledger.service.dberrors import damaged, explained
from fedchain_ledger.service.schema import FORMAT, blocks, log_nodes, meta, transactions
from fedchain_proto.blocks import MAX_BLOCK_TRANSACTIONS
from fedchain_proto.envelope import MAX_ENVELOPE_BYTES
from fedchain_proto.errors import FedchainError, UsageError
from fedchain_proto.hashing import DIGEST_SIZE

BUSY_TIMEOUT_S = 2.0
_MAX_INTEGER = 2**63 - 1
# Of what a reader looks at an envelope is the longest; a damaged row must not fill the memory.
_MAX_ROW_BYTES = MAX_ENVELOPE_BYTES + 4096

# Views, triggers and virtual tables have no pages of their own: a "table" that is one of these
# runs its maker's SQL, without end if he likes, in whoever reads it.
_PROGRAMS = text("SELECT count(*) FROM sqlite_master WHERE coalesce(rootpage, 0) = 0")
# Built once: SQLAlchemy caches what it compiled by the statement's identity.
_META = select(meta.c.key, meta.c.value)
_HEAD = select(func.max(blocks.c.height))
_BLOCK = select(blocks.c.header, blocks.c.certificate).where(blocks.c.height == bindparam("height"))
_ENVELOPES = (
    select(transactions.c.envelope)
    .where(transactions.c.height == bindparam("height"))
    .order_by(transactions.c.seq)
    .limit(MAX_BLOCK_TRANSACTIONS + 1)  # one too many is as wrong as all that may follow
)
_STORED = select(transactions.c.seq, transactions.c.height, transactions.c.envelope)
_BY_ID = _STORED.where(transactions.c.tx_id == bindparam("tx_id"))
_BY_ROUND = _STORED.where(
    transactions.c.run == bindparam("run"), transactions.c.round == bindparam("round")
).order_by(transactions.c.seq)
_RUNLESS = _STORED.where(transactions.c.run.is_(None)).order_by(transactions.c.seq)
_RUNS = (
    select(transactions.c.run)
    .where(transactions.c.run.is_not(None), transactions.c.round == 0)
    .order_by(transactions.c.seq)
)
_NODE = select(log_nodes.c.hash).where(
    log_nodes.c.level == bindparam("level"), log_nodes.c.position == bindparam("position")
)


@dataclass(frozen=True, slots=True)
class StoredTransaction:
    """One committed envelope and where it stands.

    Attributes:
        seq: Index in the chain's log, from 0.
        height: Height of its block.
        envelope: The bytes as stored.
    """

    seq: int
    height: int
    envelope: bytes


class ChainReader:
    """One validator's stored chain. Used by one thread; the audit's `ChainSource`."""

    def __init__(self, path: Path, connection: Connection, name: str) -> None:
        """Wrap an open connection; see :func:`open_reader` and `Store`.

        Args:
            path: The database, for messages.
            connection: Opened by the caller; closed by :meth:`close`.
            name: What findings call this copy of the chain.

        Raises:
            FedchainError: This is not a ledger's database, or a damaged one.
        """
        self.name = name
        self.path = path
        self._connection = connection
        self.chain_id = self._read_meta()

    def __enter__(self) -> "ChainReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        self._connection.close()
        self._connection.engine.dispose()

    def head_height(self) -> int:
        """Return the height of the last stored block; 0 if there is none."""
        [[height]] = self._rows(_HEAD, {}, "the last block")
        if height is None:
            return 0
        if not isinstance(height, int) or height < 1:
            raise damaged(self.path, f"a block has the height {height!r}")
        return height

    def block(self, height: int) -> tuple[bytes, list[bytes], bytes]:
        """Return a block as stored: header, envelopes in order, certificate.

        Raises:
            FedchainError: It is not there, or cannot be read.
        """
        header, certificate = self.certified_header(height)
        where = f"block {height}"
        envelopes = self._rows(_ENVELOPES, {"height": height}, where)
        return header, [self._bytes(row[0], where) for row in envelopes], certificate

    def certified_header(self, height: int) -> tuple[bytes, bytes]:
        """Return a block's header and certificate as stored; errors as in :meth:`block`."""
        where = f"block {height}"
        rows = self._rows(_BLOCK, {"height": _bounded(height)}, where)
        if not rows:
            raise damaged(self.path, f"{where} is missing")
        header, certificate = (self._bytes(value, where) for value in rows[0])
        return header, certificate

    def transaction(self, tx_id: bytes) -> StoredTransaction | None:
        """Look a transaction up by its id (32 bytes)."""
        found = self._transactions(_BY_ID, {"tx_id": tx_id})
        return found[0] if found else None

    def round_transactions(self, run: bytes, number: int) -> list[StoredTransaction]:
        """List what stands in the log for one round, in log order.

        Args:
            run: Run id, 32 bytes.
            number: Round from 1; 0 for the run's own opening and closing.
        """
        return self._transactions(_BY_ROUND, {"run": run, "round": _bounded(number)})

    def runless_transactions(self) -> list[StoredTransaction]:
        """Return what belongs to no run (admissions, revocations, evidence), in log order."""
        return self._transactions(_RUNLESS, {})

    def runs(self) -> list[bytes]:
        """List the ids of all runs, in the order in which they opened."""
        found = (self._bytes(row[0], "a run's id") for row in self._rows(_RUNS, {}, "the runs"))
        return list(dict.fromkeys(found))

    def node(self, level: int, position: int) -> bytes:
        """Return the hash of one complete subtree of the log, a `merkle.NodeReader`."""
        where = f"log node {level}/{position}"
        rows = self._rows(_NODE, {"level": level, "position": _bounded(position)}, where)
        if not rows:
            raise damaged(self.path, f"{where} is missing")
        value = self._bytes(rows[0][0], where)
        if len(value) != DIGEST_SIZE:
            raise damaged(self.path, f"{where} has {len(value)} bytes")
        return value

    def _transactions(
        self, statement: Executable, parameters: Mapping[str, object]
    ) -> list[StoredTransaction]:
        found = []
        for seq, height, envelope in self._rows(statement, parameters, "transactions"):
            if not isinstance(seq, int) or not isinstance(height, int):
                raise damaged(self.path, "a transaction's position is not a number")
            found.append(
                StoredTransaction(seq, height, self._bytes(envelope, f"transaction {seq}"))
            )
        return found

    def _rows(
        self, statement: Executable, parameters: Mapping[str, object], where: str
    ) -> Sequence[Any]:
        # A transaction per read: none stays open, so readers never hold a writer's log back.
        with explained(self.path, where), self._connection.begin():
            return self._connection.execute(statement, parameters).all()

    def _bytes(self, value: object, where: str) -> bytes:
        if not isinstance(value, bytes):
            raise damaged(self.path, f"{where} holds a {type(value).__name__}")
        return value

    def _read_meta(self) -> bytes:
        [[programs]] = self._rows(_PROGRAMS, {}, "its tables")
        if programs:
            raise damaged(self.path, "it holds more than plain tables")
        entries = {row[0]: row[1] for row in self._rows(_META, {}, "its description")}
        if entries.get("format") != FORMAT.encode():
            raise FedchainError(
                f"{self.path}: not a fedchain ledger of this version ({FORMAT}): "
                "use the version that made it, or another database"
            )
        chain_id = entries.get("chain_id")
        if not isinstance(chain_id, bytes) or len(chain_id) != DIGEST_SIZE:
            raise damaged(self.path, "it does not say which chain it holds")
        return chain_id


@contextmanager
def open_reader(path: Path) -> Iterator[ChainReader]:
    """Open a database to read it: while its validator runs, or on a read-only copy.

    A validator that stops in order leaves a plain file, which this leaves as it is. A file of a
    validator that runs, or was killed, comes with SQLite's `-wal`, which is read along.

    Raises:
        UsageError: It is not there or may not be read.
        FedchainError: It is damaged, or no ledger's database.
    """
    if not os.path.isfile(path):  # Unlike Path's: false where we may not look.
        raise UsageError(f"{path}: there is no ledger database here, or it is closed to us")
    for suffix in ("-journal", "-wal", "-shm"):
        beside = f"{path}{suffix}"
        if os.path.lexists(beside) and not os.path.isfile(beside):
            # SQLite would wait for ever for who writes into a named pipe.
            raise damaged(path, f"{os.path.basename(beside)} beside it is not a file")
    try:
        reader = _reader(path, path, "mode=ro")
    except UsageError:
        if os.access(path.parent, os.W_OK):
            raise
        # SQLite wants to make the index of a -wal beside it, and may not.
        with _unwritable_reader(path) as reader:
            yield reader
        return
    with reader:
        yield reader


@contextmanager
def _unwritable_reader(path: Path) -> Iterator[ChainReader]:
    log = path.with_name(path.name + "-wal")
    with tempfile.TemporaryDirectory(prefix="fedchain-") as folder:
        if log.is_file() and log.stat().st_size > 0:
            copy = Path(folder) / path.name
            _copy(path, copy)
            _copy(log, copy.with_name(log.name))
            reader = _reader(path, copy, "mode=ro")
        else:
            reader = _reader(path, path, "mode=ro&immutable=1")
        with reader:
            yield reader


def _reader(path: Path, file: Path, mode: str) -> ChainReader:
    uri = f"file:{quote(str(file.absolute()))}?{mode}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_ROW_BYTES)
        return connection

    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=NullPool)
    with explained(path):
        connection = engine.connect()
    try:
        return ChainReader(path, connection, path.stem)
    except BaseException:
        connection.close()
        raise


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise UsageError(f"{source}: cannot be read: {error.strerror}") from None


def _bounded(number: int) -> int:
    """Keep a number from outside within what a database can look up: nothing is stored at -1."""
    return number if 0 <= number <= _MAX_INTEGER else -1
