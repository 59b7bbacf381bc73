"""RFC 9162 Merkle trees over SHA-256: roots, inclusion paths, consistency proofs.

The one tree of fedchain: a block's transactions, the chain's log, a tensor's chunks and a model's
tensors. Leaf = H(0x00 || data), node = H(0x01 || left || right), so that neither passes for the
other. Pure: whoever stores nodes hands in a reader of them.
Source: RFC 9162 section 2.1. Golden vectors: tests/vectors/numbers.json.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fedchain_proto.errors import EvidenceError
from fedchain_proto.hashing import DIGEST_SIZE, sha256

EMPTY_ROOT = sha256(b"")
_LEAF = b"\x00"
_NODE = b"\x01"

# (level, index) -> hash of the complete subtree of 2**level leaves that starts at leaf
# index * 2**level.
NodeReader = Callable[[int, int], bytes]


def leaf_hash(data: bytes | bytearray | memoryview) -> bytes:
    """Hash one entry; 32 bytes."""
    return sha256(_LEAF, data)


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into their parent; 32 bytes."""
    return sha256(_NODE, left, right)


@dataclass(frozen=True, slots=True)
class Frontier:
    """A growing tree of which only O(log n) hashes are kept. Immutable, so a fork is free.

    Attributes:
        size: Number of leaves.
        peaks: Roots of the complete subtrees, leftmost (largest) first: one per set bit of size.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> "Frontier":
        """Return the tree with one more leaf hash at its right end."""
        finished = stored_nodes(self, leaf)
        kept = len(self.peaks) - (len(finished) - 1)
        return Frontier(self.size + 1, (*self.peaks[:kept], finished[-1][2]))

    def root(self) -> bytes:
        """Return the root of the leaves so far."""
        return _fold(self.peaks)


def stored_nodes(frontier: Frontier, leaf: bytes) -> list[tuple[int, int, bytes]]:
    """List the complete subtrees that appending `leaf` finishes, the leaf itself first.

    Returns:
        (level, index, hash) triples, as `NodeReader` names them; whoever stores them all can
        answer every proof about the tree with O(log n) reads.
    """
    nodes = [(0, frontier.size, leaf)]
    peaks = list(frontier.peaks)
    level, index = 0, frontier.size
    while index & 1:
        leaf = node_hash(peaks.pop(), leaf)
        level, index = level + 1, index >> 1
        nodes.append((level, index, leaf))
    return nodes


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the tree's root; SHA-256 of nothing for no leaves."""
    level = list(leaf_hashes)
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        # An odd one out rises unchanged: the same tree as the RFC's split at the largest power
        # of two, without its recursion.
        pairs = zip(level[::2], level[1::2], strict=False)
        odd = level[-1:] if len(level) & 1 else []
        level = [node_hash(left, right) for left, right in pairs] + odd
    return level[0]


@dataclass(frozen=True, slots=True)
class Path:
    """Inclusion path of one leaf, from the leaf's sibling up (RFC 9162 section 2.1.3)."""

    leaf_index: int
    tree_size: int
    hashes: tuple[bytes, ...]


def path(leaf_hashes: Sequence[bytes], index: int) -> Path:
    """Build the inclusion path of leaf `index` (0 <= index < len(leaf_hashes))."""
    return path_from_nodes(_reader(leaf_hashes), index, len(leaf_hashes))


def path_from_nodes(read: NodeReader, index: int, size: int) -> Path:
    """Build leaf `index`'s path in the tree of the first `size` leaves from stored nodes."""
    if not 0 <= index < size:
        raise IndexError(f"leaf {index} of a tree of {size}")
    hashes: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            hashes.append(_range_root(read, middle, end))
            end = middle
        else:
            hashes.append(_range_root(read, start, middle))
            start = middle
    return Path(index, size, tuple(reversed(hashes)))


