"""Merkle trees: what an independent RFC 6962 implementation computes, and nothing that was bent."""

from collections.abc import Sequence
from dataclasses import replace

import pymerkle  # type: ignore[import-untyped]  # ships no types
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedchain_proto import merkle
from fedchain_proto.errors import EvidenceError
from fedchain_proto.merkle import Frontier, NodeReader

ENTRIES = [bytes([i]) * (i % 5) for i in range(80)]
LEAVES = [merkle.leaf_hash(entry) for entry in ENTRIES]
ROOTS = [merkle.root(LEAVES[:n]) for n in range(len(LEAVES) + 1)]
SIZES = range(1, 40)


def oracle(size: int) -> pymerkle.InmemoryTree:
    """An independent tree over the same entries: SHA-256, prefixes 0x00 and 0x01."""
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in ENTRIES[:size]:
        tree.append_entry(entry)
    return tree


def store_of(leaves: Sequence[bytes]) -> NodeReader:
    """A reader of what `stored_nodes` said to keep, and of nothing else."""
    nodes: dict[tuple[int, int], bytes] = {}
    frontier = Frontier()
    for leaf in leaves:
        for level, index, digest in merkle.stored_nodes(frontier, leaf):
            assert (level, index) not in nodes, "a complete subtree never changes"
            nodes[level, index] = digest
        frontier = frontier.append(leaf)
    return lambda level, index: nodes[level, index]


def flip(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    bent = bytearray(data)
    bent[bit // 8 % len(bent)] ^= 1 << bit % 8
    return bytes(bent)


def test_roots_match_independent_implementation() -> None:
    """Ours and pymerkle's roots agree for every size; the empty tree is SHA-256 of nothing."""
    tree = oracle(len(ENTRIES))
    for size in range(len(ENTRIES) + 1):
        assert ROOTS[size] == tree.get_root(size)


def test_frontier_grows_to_the_same_roots() -> None:
    """Appending one leaf at a time gives the root over all of them, with log n hashes kept."""
    frontier = Frontier()
    for size, leaf in enumerate(LEAVES, 1):
        frontier = frontier.append(leaf)
        assert (frontier.size, frontier.root()) == (size, ROOTS[size])
        assert len(frontier.peaks) == size.bit_count()


def test_frontier_is_immutable() -> None:
    """Two continuations of one frontier do not see each other."""
    trunk = Frontier().append(LEAVES[0]).append(LEAVES[1]).append(LEAVES[2])
    one, two = trunk.append(LEAVES[3]), trunk.append(LEAVES[4])
    assert one.root() == ROOTS[4] != two.root()
    assert trunk.root() == ROOTS[3]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 31, 33])
def test_paths_match_independent_implementation(size: int) -> None:
    """Our inclusion paths are pymerkle's, and pymerkle accepts their roots."""
    tree = oracle(size)
    for index in range(size):
        proof = tree.prove_inclusion(index + 1, size)
        ours = merkle.path(LEAVES[:size], index)
        assert list(ours.hashes) == proof.path[1:]
        merkle.verify_path(LEAVES[index], ours, tree.get_root(size))


def test_paths_and_consistency_hold_for_every_size() -> None:
    """Every leaf of every small tree has a path, every pair of sizes a proof, from stored nodes
    as from leaves."""
    read = store_of(LEAVES)
    for size in SIZES:
        for index in range(size):
            proof = merkle.path_from_nodes(read, index, size)
            assert proof == merkle.path(LEAVES[:size], index)
            merkle.verify_path(LEAVES[index], proof, ROOTS[size])
        for old in range(size + 1):
            hashes = merkle.consistency_from_nodes(read, old, size)
            assert hashes == merkle.consistency(LEAVES[:size], old)
            merkle.verify_consistency(old, ROOTS[old], size, ROOTS[size], hashes)


