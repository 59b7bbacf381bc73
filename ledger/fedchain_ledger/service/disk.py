"""A store in a thread of its own: a slow disk holds up its validator, never the event loop.

One thread opens, uses and closes the database, one call at a time, in the order of the calls.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from fedchain_ledger.service.store import Store
from fedchain_proto.errors import UnavailableError

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """One validator's database, for use from an event loop."""

    def __init__(self, path: Path) -> None:
        """Name the database; nothing is opened yet."""
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"disk-{path.stem}")
        self._store: Store | None = None
        self._closed = False

    async def open(self, chain_id: bytes) -> None:
        """Open the database; errors as in `Store`."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._open, chain_id)

    def _open(self, chain_id: bytes) -> None:
        # Kept by the thread itself: whoever waits for it may have been cancelled.
        self._store = Store(self.path, chain_id)

    async def call(
        self, function: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function on the store, in the store's thread.

        Raises:
            UnavailableError: The database is closed.
        """
        store = self._store
        if store is None or self._closed:
            raise UnavailableError(f"{self.path.stem}: the database is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(store, *args, **kwargs))

    async def close(self) -> None:
        """Close the database, after the calls that are under way; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)  # after what it has been given
        await closing

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
