"""Two helpers of the node: gossip in parts of bounded size, and timers that are replaced."""

import asyncio

from fedchain_ledger.core.messages import MAX_MESSAGE_BYTES, parse
from fedchain_ledger.service.gossip import gossip_messages
from fedchain_ledger.service.inbox import GOSSIP_TAG
from fedchain_ledger.service.timers import Elapsed, Timers
from fedchain_proto.envelope import MAX_ENVELOPE_BYTES


def test_gossip_is_split_in_order_and_flushes_at_the_end() -> None:
    """Large submissions travel in bounded parts, none lost; only the last asks for the cut."""
    envelopes = [bytes([number]) * 300_000 for number in range(9)] + [bytes(MAX_ENVELOPE_BYTES)]
    raw = list(gossip_messages(envelopes, flush=True))
    parts = [parse(message).gossip for message in raw]
    assert [envelope for part in parts for envelope in part.envelopes] == envelopes
    assert [part.flush for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 2
    assert max(map(len, raw)) < MAX_MESSAGE_BYTES
    assert {message[0] for message in raw} == {GOSSIP_TAG}


def test_gossip_without_flush_or_content() -> None:
    """Nothing to pass on is no message; without a flush nobody asks for a cut."""
    assert list(gossip_messages([], flush=True)) == []
    [message] = gossip_messages([b"one", b"two"], flush=False)
    assert parse(message).gossip.flush is False


def test_replaced_timer_never_counts() -> None:
    """A timer that is set anew fires once; one that ran out before that is no longer current."""

    async def scene() -> None:
        fired: list[Elapsed] = []
        timers = Timers(fired.append)
        timers.set("round", 5)
        await asyncio.sleep(0.05)
        [first] = fired
        assert timers.is_current(first)
        timers.set("round", 60_000)
        assert not timers.is_current(first)
        timers.set("round", 0)
        timers.set("tip", -5)
        await asyncio.sleep(0.05)
        assert [event.name for event in fired] == ["round", "round", "tip"]
        assert all(timers.is_current(event) for event in fired[1:])
        timers.set("round", 5)
        timers.cancel()
        await asyncio.sleep(0.05)
        assert len(fired) == 3
        assert not timers.is_current(fired[-1])

    asyncio.run(scene())