def test_consistency_proofs_are_the_rfcs() -> None:
    """The four examples of RFC 9162 section 2.1.5, node by node."""
    d, pair = LEAVES[:7], merkle.node_hash
    g, h, i = pair(d[0], d[1]), pair(d[2], d[3]), pair(d[4], d[5])
    k, left = pair(g, h), pair(i, d[6])
    assert merkle.consistency(d, 3) == (d[2], d[3], g, left)
    assert merkle.consistency(d, 4) == (left,)
    assert merkle.consistency(d, 6) == (i, d[6], k)
    assert merkle.path(d, 0).hashes == (d[1], h, left)
    assert merkle.path(d, 6).hashes == (i, k)


def test_proofs_read_logarithmically() -> None:
    """A proof in a log of a million lines reads at most two hashes a level."""
    reads = 0

    def read(level: int, index: int) -> bytes:
        nonlocal reads
        reads += 1
        return merkle.leaf_hash(b"%d %d" % (level, index))

    merkle.path_from_nodes(read, 700_001, 999_999)
    assert reads <= 40
    reads = 0
    merkle.consistency_from_nodes(read, 700_001, 999_999)
    assert reads <= 40


@given(st.integers(2, 80), st.data())
def test_bent_path_is_refused(size: int, data: st.DataObject) -> None:
    """A flipped bit in leaf, root or path, another index or size, a hash more or less: refused."""
    index = data.draw(st.integers(0, size - 1))
    proof, root = merkle.path(LEAVES[:size], index), ROOTS[size]
    bit = data.draw(st.integers(0, 255))
    hop = data.draw(st.integers(0, len(proof.hashes) - 1))
    bent = list(proof.hashes)
    bent[hop] = flip(bent[hop], bit)
    other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index))
    for leaf, path, top in [
        (flip(LEAVES[index], bit), proof, root),
        (LEAVES[index], proof, flip(root, bit)),
        (LEAVES[index], replace(proof, hashes=tuple(bent)), root),
        (LEAVES[index], replace(proof, leaf_index=other), root),
        (LEAVES[index], replace(proof, hashes=proof.hashes[:-1]), root),
        (LEAVES[index], replace(proof, hashes=(*proof.hashes, LEAVES[0])), root),
        (LEAVES[index], replace(proof, hashes=(*proof.hashes[:-1], b"short")), root),
        (LEAVES[index], replace(proof, leaf_index=size), root),
        (LEAVES[index], replace(proof, leaf_index=-1), root),
        (LEAVES[index], replace(proof, tree_size=index), root),
    ]:
        with pytest.raises(EvidenceError):
            merkle.verify_path(leaf, path, top)


@given(st.integers(1, 80), st.integers(1, 80), st.data())
def test_path_of_another_size_is_refused_unless_it_is_the_same_path(
    size: int, claimed: int, data: st.DataObject
) -> None:
    """A path says nothing about a tree whose shape above the leaf differs."""
    index = data.draw(st.integers(0, min(size, claimed) - 1))
    honest = merkle.path(LEAVES[:size], index)
    assume(len(merkle.path(LEAVES[:claimed], index).hashes) != len(honest.hashes))
    with pytest.raises(EvidenceError):
        merkle.verify_path(LEAVES[index], replace(honest, tree_size=claimed), ROOTS[size])


@given(st.integers(2, 80), st.data())
def test_bent_consistency_is_refused(new: int, data: st.DataObject) -> None:
    """A flipped bit in either root or a hash, other sizes, a hash more or less: refused."""
    old = data.draw(st.integers(1, new - 1))
    hashes = merkle.consistency(LEAVES[:new], old)
    bit, hop = data.draw(st.integers(0, 255)), data.draw(st.integers(0, len(hashes) - 1))
    bent = list(hashes)
    bent[hop] = flip(bent[hop], bit)
    for args in [
        (old, flip(ROOTS[old], bit), new, ROOTS[new], hashes),
        (old, ROOTS[old], new, flip(ROOTS[new], bit), hashes),
        (old, ROOTS[old], new, ROOTS[new], bent),
        (old, ROOTS[old], new, ROOTS[new], hashes[:-1]),
        (old, ROOTS[old], new, ROOTS[new], (*hashes, LEAVES[0])),
        (old, ROOTS[old], new, ROOTS[new], (*hashes[:-1], b"short")),
        (old, ROOTS[old], old - 1, ROOTS[new], hashes),
        (-1, ROOTS[old], new, ROOTS[new], hashes),
        (new, ROOTS[old], new, ROOTS[new], hashes),
        (0, ROOTS[old], new, ROOTS[new], hashes),
    ]:
        with pytest.raises(EvidenceError):
            merkle.verify_consistency(*args)


