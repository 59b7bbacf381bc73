"""Receipts: what proves to a holder of the genesis, offline, that a transaction was committed.

Envelope, Merkle path under the header's log root, header, commit certificate. One reply of one
validator is enough: nothing in it is believed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate, Header
from fedchain_proto.envelope import Signed, decode, verify_signatures
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.statements import Statement, parse
from fedchain_proto.strictwire import parse_strict
from fedchain_proto.trust import Genesis

MAX_RECEIPT_BYTES = 2 << 20


@dataclass(frozen=True)
class VerifiedReceipt:
    """A receipt that holds.

    Attributes:
        signed: The committed envelope.
        statement: What it says.
        header: The certified header that it was proved under: the block that committed it, or a
            later one.
        leaf_index: Its place in the chain's log, from 0.
        raw: The receipt's bytes, to hand on.
    """

    signed: Signed
    statement: Statement
    header: Header
    leaf_index: int
    raw: bytes


def make_receipt(envelope: bytes, path: merkle.Path, header: bytes, certificate: bytes) -> bytes:
    """Write a receipt.

    Args:
        envelope: The committed envelope, verbatim.
        path: Its inclusion path in the log that `header` names.
        header: The header's bytes.
        certificate: The certificate's bytes, for that header.

    Raises:
        UsageError: A receipt that `verify_receipt` would not look at.
    """
    try:
        proof = wire.MerklePath(
            leaf_index=path.leaf_index, tree_size=path.tree_size, hashes=path.hashes
        )
    except ValueError as error:
        raise UsageError(f"not a Merkle path: {error}") from None
    receipt = wire.Receipt(envelope=envelope, path=proof, header=header, certificate=certificate)
    raw = receipt.SerializeToString(deterministic=True)
    if len(raw) > MAX_RECEIPT_BYTES:
        raise UsageError(f"a receipt of more than {MAX_RECEIPT_BYTES} bytes")
    return raw


def verify_receipt(
    raw: bytes, genesis: Genesis, key_of: Callable[[bytes], bytes | None] | None = None
) -> VerifiedReceipt:
    """Check a receipt against the pinned genesis.

    Args:
        raw: The receipt's bytes.
        genesis: The trust root.
        key_of: Public key of a key id; if given, the envelope's own signatures are checked too.
            Without it they are what the validators' quorum checked.

    Raises:
        EvidenceError: It does not hold.
    """
    return _verify(raw, genesis, key_of, set())


def verify_receipts(raws: Iterable[bytes], genesis: Genesis) -> list[VerifiedReceipt]:
    """Check several receipts, each as `verify_receipt` does; a certificate they share once.

    Raises:
        EvidenceError: One of them does not hold.
    """
    held: set[bytes] = set()
    return [_verify(raw, genesis, None, held) for raw in raws]


def _verify(
    raw: bytes,
    genesis: Genesis,
    key_of: Callable[[bytes], bytes | None] | None,
    held: set[bytes],
) -> VerifiedReceipt:
    """Check one receipt; `held` are certificates, whole, that a quorum of `genesis` signed."""
    if len(raw) > MAX_RECEIPT_BYTES:
        raise EvidenceError(f"a receipt of more than {MAX_RECEIPT_BYTES} bytes")
    receipt = parse_strict(wire.Receipt, raw)
    # 1. The header is of this chain and of a set that the genesis names.
    header = Header.decode(receipt.header)
    if header.chain_id != genesis.chain_id:
        raise EvidenceError("a receipt of another chain")
    if header.validators_hash != genesis.validators.hash:
        raise EvidenceError(
            "a receipt under a validator set that is not the genesis's; this version follows none"
        )
    # 2. A quorum certified that header.
    certificate = Certificate.decode(receipt.certificate)
    if certificate.height != header.height or certificate.block_id != header.id:
        raise EvidenceError("a receipt whose certificate is another block's")
    if receipt.certificate not in held:
        certificate.verify(genesis.chain_id, genesis.validators)
        held.add(receipt.certificate)
    # 3. The envelope, whole, is a leaf of the header's log.
    merkle.verify_path(
        merkle.leaf_hash(receipt.envelope), _path(receipt.path, header), header.log_root
    )
    # 4. The envelope is one, and its statement is of this chain.
    signed = decode(receipt.envelope)
    if key_of is not None:
        verify_signatures(signed, key_of)
    statement = parse(signed.payload_type, signed.payload)
    if statement.chain_id != genesis.chain_id:
        raise EvidenceError("a receipt for a statement of another chain")
    return VerifiedReceipt(signed, statement, header, receipt.path.leaf_index, raw)


def _path(path: wire.MerklePath, header: Header) -> merkle.Path:
    if path.tree_size != header.log_size:
        raise EvidenceError("a receipt's path is of another size than the header's log")
    return merkle.Path(path.leaf_index, path.tree_size, tuple(path.hashes))
