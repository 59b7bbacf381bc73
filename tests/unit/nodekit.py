"""Validators in one event loop, for tests of the service: real core, real databases, own clock."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedchain_ledger.core.timing import Timing
from fedchain_ledger.service.node import Node
from fedchain_ledger.service.transport import InProcessHub
from fedchain_proto.receipts import VerifiedReceipt, verify_receipt
from fedchain_proto.statements import Statement
from tests.unit.chainkit import MODEL_0, SHARED, START_MS, Consortium, tx_id

T = TypeVar("T")

PATIENCE_S = 30.0
QUICK = Timing(base_timeout_ms=300, worst_round_ms=1_000, resend_ms=200, tip_ms=300, laggard_ms=20)

_STARTED = time.monotonic()


def clock() -> int:
    """Milliseconds since the genesis of `chainkit`, as if the tests ran then."""
    return START_MS + 60_000 + int((time.monotonic() - _STARTED) * 1000)


def play(scene: Coroutine[Any, Any, T]) -> T:
    """Run one test's coroutine to its end, within patience."""
    return asyncio.run(asyncio.wait_for(scene, PATIENCE_S))


async def until(condition: Any, what: str) -> None:
    """Wait for a condition, or fail saying what did not come."""
    deadline = time.monotonic() + PATIENCE_S / 2
    while not condition():
        assert time.monotonic() < deadline, f"did not come: {what}"
        await asyncio.sleep(0.01)


class Cluster:
    """All validators of a consortium over one hub; any of them may be away."""

    def __init__(
        self, folder: Path, validators: int = 4, *, timing: Timing = QUICK, label: str = "chain"
    ) -> None:
        self.consortium = Consortium(validators, label=label)
        self.folder = folder
        self.hub = InProcessHub()
        self.timing = timing
        self.nodes: dict[int, Node] = {}

    async def __aenter__(self) -> "Cluster":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def make(self, index: int) -> Node:
        """A node that is not opened yet."""
        return Node(
            self.consortium.genesis,
            self.consortium.validator_keys[index],
            self.folder / f"validator-{index + 1}.db",
            clock,
            timing=self.timing,
            cache=SHARED,
        )

    async def start(self, *indices: int) -> None:
        """Open and start some validators; all by default."""
        for index in indices or range(self.consortium.validators):
            node = self.make(index)
            await node.open()
            self.nodes[index] = node
        for index in indices or range(self.consortium.validators):
            node = self.nodes[index]
            node.start(self.hub.attach(index, node.receive))

    async def stop(self, *indices: int) -> None:
        """Stop some validators; all by default."""
        for index in indices or tuple(self.nodes):
            self.hub.detach(index)
            await self.nodes.pop(index).stop()

    async def committed(
        self, envelopes: Sequence[bytes], *, at: int = 0, flush: bool = True
    ) -> list[VerifiedReceipt]:
        """Submit at one validator; the receipts of all of them, verified."""
        outcomes = await self.nodes[at].submit(envelopes, flush=flush)
        receipts = []
        for outcome in outcomes:
            if not isinstance(outcome, bytes):
                raise outcome
            receipts.append(verify_receipt(outcome, self.consortium.genesis))
        return receipts

    async def open_round(self, *, at: int = 0) -> bytes:
        """Admit everybody, open a run and its first round; the run's id."""
        consortium = self.consortium
        await self.committed(consortium.admissions(), at=at)
        opened = consortium.run_opened()
        run = tx_id(opened)
        said: list[Statement] = [opened, consortium.round_opened(run, 1, MODEL_0)]
        await self.committed([consortium.seal(one) for one in said], at=at)
        return run

    async def level(self) -> int:
        """Wait until all that run have decided the same height; that height."""
        nodes = list(self.nodes.values())
        await until(lambda: len({node.tip_height for node in nodes}) == 1, "one height for all")
        return nodes[0].tip_height
