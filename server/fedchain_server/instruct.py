"""What the clients of one round are told, checked so that all are told the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

from fedchain_proto import flowkeys
from fedchain_proto.errors import UsageError
from fedchain_proto.flowrecords import message_instruction
from fedchain_server.arrays import Model


@dataclass(frozen=True)
class Instruction:
    """One round's messages, before the round is opened.

    Attributes:
        messages: One per participant, without receipts.
        names: Participant of each destination node.
        digest: Of what they all say, 32 bytes.
    """

    messages: tuple[Message, ...]
    names: Mapping[int, str]
    digest: bytes

    def with_receipts(self, opened: bytes, closed: bytes | None) -> list[Message]:
        """Attach the proof of the round, and of the round before it, to every message."""
        record = ConfigRecord({flowkeys.ROUND_OPENED: opened})
        if closed is not None:
            record[flowkeys.CLOSED] = closed
        # A strategy gives all messages one content; so do we, that it can be serialised once.
        contents: dict[int, RecordDict] = {}
        for message in self.messages:
            plain = message.content
            if id(plain) not in contents:
                contents[id(plain)] = RecordDict({**plain, flowkeys.RECORD: record})
            message.content = contents[id(plain)]
        return list(self.messages)


def make_instruction(
    messages: Sequence[Message], names: Mapping[int, str], model: Model
) -> Instruction:
    """Check a strategy's messages and pick one per participant that has proved its name.

    Args:
        messages: From ``configure_train``.
        names: Proven names, by node.
        model: The base model, which every message must carry.

    Raises:
        UsageError: Messages differ in what they say, or carry another model, or more than the
            instruction's digest covers.
    """
    chosen: dict[str, Message] = {}
    for message in messages:
        name = names.get(message.metadata.dst_node_id)
        if name is not None:
            chosen.setdefault(name, message)  # a second node of one owner would sign twice
    digests: dict[int, bytes] = {}
    for message in chosen.values():
        content = message.content
        if id(content) not in digests:
            digests[id(content)] = _check(content, message.metadata.message_type, model)
    if len(set(digests.values())) > 1 or len({m.metadata.message_type for m in messages}) > 1:
        raise UsageError(
            "configure_train tells clients different things; one round has one instruction, which"
            " the ledger names: give all messages equal configuration and type"
        )
    return Instruction(
        tuple(chosen.values()),
        {message.metadata.dst_node_id: name for name, message in chosen.items()},
        next(iter(digests.values()), b""),
    )


def _check(content: RecordDict, message_type: str, model: Model) -> bytes:
    """Check one content; return the digest of what it says."""
    if content.metric_records:
        raise UsageError("configure_train sends a MetricRecord; put its values into a ConfigRecord")
    if flowkeys.RECORD in content:
        raise UsageError(f"configure_train uses the record name {flowkeys.RECORD!r}; rename it")
    records = list(content.array_records.values())
    if len(records) != 1 or not model.is_in(records[0]):
        raise UsageError(
            "configure_train must send the arrays that it is given, all of them, unchanged, in one"
            " ArrayRecord: the ledger names them as the round's base model"
        )
    return message_instruction(message_type, content.config_records)
