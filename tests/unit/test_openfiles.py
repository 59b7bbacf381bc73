"""A round of more updates than the usual limit of open files can be averaged and audited."""

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedchain_ledger.offline import audit_folder
from fedchain_proto.artifact import ArtifactFolder
from fedchain_proto.errors import UnavailableError, UsageError
from fedchain_proto.openfiles import ENOUGH, allow_open_files
from tests.unit.chainkit import Consortium

LOW = 256


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """A low soft limit, as many systems set it; put back afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LOW, hard))
    yield LOW, hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def allowed(hard: int) -> int:
    return ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)


def test_more_artifacts_than_the_low_limit_can_be_mapped(
    limits: tuple[int, int], tmp_path: Path
) -> None:
    """Each mapped update holds a file; the limit alone is what stood in the way."""
    folder = ArtifactFolder(tmp_path)
    digest = folder.put({"w": np.zeros(1, np.float32)})
    with pytest.raises(UnavailableError, match="open files"):
        _ = [folder.open(digest) for _ in range(LOW)]
    assert allow_open_files(2 * LOW) == 2 * LOW
    assert len([folder.open(digest) for _ in range(LOW)]) == LOW


def test_limit_is_raised_as_far_as_allowed_and_never_lowered(limits: tuple[int, int]) -> None:
    """To what is wanted or the hard limit; asking for less changes nothing."""
    _, hard = limits
    assert allow_open_files(8) == LOW
    assert allow_open_files() == allowed(hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed(hard), hard)
    assert allow_open_files(LOW) == allowed(hard)


def test_system_that_refuses_is_lived_with(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lower limit that the system does not tell of leaves the old one in force."""

    def refuse(which: int, wanted: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    try:
        assert allow_open_files() == LOW
    finally:
        monkeypatch.undo()


def test_audit_of_a_folder_raises_the_limit(limits: tuple[int, int], tmp_path: Path) -> None:
    """Depth full maps a whole round: the audit does not wait to be told of ulimit."""
    (tmp_path / "genesis.json").write_bytes(Consortium().genesis.raw)
    with pytest.raises(UsageError, match="no ledger here"):
        audit_folder(tmp_path)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == allowed(limits[1])
