"""What a stored chain says, as plain data for JSON and tables. A view: it proves nothing.

Everything is read from the envelopes themselves; ids and digests are hex, times unix
milliseconds, enum values kebab-case words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from fedchain_ledger.service.reading import ChainReader, StoredTransaction
from fedchain_proto import merkle, reasons
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate, Header, header_id
from fedchain_proto.envelope import Signed, decode
from fedchain_proto.errors import EvidenceError, FedchainError
from fedchain_proto.hashing import digest_text
from fedchain_proto.receipts import make_receipt
from fedchain_proto.statements import Statement, parse
from fedchain_proto.trust import Genesis

View: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed statement and where it stands.

    Attributes:
        seq: Index in the chain's log.
        height: Of its block.
        time_ms: Header time of its block, unix milliseconds.
        signed: Its envelope.
        said: The statement.
    """

    seq: int
    height: int
    time_ms: int
    signed: Signed
    said: Statement


def entries(reader: ChainReader, head: int) -> Iterator[Entry]:
    """Walk through everything that is committed, in order, up to height `head`.

    Raises:
        FedchainError: What is stored cannot be read; the message says where.
    """
    seq = 0
    for height in range(1, head + 1):
        raw_header, envelopes, _ = reader.block(height)
        time_ms = _header(reader, height, raw_header).time_ms
        for raw in envelopes:
            yield _entry(reader, seq, height, time_ms, raw)
            seq += 1


def _entry(reader: ChainReader, seq: int, height: int, time_ms: int, raw: bytes) -> Entry:
    try:
        signed = decode(raw)
        return Entry(seq, height, time_ms, signed, parse(signed.payload_type, signed.payload))
    except EvidenceError as error:
        raise _unreadable(reader, f"block {height}, transaction {seq}", error) from None


def _header(reader: ChainReader, height: int, raw: bytes) -> Header:
    try:
        return Header.decode(raw)
    except EvidenceError as error:
        raise _unreadable(reader, f"block {height}", error) from None


def _certificate(reader: ChainReader, height: int, raw: bytes) -> Certificate:
    try:
        return Certificate.decode(raw)
    except EvidenceError as error:
        raise _unreadable(reader, f"block {height}", error) from None


def _unreadable(reader: ChainReader, where: str, error: Exception) -> FedchainError:
    return FedchainError(
        f"{reader.path}, {where}: {error}; `fedchain ledger audit` says what holds"
    )


# ---------------------------------------------------------------- history


def history(reader: ChainReader, genesis: Genesis) -> View:
    """Tell every run and round, newest first: who weighed what, and who was left out and why."""
    head = reader.head_height()
    runs: dict[bytes, View] = {}
    updates: dict[tuple[bytes, int], dict[str, View]] = {}
    for entry in entries(reader, head):
        said = entry.said
        match said:
            case wire.RunOpened():
                runs.setdefault(entry.signed.tx_id, _run_view(entry, said))
            case wire.RoundOpened():
                _run_of(runs, said.run)["rounds"].append(_round_view(entry, said))
            case wire.UpdateSubmitted():
                of_round = updates.setdefault((said.run, said.round), {})
                of_round.setdefault(said.participant, _update_view(entry, said))
            case wire.RoundClosed():
                known = updates.pop((said.run, said.round), {})
                _close(_run_of(runs, said.run), entry, said, known)
            case wire.RunClosed():
                run = _run_of(runs, said.run)
                run |= {"outcome": word(wire.RunOutcome.DESCRIPTOR, said.outcome)}
                run |= {"closed_height": entry.height, "model": digest_text(said.model)}
            case _:
                pass
    for (run_id, number), waiting in updates.items():  # rounds that did not close
        opened = _round_of(_run_of(runs, run_id), number)
        if opened is not None:
            opened["updates"] = [waiting[name] for name in sorted(waiting)]
    for run in runs.values():
        run["rounds"].reverse()
    return {
        "chain": {
            "id": reader.chain_id.hex(),
            "name": genesis.name,
            "validators": genesis.validators.n,
            "operators": len({validator.operator for validator in genesis.validators}),
        },
        "database": reader.name,
        "head": head_view(reader, head),
        "runs": list(reversed(runs.values())),
    }


