"""What the consensus core asks of the thing that it orders: one replicated state machine.

``chain.Chain`` is the real one; the simulator brings a toy. The core never looks into a
transaction: it knows blocks, their ids and who may propose them.
"""

from __future__ import annotations

from typing import Protocol

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate
from fedchain_proto.trust import ValidatorSet


class Application(Protocol):
    """The state after the last decided block (the tip), and the pool of what waits.

    Everything is synchronous and deterministic: equal tip and equal bytes give equal answers
    on every validator. Only ``has_work``, ``overlooked`` and ``propose`` may look at the pool.
    """

    @property
    def tip_height(self) -> int:
        """Height of the last decided block; 0 is the genesis."""
        ...

    @property
    def tip_proposer(self) -> int:
        """Validator index in the last decided header; 0 at the genesis. Base of s(h)."""
        ...

    @property
    def validators(self) -> ValidatorSet:
        """The set in force at height ``tip_height + 1``."""
        ...

    def has_work(self) -> bool:
        """Whether a pooled transaction is valid in the current state. Cheap: asked per event."""
        ...

    def overlooked(self) -> bool:
        """Whether a valid pooled transaction stood through two decided blocks with room for it."""
        ...

    def propose(self, now_ms: int, proposer: int) -> wire.Block | None:
        """A new block on the tip, at most MAX_BLOCK_BYTES; None when there is nothing to decide.

        It carries the parent's certificate in ``parent_certificate`` (the one given to ``commit``),
        whose hash its header names.
        """
        ...

    def validate(self, block: wire.Block, *, proposer: int | None, now_ms: int | None) -> bytes:
        """Check a block on the tip whole and return its id.

        Args:
            block: From anyone: structure, sizes, header, body, parent's certificate and
                transactions are all checked.
            proposer: The leader of its round when the block is new; None when it was validated
                by a quorum before (proposed again, or certified): then the proposer need only
                be a member.
            now_ms: This validator's clock when the block is new; None when the clock is not
                checked a second time.

        Raises:
            FedchainError: The block does not hold.
        """
        ...

    def commit(self, block_id: bytes, certificate: Certificate) -> object:
        """Make a block that ``validate`` accepted on this tip the new tip.

        Returns whatever the shell needs to store it; it travels in ``Decide.committed``.
        """
        ...
