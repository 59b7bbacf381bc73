"""One folder, one run: where things lie, who holds the folder, and what is never overwritten.

::

    DIR/genesis.json                 the trust root; what an auditor should get on another way
    DIR/keys/*.key                   admission, aggregator, validator-1 ... (mode 0600)
    DIR/participants/NAME/           one data owner: key, pinned genesis, journal
    DIR/ledger/validator-N.db        one database per validator
    DIR/artifacts/                   models and updates, named by digest
    DIR/run.json                     which run, and how it stands (a view; the ledger decides)
"""

import errno
import fcntl
import json
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fedchain_proto.errors import UsageError

# All that this program puts into a work folder; what else lies there is somebody else's.
_NOTE, _NEW_NOTE = "run.json", ".run.json.new"
_OURS = ("genesis.json", "keys", "participants", "ledger", "artifacts", _NOTE, _NEW_NOTE, ".lock")
_LOG = logging.getLogger("fedchain")
_HINT = "choose a new folder, or remove this one if you no longer need its history"


class Workdir:
    """A work folder held by this process until `release`.

    Args:
        path: A folder that does not exist yet or is empty.

    Raises:
        UsageError: The folder is in use, holds a run, holds something else, or cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._lock: int | None = None
        check_free(self.path)
        self._made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise UsageError(f"cannot make the work folder {self.path}: {_why(error)}") from error

    @property
    def genesis(self) -> Path:
        """The genesis file."""
        return self.path / "genesis.json"

    @property
    def ledger(self) -> Path:
        """The folder of the validators' databases."""
        return self.path / "ledger"

    @property
    def artifacts(self) -> Path:
        """The content-addressed store."""
        return self.path / "artifacts"

    def key(self, name: str) -> Path:
        """The key file of an operator's role or validator."""
        return self.path / "keys" / f"{name}.key"

    def owner(self, participant: str) -> Path:
        """The folder of one data owner."""
        return self.path / "participants" / participant

    def write_status(self, status: str, **facts: Any) -> None:
        """Note how the run stands; atomic, so that a reader never sees half of it.

        A note that cannot be written is logged: it decides nothing, and must not hide why a run
        ended.
        """
        text = json.dumps({"format": "fedchain-run/1", "status": status, **facts}, indent=2)
        temporary = self.path / _NEW_NOTE
        try:
            temporary.write_text(text + "\n")
            temporary.replace(self.path / _NOTE)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            _LOG.warning("%s has no note that the run is %s: %s", self.path, status, _why(error))

    def release(self) -> None:
        """Let go of the folder; may be called twice."""
        if self._lock is not None:
            os.close(self._lock)  # Closing drops the lock, as the process's death would.
            self._lock = None

    def discard(self) -> None:
        """Undo what came to nothing: no half-written folder stays, and no file of others goes."""
        for name in _OURS:
            child = self.path / name
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink(missing_ok=True)
        self.release()
        if self._made:
            with suppress(OSError):  # it holds something that is not ours
                self.path.rmdir()

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _acquire(self) -> None:
        """Take the folder, then look again: two processes may have found it empty at once."""
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            check_free(self.path, holding=True)
        except OSError as error:
            self.release()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise UsageError(
                f"{self.path} is in use by another process; choose another folder"
            ) from error
        except UsageError:
            self.release()
            raise


def check_free(path: Path, *, holding: bool = False) -> None:
    """Refuse a folder that holds anything.

    Args:
        path: The folder asked for; nothing is written.
        holding: This process holds the folder's lock (else a lock held means "in use").

    Raises:
        UsageError: With what lies there and what to do.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{path} is a file, not a folder; choose another name")
    try:
        names = {child.name for child in path.iterdir()}
    except OSError as error:
        raise UsageError(f"cannot look into {path}: {_why(error)}") from error
    if not holding and ".lock" in names and _locked(path / ".lock"):
        raise UsageError(f"{path} is in use by another process; choose another folder")
    if "genesis.json" in names or _NOTE in names:
        raise UsageError(f"{path} already holds {_kind_of_run(path)}; {_HINT}")
    if names - {".lock"}:
        raise UsageError(f"{path} is not empty; {_HINT}")


def _kind_of_run(path: Path) -> str:
    """Say in words how the run in a folder ended, as far as its note tells."""
    try:
        status = json.loads((path / _NOTE).read_text()).get("status")
    except (OSError, ValueError, AttributeError, RecursionError):
        status = None
    return {"completed": "a finished run", "aborted": "an aborted run"}.get(
        str(status), "an interrupted run"
    )


def _locked(lock: Path) -> bool:
    """Tell whether another process holds a folder's lock."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _why(error: OSError) -> str:
    """The system's reason, without Python's prefix."""
    return error.strerror or str(error)
