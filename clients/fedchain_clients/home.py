"""The owner's folder: whom it trusts, who it is, and what it has signed.

::

    HOME/genesis.json      the chain's trust root, pinned: got from a person, not from a server
    HOME/name              the participant's name on that chain
    HOME/participant.key   its signing key (mode 0600)
    HOME/journal/          what it signed

The folder stays on the owner's machine. A Flower node finds it by its ``node_config`` entry
``fedchain-home``; an encrypted key is opened with the environment's FEDCHAIN_PASSPHRASE.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from fedchain_clients.journal import Journal
from fedchain_proto.errors import EvidenceError, RuleError, UsageError
from fedchain_proto.flowkeys import NODE_CONFIG_HOME
from fedchain_proto.keys import SigningKey, load_key, save_key
from fedchain_proto.names import check_name
from fedchain_proto.trust import Genesis

PASSPHRASE = "FEDCHAIN_PASSPHRASE"  # noqa: S105 - the variable's name, not a secret
_GENESIS, _NAME, _KEY = "genesis.json", "name", "participant.key"
_MAX_NAME_FILE_BYTES = 1024
_CACHED_HOMES = 64


class OwnerHome:
    """One owner's folder, read and checked.

    Args:
        path: The folder.

    Attributes:
        path: As given.
        genesis: The pinned trust root.
        name: The participant's name.
        key: Its signing key.
        journal: What it signed.

    Raises:
        UsageError: Something is missing, unreadable or wrong there; says what.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UsageError(f"there is no fedchain home at {self.path}")
        self.genesis = Genesis.load(self.path / _GENESIS)
        self.name = _read_name(self.path / _NAME)
        self.key = load_key(self.path / _KEY, _passphrase)
        self.journal = Journal(self.path / "journal")

    @staticmethod
    def create(
        path: str | os.PathLike[str],
        *,
        name: str,
        genesis: bytes,
        key: SigningKey,
        passphrase: str | None,
    ) -> None:
        """Write a new owner's folder.

        Args:
            path: A folder that does not exist yet or is empty.
            name: The participant's name.
            genesis: The genesis file's bytes, pinned as they are.
            key: The participant's key.
            passphrase: Encrypts the key file; None, a choice to be made in so many words, leaves
                it readable to whoever reads the owner's files.

        Raises:
            UsageError: The folder holds something, cannot be written, or an argument is wrong.
        """
        home = Path(path)
        try:
            check_name(name)
            Genesis.parse(genesis)
        except (RuleError, EvidenceError) as error:
            raise UsageError(f"cannot make the owner's folder {home}: {error}") from None
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(home.iterdir()):
                raise UsageError(f"{home} is not empty; an owner's folder is never overwritten")
            (home / _GENESIS).write_bytes(genesis)
            (home / _NAME).write_text(name + "\n", encoding="ascii")
        except OSError as error:
            raise UsageError(f"cannot make the folder {home}: {error.strerror}") from error
        save_key(home / _KEY, key, passphrase, unencrypted=passphrase is None)


def home_of(node_config: Mapping[str, object]) -> OwnerHome:
    """Find the owner's folder that a Flower node is configured with.

    Reading it can cost a tenth of a second (an encrypted key), so it is kept until a file in it
    changes.

    Raises:
        UsageError: The node has no such entry, or the folder is not whole.
    """
    path = node_config.get(NODE_CONFIG_HOME)
    if not isinstance(path, str) or not path:
        raise UsageError(
            f"this node has no {NODE_CONFIG_HOME!r}: name the owner's folder, for a SuperNode"
            f" with --node-config '{NODE_CONFIG_HOME}=\"/path\"'"
        )
    return _cached(path, tuple(_stamp(Path(path) / name) for name in (_GENESIS, _NAME, _KEY)))


@lru_cache(maxsize=_CACHED_HOMES)
def _cached(path: str, stamps: tuple[tuple[int, int], ...]) -> OwnerHome:
    """Read a folder once for each state of its files."""
    return OwnerHome(path)


def _stamp(path: Path) -> tuple[int, int]:
    """Tell one state of a file from another: (inode, time of change in ns); zeros if missing."""
    try:
        stat = path.stat()
    except OSError:
        return (0, 0)
    return (stat.st_ino, stat.st_mtime_ns)


def _read_name(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_NAME_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise UsageError(f"cannot read the participant's name {path}: {error.strerror}") from error
    try:
        return check_name(text.removesuffix("\n"))
    except RuleError as error:
        raise UsageError(f"{path}: {error}") from None


def _passphrase() -> str:
    """Ask the environment; a Flower node has no terminal."""
    try:
        return os.environ[PASSPHRASE]
    except KeyError:
        raise UsageError(
            f"the participant's key is encrypted: set {PASSPHRASE} in the node's environment"
        ) from None
