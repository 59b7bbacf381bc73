"""A validator that lies with its own key: votes for anything, replays, two proposals, junk."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from fedchain_ledger.core import messages
from fedchain_ledger.core.votebook import COMMIT, PREPARE, PROPOSAL, ROUND_CHANGE
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import header_id
from fedchain_proto.votes import sign_vote
from tests.sim.toy import CHAIN_ID

if TYPE_CHECKING:
    from tests.sim.engine import Node, World

MEMORY = 200


class Liar:
    """Hears everything that is sent in the world; says what could hurt."""

    def __init__(self, world: World, node: Node, rng: random.Random) -> None:
        self._world = world
        self._node = node
        self._rng = rng
        self._heard: list[bytes] = []
        self._active = False
        world.tap = self._hear

    def start(self, for_ms: int) -> None:
        """Lie from now on, about a hundred times."""
        self._active = True
        self._pause = max(20, for_ms // 100)
        self._world.at(self._rng.randrange(200), self._lie)

    def stop(self) -> None:
        """Be silent."""
        self._active = False

    def _hear(self, sender: Node, to: Node, message: bytes) -> None:
        self._heard.append(message)
        if len(self._heard) > MEMORY:
            del self._heard[: MEMORY // 2]

    def _lie(self) -> None:
        if not self._active:
            return
        lie = self._rng.choice((self._votes, self._votes, self._propose, self._replay, self._junk))
        lie()
        self._world.at(self._rng.randrange(2 * self._pause), self._lie)

    def _victims(self) -> list[Node]:
        others = [node for node in self._world.nodes if node is not self._node and node.up]
        return self._rng.sample(others, self._rng.randint(0, len(others)))

    def _say(self, node: Node, message: bytes) -> None:
        self._world.inject(self._node.index, node.name, message)

    def _sign(
        self,
        type_: wire.VoteType.ValueType,
        height: int,
        round_: int,
        block_id: bytes,
        prepared: int = 0,
    ) -> wire.SignedVote:
        return sign_vote(
            self._node.key,
            CHAIN_ID,
            self._world.validators.hash,
            type_,
            height,
            round_,
            block_id,
            prepared,
            self._node.index,
        )

    # -------------------------------------------------------------- lies

    def _votes(self) -> None:
        """Support whatever somebody considers, wherever he is; or pretend to be far ahead."""
        for victim in self._victims():
            state = victim.core._replica.state
            ids = [known for known, _ in state._blocks()] or [bytes([7]) * 32]
            block_id = self._rng.choice(ids)
            height, round_ = state.number, state.round
            kind = self._rng.choice((PREPARE, COMMIT, ROUND_CHANGE))
            if kind == ROUND_CHANGE:
                ahead = self._rng.choice((round_ + 1, round_ + 2, 4_000_000_000))
                locked = self._rng.random() < 0.3
                vote = self._sign(
                    kind, height, ahead, block_id if locked else b"", 1 if locked else 0
                )
                self._say(victim, messages.encode_round_change(vote, None, ()))
                if locked:
                    block = state.find(block_id)
                    if block is not None:
                        self._say(victim, messages.encode_round_change(vote, block, (vote,)))
            else:
                vote = self._sign(kind, height, round_, block_id)
                self._say(victim, messages.encode_vote(vote))

    def _propose(self) -> None:
        """Lead, with another block for each; when there is no justification, without one."""
        for victim in self._victims():
            state = victim.core._replica.state
            rounds = range(state.round, state.round + 8)
            mine = [r for r in rounds if state.leader(r) == self._node.index]
            transaction = b"lie %d" % self._rng.randrange(3)
            if not mine or transaction in victim.app.recorded:
                continue
            time_ms = max(victim.app._tip_ms + 1, self._world.now_ms)
            block = victim.app._make([transaction], time_ms, self._node.index)
            vote = self._sign(PROPOSAL, state.number, mine[0], header_id(block.header))
            changes = list(state.book.round_changes().values())
            self._say(victim, messages.encode_proposal(vote, block, changes))

    def _replay(self) -> None:
        for victim in self._victims():
            if self._heard:
                self._say(victim, self._rng.choice(self._heard))

    def _junk(self) -> None:
        for victim in self._victims():
            raw = bytearray(self._rng.choice(self._heard) if self._heard else b"junk")
            for _ in range(self._rng.randint(1, 4)):
                raw[self._rng.randrange(len(raw))] = self._rng.randrange(256)
            self._say(victim, bytes(raw))
