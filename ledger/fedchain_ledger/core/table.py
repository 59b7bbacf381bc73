"""A keyed table with a Merkle root over its content, cheap to fork.

The chain's state is three of these. The root depends on the entries alone, never on the order in
which they came, so that whoever has the same entries has the same root.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from fedchain_proto import merkle

K = TypeVar("K", str, bytes)
V = TypeVar("V")


class Table(Mapping[K, V], Generic[K, V]):
    """Entries by key; values are immutable and replaced whole.

    Args:
        encode: Canonical bytes of one entry, key included. Distinct entries, distinct bytes.
    """

    __slots__ = ("_encode", "_entries", "_leaves", "_root", "_shared", "_stale")

    def __init__(self, encode: Callable[[K, V], bytes]) -> None:
        self._encode: Callable[[K, V], bytes] = encode
        self._entries: dict[K, V] = {}
        self._leaves: dict[K, bytes] = {}
        self._stale: set[K] = set()
        self._root: bytes | None = None
        self._shared = False

    def __getitem__(self, key: K) -> V:
        return self._entries[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V) -> None:
        """Add or replace one entry."""
        if self._shared:
            self._entries, self._leaves = self._entries.copy(), self._leaves.copy()
            self._shared = False
        self._entries[key] = value
        self._stale.add(key)
        self._root = None

    def fork(self) -> "Table[K, V]":
        """Return an independent table of equal content; nothing is copied until one is written."""
        self.root()  # both sides then start from leaves that are all up to date
        self._shared = True
        other: Table[K, V] = Table(self._encode)
        other._entries, other._leaves = self._entries, self._leaves
        other._root, other._shared = self._root, True
        return other

    def root(self) -> bytes:
        """Return the RFC 9162 root over the encoded entries, ascending by key; 32 bytes."""
        if self._root is None:
            for key in self._stale:
                self._leaves[key] = merkle.leaf_hash(self._encode(key, self._entries[key]))
            self._stale.clear()
            self._root = merkle.root([self._leaves[key] for key in sorted(self._leaves)])
        return self._root
