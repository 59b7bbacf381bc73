"""Receipts from what a node has stored, or has just decided. Reads hashes, computes none but paths.

Nothing here is believed by whoever gets a receipt; what is checked before it leaves is that our
own database is whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedchain_ledger.core.chain import Committed
from fedchain_ledger.service.dberrors import damaged
from fedchain_ledger.service.reading import ChainReader, StoredTransaction
from fedchain_proto import merkle
from fedchain_proto.blocks import Header
from fedchain_proto.errors import EvidenceError
from fedchain_proto.receipts import make_receipt


@dataclass(frozen=True, slots=True)
class Decided:
    """A block that was just decided, with all that receipts for its transactions need.

    Attributes:
        header: Encoded header.
        certificate: Encoded certificate.
        first_seq: Log index of its first transaction.
        log_size: Size of the log with this block.
        nodes: Hashes by (level, index): what this block completes, and the peaks before it.
    """

    header: bytes
    certificate: bytes
    first_seq: int
    log_size: int
    nodes: dict[tuple[int, int], bytes]

    def path(self, position: int) -> merkle.Path:
        """Inclusion path of the block's transaction at `position`."""
        return merkle.path_from_nodes(
            lambda level, index: self.nodes[level, index],
            self.first_seq + position,
            self.log_size,
        )

    def receipt(self, position: int, envelope: bytes) -> bytes:
        """Prove the block's transaction at `position`."""
        return make_receipt(envelope, self.path(position), self.header, self.certificate)


def decided(before: merkle.Frontier, committed: Committed) -> Decided:
    """Collect what receipts for a block's transactions need; `before` is the log before it."""
    valid = committed.valid
    nodes = {(level, index): digest for level, index, digest in peak_nodes(before)}
    nodes |= {(level, index): digest for level, index, digest in valid.log_nodes}
    return Decided(
        header=valid.block.header,
        certificate=committed.certificate.encode(),
        first_seq=before.size,
        log_size=valid.header.log_size,
        nodes=nodes,
    )


def peak_nodes(frontier: merkle.Frontier) -> Iterator[tuple[int, int, bytes]]:
    """Name a frontier's peaks as stored nodes: (level, index, hash), leftmost first."""
    start = 0
    peaks = iter(frontier.peaks)
    for level in reversed(range(frontier.size.bit_length())):
        if frontier.size >> level & 1:
            yield level, start >> level, next(peaks)
            start += 1 << level


def stored_receipt(reader: ChainReader, stored: StoredTransaction) -> bytes:
    """Prove a stored transaction under its own block's header.

    Raises:
        FedchainError: The database is damaged: what it holds does not prove it.
    """
    header, certificate = reader.certified_header(stored.height)
    try:
        decoded = Header.decode(header)
        path = merkle.path_from_nodes(reader.node, stored.seq, decoded.log_size)
        merkle.verify_path(merkle.leaf_hash(stored.envelope), path, decoded.log_root)
        return make_receipt(stored.envelope, path, header, certificate)
    except (EvidenceError, IndexError) as error:
        raise damaged(reader.path, f"block {stored.height}: {error}") from error
