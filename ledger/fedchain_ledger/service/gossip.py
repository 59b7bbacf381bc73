"""Passing on what users submit: every validator hears of it, so that no leader can drop it."""

from collections.abc import Iterator, Sequence

from fedchain_proto import wire_pb2 as wire

_PART_BYTES = 1 << 20


def gossip_messages(envelopes: Sequence[bytes], *, flush: bool) -> Iterator[bytes]:
    """Write envelopes, in order, as messages of about a mebibyte; the last one asks for the cut."""
    parts = list(_parts(envelopes))
    for position, part in enumerate(parts, 1):
        gossip = wire.Gossip(envelopes=part, flush=flush and position == len(parts))
        yield wire.ConsensusMessage(gossip=gossip).SerializeToString()


def _parts(envelopes: Sequence[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for raw in envelopes:
        if part and size + len(raw) > _PART_BYTES:
            yield part
            part, size = [], 0
        part.append(raw)
        size += len(raw)
    if part:
        yield part
