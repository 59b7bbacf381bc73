"""A small federation in one process, for tests of the strategy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedchain_clients import OwnerHome, attest
from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFolder
from fedchain_proto.statements import Policy, Statement
from fedchain_server import LedgerFedAvg, RoundRecord
from tests.fakegrid import Client, FakeGrid
from tests.fakeledger import FakeLedger, member_key

NAMES = ("client-00", "client-01", "client-02")
Mod = Callable[[Message, Context, Client], Message]
Attack = Callable[[Message, Message, Context], Message]


def initial() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros((2, 2), np.float32)), "b": Array(np.zeros(()))})


def honest(message: Message, context: Context) -> Message:
    """Move every weight by the partition's own step; evaluate to the mean weight."""
    number = int(context.node_config["partition-id"])
    arrays = message.content["arrays"]
    if message.metadata.message_type == "evaluate":
        metrics = MetricRecord({"num-examples": 10, "mean": float(arrays["w"].numpy().mean())})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)
    moved = {
        k: np.asarray(a.numpy() + (number + 1) / 3, a.numpy().dtype) for k, a in arrays.items()
    }
    content = RecordDict(
        {
            "arrays": ArrayRecord({k: Array(a) for k, a in moved.items()}),
            "metrics": MetricRecord({"num-examples": 10 + number, "loss": float(number)}),
        }
    )
    return Message(content, reply_to=message)


class World:
    """Three owners, an aggregator, a ledger and a store; each test changes what it needs."""

    def __init__(self, folder: Path) -> None:
        self.ledger = FakeLedger()
        self.store = ArtifactFolder(folder / "artifacts")
        self.key = member_key(0)
        self.ledger.admit("aggregator", self.key, wire.ROLE_AGGREGATOR)
        self.homes: dict[str, Path] = {}
        for number, name in enumerate(NAMES):
            key = member_key(10 + number)
            self.ledger.admit(name, key, wire.ROLE_PARTICIPANT)
            self.homes[name] = folder / name
            OwnerHome.create(
                folder / name, name=name, genesis=self.ledger.genesis.raw, key=key, passphrase=None
            )
        self.apps: dict[str, Client] = dict.fromkeys(NAMES, honest)
        self.mods: dict[str, Mod] = dict.fromkeys(NAMES, attest)
        self.seen: list[RoundRecord] = []

    def grid(self) -> FakeGrid:
        return FakeGrid(
            (
                self._client(name),
                {"partition-id": number, flowkeys.NODE_CONFIG_HOME: str(self.homes[name])},
            )
            for number, name in enumerate(NAMES)
        )

    def _client(self, name: str) -> Client:
        return lambda message, context: self.mods[name](message, context, self.apps[name])

    def strategy(self, kind: type[LedgerFedAvg] = LedgerFedAvg, **options: Any) -> LedgerFedAvg:
        policy = Policy(min_clients=2, max_examples_per_client=1000)
        given = {"policy": policy, "on_round": self.seen.append, "threads": 2, **options}
        return kind(self.ledger, key=self.key, store=self.store, **given)

    def said(self, kind: type[Statement]) -> list[Any]:
        """All recorded statements of one kind."""
        return [s for s in self.ledger.statements if isinstance(s, kind)]

    def misbehave(self, attack: Attack, name: str = "client-01", first_round: int = 1) -> None:
        """Let one owner's node falsify what its mod has made, from a round on."""

        def mod(message: Message, context: Context, app: Client) -> Message:
            config = message.content.get("config")
            reply = attest(message, context, app)
            if config is None or int(config["server-round"]) < first_round:
                return reply
            return attack(reply, message, context)

        self.mods[name] = mod
