"""A node's inbox: bounded for each peer, fair to all, and the node's own affairs never lost."""

import asyncio

from fedchain_ledger.service.inbox import MAX_BYTES, MAX_MESSAGES, FromPeer, Inbox

VOTE, GOSSIP = b"\x12vote", b"\x32gossip"


def drain(inbox: Inbox[str]) -> list[str | FromPeer]:
    async def take() -> list[str | FromPeer]:
        found = []
        while True:
            try:
                found.append(await asyncio.wait_for(inbox.get(), 0.01))
            except TimeoutError:
                return found

    return asyncio.run(take())


def test_messages_come_in_the_order_of_each_peer() -> None:
    """One peer's consensus messages keep their order; peers take turns."""
    inbox: Inbox[str] = Inbox(2)
    for number in range(3):
        inbox.put_message(0, VOTE + bytes([number]))
        inbox.put_message(1, VOTE + bytes([number]))
    found = [(m.sender, m.data[-1]) for m in drain(inbox) if isinstance(m, FromPeer)]
    assert found == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


def test_flood_of_one_peer_costs_its_own_oldest_only() -> None:
    """A peer that sends too much loses its oldest messages; another's stay."""
    inbox: Inbox[str] = Inbox(2)
    inbox.put_message(1, VOTE)
    for number in range(MAX_MESSAGES + 5):
        inbox.put_message(0, VOTE + number.to_bytes(4, "big"))
    assert inbox.dropped == 5
    found = [m for m in drain(inbox) if isinstance(m, FromPeer)]
    assert FromPeer(1, VOTE) in found
    first = next(m for m in found if m.sender == 0)
    assert first.data == VOTE + (5).to_bytes(4, "big")
    assert len(found) == MAX_MESSAGES + 1


def test_flood_of_bytes_is_bounded() -> None:
    """Few large messages are bounded as many small ones are."""
    inbox: Inbox[str] = Inbox(1)
    large = b"\x0a" + bytes(8 << 20)
    for _ in range(10):
        inbox.put_message(0, large)
    kept = drain(inbox)
    assert sum(len(m.data) for m in kept if isinstance(m, FromPeer)) <= MAX_BYTES
    assert len(kept) + inbox.dropped == 10


def test_gossip_does_not_crowd_out_votes() -> None:
    """However much a peer gossips, its votes are kept, and come first."""
    inbox: Inbox[str] = Inbox(1)
    inbox.put_message(0, VOTE)
    for _ in range(MAX_MESSAGES + 1):
        inbox.put_message(0, GOSSIP)
    found = drain(inbox)
    assert found[0] == FromPeer(0, VOTE)
    assert len(found) == MAX_MESSAGES + 1


def test_own_affairs_are_never_dropped_and_take_turns() -> None:
    """Timers and submissions all come, and a flood of them starves no peer."""
    inbox: Inbox[str] = Inbox(1)
    for number in range(5_000):
        inbox.put(str(number))
    inbox.put_message(0, VOTE)
    found = drain(inbox)
    assert found.index(FromPeer(0, VOTE)) <= 1
    assert [item for item in found if isinstance(item, str)] == [str(n) for n in range(5_000)]


def test_nobody_is_not_a_peer() -> None:
    """Messages of unknown senders, and empty ones, are dropped and counted."""
    inbox: Inbox[str] = Inbox(2)
    inbox.put_message(2, VOTE)
    inbox.put_message(-1, VOTE)
    inbox.put_message(0, b"")
    assert drain(inbox) == []
    assert inbox.dropped == 3


def test_clear_hands_back_the_nodes_own() -> None:
    """What waits is forgotten; the node's own items come back, to be answered."""
    inbox: Inbox[str] = Inbox(1)
    inbox.put("mine")
    inbox.put_message(0, VOTE)
    assert inbox.clear() == ["mine"]
    assert drain(inbox) == []