def test_consistency_of_equal_and_empty_trees() -> None:
    """Nothing to prove needs no hashes, but the roots must then be what they say."""
    merkle.verify_consistency(5, ROOTS[5], 5, ROOTS[5], ())
    merkle.verify_consistency(0, ROOTS[0], 5, ROOTS[5], ())
    merkle.verify_consistency(0, ROOTS[0], 0, ROOTS[0], ())
    for old, old_root, new, new_root in [
        (5, ROOTS[4], 5, ROOTS[5]),
        (0, ROOTS[1], 5, ROOTS[5]),
        (0, ROOTS[0], 0, ROOTS[1]),
        (0, ROOTS[0], 5, b"short"),
    ]:
        with pytest.raises(EvidenceError):
            merkle.verify_consistency(old, old_root, new, new_root, ())
    for old, new in [(5, 5), (0, 5), (0, 0)]:
        with pytest.raises(EvidenceError):  # one tree, one proof: no hashes to spare
            merkle.verify_consistency(old, ROOTS[old], new, ROOTS[new], (LEAVES[0],))


def test_sizes_cannot_be_scaled_down_or_up() -> None:
    """A proof of large trees is none of small ones of the same outline, nor the other way round.

    The last leaf of 8 has left siblings only, and so has every one of a tree that the claim
    makes too low: only counting the levels tells them apart.
    """
    high = merkle.path(LEAVES[:8], 7)
    with pytest.raises(EvidenceError, match="longer"):
        merkle.verify_path(LEAVES[7], merkle.Path(0, 1, high.hashes), ROOTS[8])
    low = merkle.path(LEAVES[:4], 3)
    with pytest.raises(EvidenceError, match="shorter"):
        merkle.verify_path(LEAVES[3], merkle.Path(7, 8, low.hashes), ROOTS[4])
    with pytest.raises(EvidenceError, match="longer"):
        merkle.verify_consistency(3, ROOTS[7], 4, ROOTS[8], merkle.consistency(LEAVES[:8], 7))
    with pytest.raises(EvidenceError, match="shorter"):
        merkle.verify_consistency(7, ROOTS[3], 8, ROOTS[4], merkle.consistency(LEAVES[:4], 3))


def test_what_is_no_hash_proves_nothing() -> None:
    """A leaf that is not 32 bytes long stands in no tree, whatever the root claims."""
    with pytest.raises(EvidenceError, match="32 bytes"):
        merkle.verify_path(b"x", merkle.Path(0, 1, ()), b"x")


def test_rewritten_history_has_no_consistency_proof() -> None:
    """When one old line was changed, the honest proof of neither tree joins the two roots."""
    forged = [*LEAVES[:3], merkle.leaf_hash(b"rewritten"), *LEAVES[4:20]]
    for leaves in (LEAVES[:20], forged):
        with pytest.raises(EvidenceError):
            merkle.verify_consistency(
                10, ROOTS[10], 20, merkle.root(forged), merkle.consistency(leaves, 10)
            )


def test_leaf_and_node_do_not_pass_for_each_other() -> None:
    """The prefixes keep an inner node from being shown as an entry (second preimage)."""
    forged_entry = LEAVES[0] + LEAVES[1]
    assert merkle.leaf_hash(forged_entry) != ROOTS[2]
    with pytest.raises(EvidenceError):
        merkle.verify_path(merkle.leaf_hash(forged_entry), merkle.Path(0, 1, ()), ROOTS[2])


def test_our_own_mistakes_are_not_evidence() -> None:
    """Asking for a proof that cannot exist is our bug, not a lie of somebody else."""
    with pytest.raises(IndexError):
        merkle.path(LEAVES[:4], 4)
    with pytest.raises(IndexError):
        merkle.consistency(LEAVES[:4], 5)