def head_view(reader: ChainReader, height: int) -> View:
    """Name the head: its height and block id, the chain's own id at height 0."""
    block_id = reader.chain_id if height == 0 else header_id(reader.certified_header(height)[0])
    return {"height": height, "id": block_id.hex()}


def _run_of(runs: dict[bytes, View], run: bytes) -> View:
    """Return a run's view; one for a run that never opened, if damage made it so."""
    unknown: View = {"run": run.hex(), "aggregator": None, "outcome": "unknown", "rounds": []}
    return runs.setdefault(run, unknown)


def _run_view(entry: Entry, said: wire.RunOpened) -> View:
    return {
        "run": entry.signed.tx_id.hex(),
        "aggregator": said.aggregator,
        "height": entry.height,
        "opened_unix_ms": entry.time_ms,
        "policy": message_view(said.policy),
        "initial_model": digest_text(said.initial_model),
        "outcome": "open",
        "closed_height": None,
        "model": digest_text(said.initial_model),
        "rounds": [],
    }


def _round_view(entry: Entry, said: wire.RoundOpened) -> View:
    return {
        "number": said.round,
        "height": None,
        "opened_height": entry.height,
        "outcome": "open",
        "base_model": digest_text(said.base_model),
        "model": None,
        "cohort": list(said.cohort),
        "total_weight": 0,
        "updates": [],
        "exclusions": [],
    }


def _update_view(entry: Entry, said: wire.UpdateSubmitted) -> View:
    return {
        "participant": said.participant,
        "examples": said.num_examples,
        "update": digest_text(said.update),
        "transaction": entry.signed.tx_id.hex(),
        "height": entry.height,
    }


def _round_of(run: View, number: int) -> View | None:
    return next((opened for opened in reversed(run["rounds"]) if opened["number"] == number), None)


def _close(run: View, entry: Entry, said: wire.RoundClosed, known: dict[str, View]) -> None:
    opened = _round_of(run, said.round)
    if opened is None:
        return
    opened |= {
        "height": entry.height,
        "outcome": word(wire.Outcome.DESCRIPTOR, said.outcome),
        "model": digest_text(said.model),
        "total_weight": said.total_weight,
        "updates": [
            {
                "participant": one.participant,
                "examples": one.num_examples,
                "update": known.get(one.participant, {}).get("update"),
                "transaction": one.transaction.hex(),
                "height": known.get(one.participant, {}).get("height"),
            }
            for one in said.included
        ],
        "exclusions": [
            {
                "participant": one.participant,
                "reason": reasons.code(one.reason),
                "why": reasons.describe(one.reason),
                "proven": reasons.is_proven(one.reason),
                "transaction": one.transaction.hex() or None,
            }
            for one in said.excluded
        ],
    }
    run["model"] = digest_text(said.model)


# ---------------------------------------------------------------- one thing, whole


def block_view(reader: ChainReader, genesis: Genesis, height: int) -> View:
    """Show a block: header, certificate, every transaction with its signatures."""
    header, envelopes, certificate = reader.block(height)
    decoded = _header(reader, height, header)
    first = decoded.log_size - len(envelopes)
    return {
        "block": {
            **_block_head(reader, genesis, height, header, certificate),
            "transactions": [
                transaction_view(
                    _entry(reader, first + index, height, decoded.time_ms, raw), genesis
                )
                for index, raw in enumerate(envelopes)
            ],
        }
    }


