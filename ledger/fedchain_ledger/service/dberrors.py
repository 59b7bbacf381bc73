"""What a database's error means, in one line that says what to do. Nothing else.

The names are SQLite's own result codes (https://www.sqlite.org/rescode.html).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from fedchain_proto.errors import FedchainError, UsageError

_DAMAGED = "restore it from a backup, or compare with another validator's database"
_ADVICE: dict[str, tuple[type[FedchainError], str]] = {
    "SQLITE_BUSY": (UsageError, "is in use by another process: wait, or stop that one first"),
    "SQLITE_LOCKED": (UsageError, "is in use by another process: wait, or stop that one first"),
    "SQLITE_CANTOPEN": (UsageError, "cannot be opened: check that it exists and who may read it"),
    "SQLITE_PERM": (UsageError, "cannot be opened: check who may read and write it"),
    "SQLITE_READONLY": (UsageError, "cannot be written: check who may write it and its folder"),
    "SQLITE_FULL": (FedchainError, "cannot grow, the disk is full: free space and start again"),
    "SQLITE_IOERR": (FedchainError, "cannot be read or written: the disk reports an error"),
    "SQLITE_CORRUPT": (FedchainError, f"is damaged: {_DAMAGED}"),
    "SQLITE_CONSTRAINT": (FedchainError, "refuses to store one thing a second time"),
    "SQLITE_NOTADB": (FedchainError, f"is damaged, or not a database at all: {_DAMAGED}"),
}


@contextmanager
def explained(path: Path, where: str = "") -> Iterator[None]:
    """Turn a database's error into one of ours.

    Args:
        path: The database, named in the message.
        where: What was being looked at ("block 7"), if known.

    Raises:
        UsageError: The file is in use, missing, or may not be opened or written.
        FedchainError: It is damaged, or the disk failed.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error, UnicodeDecodeError) as error:
        # Python decodes SQLite's own message and trips over damaged bytes that it quotes.
        raise explain(path, error, where) from error


def explain(path: Path, error: Exception, where: str = "") -> FedchainError:
    """Say what `error` means for the database at `path`."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    name = str(getattr(cause, "sqlite_errorname", ""))
    # Extended codes say more than we need: SQLITE_IOERR_READ is an SQLITE_IOERR.
    primary = "_".join(name.split("_")[:2])
    kind, advice = _ADVICE.get(primary, (FedchainError, ""))
    place = f"{path}, {where}" if where else str(path)
    detail = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    if not advice:
        # An unreadable text, a missing table, a value of another type: nothing that we write.
        return FedchainError(f"{place}: is damaged ({detail}): {_DAMAGED}")
    return kind(f"{place}: {advice} ({detail})")


def damaged(path: Path, what: str) -> FedchainError:
    """Build the error for a database that opens, but does not hold what it must."""
    return FedchainError(f"{path}: {what}: the database is damaged, {_DAMAGED}")
