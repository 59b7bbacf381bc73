"""A ledger's folder, looked at from outside: its databases, its artifacts, its audit.

Nothing here writes, and nothing needs the validators to run or to stand still.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from fedchain_ledger.core.audit import ChainSource, Progress, audit
from fedchain_ledger.core.report import Depth, Report
from fedchain_ledger.service.reading import ChainReader, open_reader
from fedchain_proto.artifact import ArtifactFolder
from fedchain_proto.errors import FedchainError, UsageError
from fedchain_proto.hashing import short
from fedchain_proto.openfiles import allow_open_files
from fedchain_proto.trust import Genesis

GENESIS = "genesis.json"
ARTIFACTS = "artifacts"
DATABASES = "ledger"


class DamagedSource:
    """A database that cannot be opened: the audit asks it, and gets the reason."""

    def __init__(self, name: str, error: FedchainError) -> None:
        self.name = name
        self._error = error

    def head_height(self) -> int:
        """Raise the error."""
        raise self._error

    def block(self, height: int) -> tuple[bytes, list[bytes], bytes]:
        """Raise the error."""
        raise self._error


def database_paths(folder: Path) -> list[Path]:
    """List a folder's databases: validator-2 before validator-10.

    Raises:
        UsageError: There is no such folder, or no database in it.
    """
    try:
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder")
        found = [path for path in (folder / DATABASES).glob("*.db") if path.is_file()]
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror}") from None
    if not found:
        raise UsageError(
            f"{folder}: no ledger here, {DATABASES}/ holds no database; name the folder of a run"
        )
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", path.name)
    # (0, text) and (length, digits): numbers compare by size, whatever their length.
    return [(len(part.lstrip("0")), part) if part.isdecimal() else (0, part) for part in parts]


def load_genesis(folder: Path, trust: Path | None = None) -> Genesis:
    """Load the trust root: the auditor's own, or the one that lies in the folder.

    Raises:
        UsageError: It is missing or no genesis.
    """
    return Genesis.load(folder / GENESIS if trust is None else trust)


@contextmanager
def open_sources(folder: Path, genesis: Genesis) -> Iterator[list[ChainSource]]:
    """Open every database of a folder for the audit; a damaged one as a `DamagedSource`.

    Raises:
        UsageError: There is none, one may not be read, or all hold another chain.
    """
    with ExitStack() as stack:
        sources: list[ChainSource] = []
        foreign: list[ChainReader] = []
        for path in database_paths(folder):
            try:
                reader = stack.enter_context(open_reader(path))
            except UsageError:
                raise
            except FedchainError as error:
                sources.append(DamagedSource(path.stem, error))
            else:
                sources.append(reader)
                foreign += [reader] if reader.chain_id != genesis.chain_id else []
        if len(foreign) == len(sources):
            raise UsageError(
                f"{folder} holds the chain {short(foreign[0].chain_id)}, the genesis is of "
                f"{short(genesis.chain_id)}: bring the genesis of this chain, or do not trust it"
            )
        yield sources


@contextmanager
def open_best(folder: Path, remark: Callable[[str], None]) -> Iterator[ChainReader]:
    """Open the database that goes furthest.

    Args:
        folder: Of the run.
        remark: Told of each database that cannot be read.

    Raises:
        FedchainError: None can be read.
    """
    with ExitStack() as stack:
        best: tuple[int, ChainReader] | None = None
        problem: FedchainError | None = None
        for path in database_paths(folder):
            try:
                reader = stack.enter_context(open_reader(path))
                height = reader.head_height()
            except FedchainError as error:
                problem = error
                remark(f"skipped: {error}")
            else:
                if best is None or height > best[0]:
                    best = height, reader
        if best is None:
            raise problem or UsageError(f"{folder}: no database can be read")
        yield best[1]


def audit_folder(
    folder: Path,
    *,
    depth: str = "full",
    trust: Path | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Replay a folder's history from its genesis, over every validator's database.

    Args:
        folder: Of the run.
        depth: "chain", or "full" to recompute every round's model from the kept updates.
        trust: The auditor's own genesis; without it the folder's, which proves less.
        on_progress: Called now and then.

    Raises:
        UsageError: Nothing there to audit, another chain, or an unknown depth.
    """
    genesis = load_genesis(folder, trust)
    artifacts = ArtifactFolder(folder / ARTIFACTS)
    allow_open_files()
    with open_sources(folder, genesis) as sources:
        return audit(
            sources,
            genesis,
            artifacts=artifacts.open_unverified,
            depth=cast(Depth, depth),  # an unknown one is refused there
            on_progress=on_progress,
        )