def receipt_view(reader: ChainReader, genesis: Genesis, stored: StoredTransaction) -> View:
    """Show a transaction with its block's header and certificate, and its receipt, in hex."""
    header, certificate = reader.certified_header(stored.height)
    decoded = _header(reader, stored.height, header)
    try:
        path = merkle.path_from_nodes(reader.node, stored.seq, decoded.log_size)
    except IndexError as error:
        where = f"block {stored.height}, transaction {stored.seq}"
        raise _unreadable(reader, where, error) from None
    entry = _entry(reader, stored.seq, stored.height, decoded.time_ms, stored.envelope)
    return {
        "transaction": transaction_view(entry, genesis),
        "block": _block_head(reader, genesis, stored.height, header, certificate),
        "path": [digest.hex() for digest in path.hashes],
        "receipt": make_receipt(stored.envelope, path, header, certificate).hex(),
    }


def round_view(
    reader: ChainReader, genesis: Genesis, run: bytes, stored: Sequence[StoredTransaction]
) -> View:
    """Show a round: every statement of it with its signatures, and the blocks that hold them."""
    blocks: dict[int, View] = {}
    transactions = []
    number = 0
    for item in stored:
        if item.height not in blocks:
            header, certificate = reader.certified_header(item.height)
            blocks[item.height] = _block_head(reader, genesis, item.height, header, certificate)
        time_ms = blocks[item.height]["header"]["time_ms"]
        entry = _entry(reader, item.seq, item.height, time_ms, item.envelope)
        number = getattr(entry.said, "round", number)
        transactions.append(transaction_view(entry, genesis))
    closed = any(item["type"] == "round-closed" for item in transactions)
    return {
        "round": {
            "run": run.hex(),
            "number": number,
            "state": "closed" if closed else "open",
            "transactions": transactions,
            "blocks": [blocks[height] for height in sorted(blocks)],
        }
    }


def transaction_view(entry: Entry, genesis: Genesis) -> View:
    """Show one committed statement, every field, and who signed it."""
    known = {validator.key_id: validator.name for validator in genesis.validators}
    return {
        "id": entry.signed.tx_id.hex(),
        # application/vnd.fedchain.run-opened.v1+proto
        "type": entry.signed.payload_type.split(".")[-2],
        "payload_type": entry.signed.payload_type,
        "height": entry.height,
        "index": entry.seq,
        "statement": message_view(entry.said),
        "signatures": [
            {"key": key.hex(), "validator": known.get(key), "signature": signature.hex()}
            for key, signature in entry.signed.signatures
        ],
        "envelope": entry.signed.raw.hex(),
    }


def _block_head(
    reader: ChainReader, genesis: Genesis, height: int, raw_header: bytes, raw_certificate: bytes
) -> View:
    header = _header(reader, height, raw_header)
    certificate = _certificate(reader, height, raw_certificate)
    validators = genesis.validators
    return {
        "height": height,
        "id": header_id(raw_header).hex(),
        "header": {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in vars(header).items()
            if name in header.__dataclass_fields__
        },
        "certificate": {
            "height": certificate.height,
            "round": certificate.round,
            "block_id": certificate.block_id.hex(),
            "validators_hash": certificate.validators_hash.hex(),
            "signatures": [
                {
                    "validator": validators[index].name if index < validators.n else None,
                    "index": index,
                    "signature": signature.hex(),
                }
                for index, signature in certificate.signatures
            ],
        },
    }


# ---------------------------------------------------------------- any message


def message_view(message: Message) -> View:
    """Show every field of a message: bytes as hex, enum values as words, nested ones alike."""
    return {field.name: _field_view(message, field) for field in message.DESCRIPTOR.fields}


def _field_view(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value_view(item, field) for item in value]
    return _value_view(value, field)


def _value_view(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return message_view(value)
    if field.enum_type is not None:
        return word(field.enum_type, value)
    return value.hex() if isinstance(value, bytes) else value


def word(enum: EnumDescriptor, number: int) -> str:
    """Write an enum's value as people do: OUTCOME_AVERAGED of Outcome is "averaged"."""
    value = enum.values_by_number.get(number)
    if value is None:
        return f"unknown-{number}"
    first = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name.removeprefix(first)).lower().replace("_", "-")
