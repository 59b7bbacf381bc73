"""What a validator's database looks like; tables only, no reading and no writing.

Blobs are the bytes that travelled, verbatim. Everything else in a row is derived from them, so
that it can be looked up by: the audit reads the blobs and recomputes the rest.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

FORMAT = "fedchain-ledger/1"
"""Value of meta["format"]; another value is another layout, and is refused by name."""

metadata = MetaData()

# Keys: "format" (text of FORMAT) and "chain_id" (32 bytes).
meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    sqlite_strict=True,
)

blocks = Table(
    "blocks",
    metadata,
    # INTEGER, not BIGINT: only that spelling is SQLite's own row id, which saves an index.
    Column("height", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("header", LargeBinary, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    sqlite_strict=True,
)

transactions = Table(
    "transactions",
    metadata,
    # Index in the chain's log, from 0.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("height", BigInteger().with_variant(Integer, "sqlite"), nullable=False, index=True),
    Column("tx_id", LargeBinary, nullable=False, unique=True),
    # The statement's run (a RunOpened's is its own id) and round (0 outside rounds), if it has one.
    Column("run", LargeBinary, nullable=True),
    Column("round", BigInteger().with_variant(Integer, "sqlite"), nullable=True),
    Column("envelope", LargeBinary, nullable=False),
    sqlite_strict=True,
)
# Rows outside runs are looked up by it, too: run is NULL.
Index("ix_transactions_run_round", transactions.c.run, transactions.c.round)

# Hash of each complete subtree of 2**level leaves of the log's Merkle tree: proofs in O(log n).
log_nodes = Table(
    "log_nodes",
    metadata,
    Column("level", Integer, primary_key=True),
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("hash", LargeBinary, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

# What this validator has signed at the height that is not decided yet. The primary key is the
# promise: a second, different message for one (height, round, type) cannot be stored, and what
# is not stored is not sent.
journal = Table(
    "journal",
    metadata,
    Column("height", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("round", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("type", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
