"""Receipts of a block just decided: from the peaks before it and the nodes that it completes."""

import pytest

from fedchain_ledger.service.proofs import Decided, peak_nodes
from fedchain_proto import merkle


def leaf(index: int) -> bytes:
    return merkle.leaf_hash(b"%d" % index)


@pytest.mark.parametrize("before", [0, 1, 2, 3, 5, 7, 8, 13, 64, 100])
@pytest.mark.parametrize("added", [1, 2, 3, 10, 33])
def test_peaks_and_new_nodes_prove_every_new_leaf(before: int, added: int) -> None:
    """The hashes at hand are enough for each path, which is the one over all leaves."""
    frontier = merkle.Frontier()
    for index in range(before):
        frontier = frontier.append(leaf(index))
    nodes = {(level, index): digest for level, index, digest in peak_nodes(frontier)}
    assert len(nodes) == len(frontier.peaks)
    grown = frontier
    for index in range(before, before + added):
        for level, position, digest in merkle.stored_nodes(grown, leaf(index)):
            nodes[level, position] = digest
        grown = grown.append(leaf(index))
    leaves = [leaf(index) for index in range(before + added)]
    block = Decided(b"", b"", before, before + added, nodes)
    for position in range(added):
        expected = merkle.path(leaves, before + position)
        assert block.path(position) == expected
        merkle.verify_path(leaves[before + position], expected, grown.root())


def test_peaks_are_where_stored_nodes_are() -> None:
    """A peak is named by the level and index under which it was stored when it was completed."""
    frontier = merkle.Frontier()
    stored = {}
    for index in range(75):
        for level, position, digest in merkle.stored_nodes(frontier, leaf(index)):
            stored[level, position] = digest
        frontier = frontier.append(leaf(index))
        for level, position, digest in peak_nodes(frontier):
            assert stored[level, position] == digest