def root_from_path(leaf: bytes, proof: Path) -> bytes:
    """Return the only root under which `proof` can place the leaf hash `leaf`.

    Raises:
        EvidenceError: The path cannot belong to a tree of that size at that index.
    """
    if not 0 <= proof.leaf_index < proof.tree_size:
        raise EvidenceError(
            f"inclusion path: leaf {proof.leaf_index} is outside a tree of {proof.tree_size}"
        )
    _check_sizes(leaf, *proof.hashes)
    node, last, result = proof.leaf_index, proof.tree_size - 1, leaf
    for sibling in proof.hashes:  # RFC 9162 section 2.1.3.2, step 4
        if last == 0:
            raise EvidenceError("inclusion path: longer than the tree is high")
        if node & 1 or node == last:
            result = node_hash(sibling, result)
            node, last = _to_right_child(node, last)
        else:
            result = node_hash(result, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise EvidenceError("inclusion path: shorter than the tree is high")
    return result


def verify_path(leaf: bytes, proof: Path, root: bytes) -> None:
    """Check that `leaf` (a leaf hash) stands at `proof.leaf_index` under `root`.

    Raises:
        EvidenceError: It does not.
    """
    if root_from_path(leaf, proof) != root:
        raise EvidenceError("inclusion path: leads to another root")


def consistency(leaf_hashes: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """Prove that the first `old_size` leaves are a prefix of `leaf_hashes`."""
    return consistency_from_nodes(_reader(leaf_hashes), old_size, len(leaf_hashes))


def consistency_from_nodes(read: NodeReader, old_size: int, new_size: int) -> tuple[bytes, ...]:
    """Build the consistency proof between two sizes of one tree from stored nodes.

    Empty when old_size is 0 or equals new_size: there is nothing to prove.
    Source: RFC 9162 section 2.1.4.1 (SUBPROOF, without its recursion).
    """
    if not 0 <= old_size <= new_size:
        raise IndexError(f"a tree of {old_size} leaves is no prefix of one of {new_size}")
    if old_size in (0, new_size):
        return ()
    hashes: list[bytes] = []
    start, end, whole = 0, new_size, True
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            hashes.append(_range_root(read, middle, end))
            end = middle
        else:
            hashes.append(_range_root(read, start, middle))
            start, whole = middle, False
    if not whole:  # else it is the old root itself, which the verifier has
        hashes.append(_range_root(read, start, end))
    return tuple(reversed(hashes))


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, hashes: Sequence[bytes]
) -> None:
    """Check that the tree under `new_root` begins with all leaves of that under `old_root`.

    Raises:
        EvidenceError: It does not, or the proof is not one for these sizes.
    """
    _check_sizes(old_root, new_root, *hashes)
    if not 0 <= old_size <= new_size:
        raise EvidenceError(f"consistency: {old_size} leaves cannot begin a tree of {new_size}")
    if old_size in (0, new_size):
        expected = EMPTY_ROOT if old_size == 0 else new_root
        if hashes or old_root != expected or (new_size == 0 and new_root != EMPTY_ROOT):
            raise EvidenceError("consistency: trees of one size, or of none, differ")
        return
    old, new = _roots_from_consistency(old_size, old_root, new_size, hashes)
    if old != old_root or new != new_root:
        raise EvidenceError("consistency: the proof leads to other roots")


def _roots_from_consistency(
    old_size: int, old_root: bytes, new_size: int, hashes: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """RFC 9162 section 2.1.4.2, steps 1 to 7, for 0 < old_size < new_size."""
    nodes = iter(hashes if old_size & (old_size - 1) else (old_root, *hashes))
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = next(nodes, None)
    if first is None:
        raise EvidenceError("consistency: empty proof")
    old = new = first
    for sibling in nodes:
        if last == 0:
            raise EvidenceError("consistency: longer than the tree is high")
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            node, last = _to_right_child(node, last)
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise EvidenceError("consistency: shorter than the tree is high")
    return old, new


def _to_right_child(node: int, last: int) -> tuple[int, int]:
    """Climb past the levels at which a node on the right edge has no sibling."""
    while node and not node & 1:
        node, last = node >> 1, last >> 1
    return node, last


def _check_sizes(*hashes: bytes) -> None:
    if any(len(digest) != DIGEST_SIZE for digest in hashes):
        raise EvidenceError(f"Merkle proof: a hash is not {DIGEST_SIZE} bytes long")


def _split(size: int) -> int:
    """Largest power of two below `size` (size > 1)."""
    return 1 << ((size - 1).bit_length() - 1)


def _range_root(read: NodeReader, start: int, end: int) -> bytes:
    """Root of the leaves [start, end) of which `start` is a multiple of the first peak's size."""
    return _fold([read(level, index) for level, index in _peaks(start, end)])


def _peaks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Name the complete subtrees that make up the leaves [start, end), leftmost first."""
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _fold(peaks: Sequence[bytes]) -> bytes:
    """Join the roots of complete subtrees, leftmost first, into the root of all."""
    if not peaks:
        return EMPTY_ROOT
    result = peaks[-1]
    for peak in reversed(peaks[:-1]):
        result = node_hash(peak, result)
    return result


def _reader(leaf_hashes: Sequence[bytes]) -> NodeReader:
    """Read nodes out of a list of leaves; one proof hashes each leaf at most once."""

    def read(level: int, index: int) -> bytes:
        return root(leaf_hashes[index << level : (index + 1) << level])

    return read
