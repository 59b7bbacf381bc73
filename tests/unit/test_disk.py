"""A database's own thread: what it opens is closed, whatever became of who waited for it."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from fedchain_ledger.service import disk as disk_module
from fedchain_ledger.service.disk import Disk
from fedchain_ledger.service.store import Store
from fedchain_proto.errors import UnavailableError, UsageError

CHAIN = bytes(32)


def test_opening_that_is_given_up_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a database opens: its thread goes on, and must not keep the lock for ever."""
    path = tmp_path / "validator-1.db"

    def slowly(path: Path, chain_id: bytes) -> Store:
        time.sleep(0.2)
        return Store(path, chain_id)

    monkeypatch.setattr(disk_module, "Store", slowly)

    async def give_up() -> None:
        disk = Disk(path)
        opening = asyncio.create_task(disk.open(CHAIN))
        await asyncio.sleep(0.05)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await disk.close()
        await disk.close()
        with pytest.raises(UnavailableError, match="closed"):
            await disk.call(Store.head_height)

    asyncio.run(give_up())
    for thread in threading.enumerate():
        if thread.name.startswith("disk"):
            thread.join(5.0)
    Store(path, CHAIN).close()


def test_opening_that_fails_can_be_closed(tmp_path: Path) -> None:
    """What was never open closes without a word, and answers nothing."""

    async def fail() -> None:
        disk = Disk(tmp_path / "nowhere" / "validator-1.db")
        with pytest.raises(UsageError):
            await disk.open(CHAIN)
        await disk.close()
        with pytest.raises(UnavailableError):
            await disk.call(Store.head_height)

    asyncio.run(fail())
