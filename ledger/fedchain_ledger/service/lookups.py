"""What a node asks of its database: replay, receipts, blocks for those who lag behind."""

from collections.abc import Collection, Sequence

from fedchain_ledger.core.blockrules import IrreproducibleError
from fedchain_ledger.core.chain import Chain, Committed
from fedchain_ledger.service.dberrors import damaged
from fedchain_ledger.service.disk import Disk
from fedchain_ledger.service.proofs import stored_receipt
from fedchain_ledger.service.reading import ChainReader, StoredTransaction
from fedchain_ledger.service.store import NewBlock, NewTransaction, Store
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate
from fedchain_proto.envelope import decode
from fedchain_proto.errors import EvidenceError
from fedchain_proto.statements import Statement, payload_type

_UPDATE = payload_type(wire.UpdateSubmitted)
_ADMITTED = payload_type(wire.MemberAdmitted)
_REVOKED = payload_type(wire.MemberRevoked)


async def replay(disk: Disk, chain: Chain) -> bytes:
    """Bring a fresh chain to the stored head, verifying every block; the head's certificate.

    Raises:
        FedchainError: A stored block does not hold; the message names file and height.
        IrreproducibleError: It is certified, and these rules refuse it: ask people.
    """
    certificate = b""
    head = await disk.call(Store.head_height)
    for height in range(1, head + 1):
        header, envelopes, stored = await disk.call(Store.block, height)
        block = wire.Block(header=header, envelopes=envelopes, parent_certificate=certificate)
        try:
            chain.restore(block, Certificate.decode(stored))
        except EvidenceError as error:
            raise damaged(disk.path, f"block {height}: {error}") from error
        except IrreproducibleError as error:
            raise IrreproducibleError(f"{disk.path}: {error}") from error
        certificate = stored
    if await disk.call(lambda store: store.log_size) != chain.state.log.size:
        raise damaged(disk.path, f"it holds transactions beyond block {head}")
    return certificate


def new_block(committed: Committed, parent_certificate: bytes) -> NewBlock:
    """Make what the store keeps of a decided block.

    Args:
        committed: The block.
        parent_certificate: The certificate that is stored for its parent; replaced if the block
            names another one.
    """
    valid = committed.valid
    named = valid.block.parent_certificate
    transactions = []
    for verified in valid.transactions:
        run, number = _of_round(verified.statement, verified.signed.tx_id)
        transactions.append(NewTransaction(verified.signed.raw, verified.signed.tx_id, run, number))
    return NewBlock(
        height=valid.header.height,
        header=valid.block.header,
        certificate=committed.certificate.encode(),
        parent_certificate=None if named == parent_certificate else named,
        transactions=transactions,
        nodes=valid.log_nodes,
    )


def _of_round(statement: Statement, tx_id: bytes) -> tuple[bytes | None, int | None]:
    """Return the run and round that a statement is looked up by."""
    match statement:
        case wire.RunOpened():
            return tx_id, 0
        case wire.RunClosed():
            return statement.run, 0
        case wire.RoundOpened() | wire.UpdateSubmitted() | wire.RoundClosed():
            return statement.run, statement.round
        case _:
            return None, None


def decided_block(reader: ChainReader, height: int) -> tuple[wire.Block, bytes]:
    """Return a stored block as it travels, and its certificate."""
    header, envelopes, certificate = reader.block(height)
    # The stored certificate of the parent is the one that this header names (Store.append).
    parent = reader.certified_header(height - 1)[1] if height > 1 else b""
    block = wire.Block(header=header, envelopes=envelopes, parent_certificate=parent)
    return block, certificate


def receipt(reader: ChainReader, tx_id: bytes) -> bytes | None:
    """Return a committed transaction's receipt, None if there is none."""
    stored = reader.transaction(tx_id)
    return None if stored is None else stored_receipt(reader, stored)


def round_updates(reader: ChainReader, run: bytes, number: int) -> list[bytes]:
    """Return the receipts of a round's updates, in log order."""
    return _receipts(reader, reader.round_transactions(run, number), {_UPDATE})


def _receipts(
    reader: ChainReader, transactions: Sequence[StoredTransaction], kinds: Collection[str]
) -> list[bytes]:
    """Prove those transactions that are of the wanted kinds."""
    found = []
    for stored in transactions:
        try:
            kind = decode(stored.envelope).payload_type
        except EvidenceError as error:
            raise damaged(reader.path, f"transaction {stored.seq}: {error}") from error
        if kind in kinds:
            found.append(stored_receipt(reader, stored))
    return found


def members(reader: ChainReader) -> list[bytes]:
    """Return the receipts of every admission and revocation, in log order."""
    stored = reader.runless_transactions()
    return _receipts(reader, stored, {_ADMITTED, _REVOKED})


def head(reader: ChainReader) -> tuple[bytes, bytes] | None:
    """Return the last header and its certificate, None before the first block."""
    height = reader.head_height()
    return reader.certified_header(height) if height else None
