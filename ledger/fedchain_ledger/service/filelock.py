"""One process at a time per validator: a lock file that the kernel releases on any death.

Two processes that run one validator would sign twice. The lock is advisory (flock), lives
beside the database, and is removed on release, so that nothing is left lying about.
"""

import fcntl
import os
from pathlib import Path

from fedchain_proto.errors import UsageError


class FileLock:
    """An exclusive lock on a path, held from construction until :meth:`release`."""

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock.

        Args:
            path: The lock file; its folder must exist.
            what: What the lock protects, for the error message.

        Raises:
            UsageError: Somebody else holds it, or the file cannot be made.
        """
        self._path = path
        try:
            self._descriptor = _locked_descriptor(path)
        except BlockingIOError:
            raise UsageError(
                f"{what} is in use by another process: stop that one first, or use another folder"
            ) from None
        except OSError as error:
            raise UsageError(f"cannot lock {what}: {error.strerror} ({path})") from None
        self._held = True

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if not self._held:
            return
        self._held = False
        # Unlinked while it is still held: whoever waits for this inode sees that the path no
        # longer names it, and starts again.
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _locked_descriptor(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except FileNotFoundError:
                pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
