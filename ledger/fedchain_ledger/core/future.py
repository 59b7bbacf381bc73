"""Messages for heights that this validator has not reached: a few per peer, never a queue.

Votes for a height up to tip + 8, one of a kind per peer and height; a PROPOSAL for the next
height only, from f + 1 peers at most, because it carries a block. Everything else is dropped:
the resend brings it back when its time has come (indy-plenum #1542: unbounded buffers).
Nothing here is verified; a peer fills nobody's place but its own.
"""

from __future__ import annotations

from fedchain_ledger.core.votebook import PROPOSAL
from fedchain_proto import wire_pb2 as wire

AHEAD = 8  # heights above the tip that votes are kept for
MAX_VOTE_MESSAGE_BYTES = 1 << 16  # a round change with a large block waits for its resend


class Future:
    """What came early, by height, sender and kind."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[tuple[int, int], bytes]] = {}

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def keep(self, current: int, vote: wire.SignedVote, data: bytes, f: int) -> None:
        """Keep the sender's latest message of a kind for a coming height, if it is near.

        Args:
            current: The height that is being decided.
            vote: The sender's, unverified, for a higher height.
            data: The message that it came in.
            f: How many validators may lie.
        """
        height = vote.height
        kept = self._kept.get(height, {})
        key = (vote.validator, vote.type)
        if vote.type == PROPOSAL:
            proposals = [other for other in kept if other[1] == PROPOSAL]
            if height != current + 1 or (key not in kept and len(proposals) > f):
                return
        elif height >= current + AHEAD or len(data) > MAX_VOTE_MESSAGE_BYTES:
            return
        self._kept.setdefault(height, kept)[key] = data

    def take(self, height: int) -> list[tuple[int, bytes]]:
        """(sender, message) for a height that is now reached; lower ones are forgotten."""
        kept = self._kept.pop(height, {})
        for other in [other for other in self._kept if other < height]:
            del self._kept[other]
        # Proposals first: the votes are about them.
        order = sorted(kept, key=lambda key: (key[1] != PROPOSAL, key))
        return [(key[0], kept[key]) for key in order]
