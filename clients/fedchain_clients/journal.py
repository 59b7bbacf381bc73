"""What an owner has signed, so that it never signs a second update for one round.

One file per (chain, run, round) holds the sealed envelope, byte for byte. It is durable before
the update is sent: an owner that forgot what it had signed, and signed again, would look like a
cheat. `Journal` never replaces or removes an entry.

    JOURNAL/<chain id>/<run id>/<round, 10 digits>.update
"""

import os
import tempfile
from pathlib import Path

from fedchain_proto.envelope import MAX_ENVELOPE_BYTES, Signed, decode
from fedchain_proto.errors import EvidenceError, RuleError, UsageError

_SUFFIX = ".update"


class Journal:
    """An owner's memory of its signed updates.

    Args:
        folder: Made on the first entry, readable by the owner alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def signed(self, chain_id: bytes, run: bytes, number: int) -> Signed | None:
        """Find what was signed for a round, None if nothing was.

        Raises:
            UsageError: The entry is unreadable or damaged; then nothing must be signed.
        """
        path = self._path(chain_id, run, number)
        try:
            with path.open("rb") as file:
                return decode(file.read(MAX_ENVELOPE_BYTES + 1))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"cannot read the journal entry {path}: {error.strerror}") from error
        except EvidenceError as error:
            raise UsageError(
                f"the journal entry {path} is damaged ({error}); restore it from a backup: without"
                " it this owner cannot tell what it has signed"
            ) from error

    def latest_round(self, chain_id: bytes, run: bytes) -> int:
        """Highest round of a run that something was signed for, 0 if there is none.

        Raises:
            UsageError: The journal cannot be read; then nothing must be signed.
        """
        folder = self._path(chain_id, run, 0).parent
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise UsageError(f"cannot read the journal {folder}: {error.strerror}") from error
        numbers = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def record(self, chain_id: bytes, run: bytes, number: int, envelope: bytes) -> None:
        """Keep an envelope, again if need be; on disk, name included, when this returns.

        Raises:
            RuleError: Another process has just signed something else for this round.
            UsageError: The folder cannot be written.
        """
        path = self._path(chain_id, run, number)
        try:
            _make_folder(path.parent)
            if not _write_new(path, envelope):
                before = self.signed(chain_id, run, number)
                if before is None or before.raw != envelope:
                    raise RuleError(
                        f"round {number} has been signed already, by another process of this"
                        " owner, for other arrays",
                        code="conflict",
                        claim="C11",
                    )
                _fsync(path.parent)  # whoever wrote it may not have come to this
        except OSError as error:
            raise UsageError(f"cannot write the journal {path}: {error.strerror}") from error

    def _path(self, chain_id: bytes, run: bytes, number: int) -> Path:
        return self._folder / chain_id.hex() / run.hex() / f"{number:010d}{_SUFFIX}"


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents; each name in its parent survives a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _fsync(folder.parent)


def _write_new(path: Path, content: bytes) -> bool:
    """Write a file whole and durably; False, and nothing done, if the name is taken.

    A link, not a rename: of two writers one wins, and the loser learns it.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    finally:
        os.unlink(temporary)
    _fsync(path.parent)
    return True


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
