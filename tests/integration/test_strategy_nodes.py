"""Which owner is behind a Flower node, and what becomes of those that prove nothing."""

from pathlib import Path

import pytest
from flwr.app import Context, Message

from fedchain_clients import OwnerHome, attest
from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import RuleError
from fedchain_proto.receipts import VerifiedReceipt
from tests.fakegrid import Client
from tests.fakeledger import member_key
from tests.strategykit import NAMES, Mod, World, initial


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_member_without_a_node_is_not_asked(world: World) -> None:
    """An admitted owner whose node is not there is in the cohort, and out of it by name."""
    world.ledger.admit("client-99", member_key(50), wire.ROLE_PARTICIPANT)
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    (opened,) = world.said(wire.RoundOpened)
    assert list(opened.cohort) == [*NAMES, "client-99"]
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason) == ("client-99", "not-asked")


def test_sampling_leaves_the_others_unasked(world: World) -> None:
    """FedAvg's own sampling decides who is asked; the rest is in the record."""
    strategy = world.strategy(fraction_train=0.67)
    strategy.start(world.grid(), initial(), num_rounds=1)
    (record,) = strategy.rounds
    assert len(record.updates) == 2
    assert [e.reason for e in record.exclusions] == ["not-asked"]


def impostor(message: Message, context: Context, app: Client) -> Message:
    """Say client-00's name with the node's own key."""
    reply = attest(message, context, app)
    if flowkeys.HELLO in message.content[flowkeys.RECORD]:
        reply.content[flowkeys.RECORD][flowkeys.NAME] = "client-00"  # type: ignore[index]
    return reply


def mute(message: Message, context: Context, app: Client) -> Message:
    """Run the app without fedchain's mod."""
    return app(message, context)


def oracle(message: Message, context: Context, app: Client) -> Message:
    """Prove the name for another nonce than the one that was asked about."""
    record = message.content[flowkeys.RECORD]
    if flowkeys.HELLO in record:
        record[flowkeys.HELLO] = bytes(32)  # type: ignore[index]
    return attest(message, context, app)


@pytest.mark.parametrize("mod", [impostor, mute, oracle])
def test_node_that_proves_no_name_is_not_asked(world: World, mod: Mod) -> None:
    """A node is who it can prove to be; its owner is left out as not asked, nobody else is."""
    world.mods["client-01"] = mod
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    (record,) = strategy.rounds
    assert [(e.participant, e.reason) for e in record.exclusions] == [("client-01", "not-asked")]
    assert [u.participant for u in record.updates] == ["client-00", "client-02"]


@pytest.mark.parametrize("signature", [b"", bytes(64), "text"])
def test_garbled_answer_proves_nothing(world: World, signature: object) -> None:
    """An answer of the wrong types or sizes is no answer, and no crash."""

    def garbled(message: Message, context: Context, app: Client) -> Message:
        reply = attest(message, context, app)
        if flowkeys.HELLO in message.content[flowkeys.RECORD]:
            reply.content[flowkeys.RECORD][flowkeys.SIGNATURE] = signature  # type: ignore[index]
        return reply

    world.mods["client-01"] = garbled
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    assert [e.reason for e in strategy.rounds[0].exclusions] == ["not-asked"]


def test_owner_that_was_never_admitted_is_not_asked(world: World, tmp_path: Path) -> None:
    """A name that the ledger does not know is proved to nobody."""
    genesis = world.ledger.genesis.raw
    home, key = tmp_path / "stranger", member_key(60)
    OwnerHome.create(home, name="stranger", genesis=genesis, key=key, passphrase=None)
    world.homes["client-01"] = home
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    (record,) = strategy.rounds
    assert [(e.participant, e.reason) for e in record.exclusions] == [("client-01", "not-asked")]


def test_owner_admitted_after_the_start_is_asked(world: World, tmp_path: Path) -> None:
    """A name that was admitted since the members were read is looked up again."""
    genesis = world.ledger.genesis.raw
    home, key = tmp_path / "late", member_key(61)
    OwnerHome.create(home, name="late", genesis=genesis, key=key, passphrase=None)
    world.homes["client-01"] = home
    real = world.ledger.members

    def members_then_admit() -> list[VerifiedReceipt]:
        found = real()
        if not any(getattr(r.statement, "name", "") == "late" for r in found):
            world.ledger.admit("late", key, wire.ROLE_PARTICIPANT)
        return found

    world.ledger.members = members_then_admit  # type: ignore[method-assign]
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    assert "late" in [u.participant for u in strategy.rounds[0].updates]


def test_two_nodes_of_one_owner_are_asked_once(world: World) -> None:
    """One owner, one instruction: a second node would make it sign twice."""
    world.homes["client-01"] = world.homes["client-00"]
    grid = world.grid()
    strategy = world.strategy()
    strategy.start(grid, initial(), num_rounds=1)
    (record,) = strategy.rounds
    assert [u.participant for u in record.updates] == ["client-00", "client-02"]
    trained = [m for m in grid.sent if flowkeys.ROUND_OPENED in m.content[flowkeys.RECORD]]
    assert len(trained) == 2


def test_federation_without_the_mod_is_told_what_to_do(world: World) -> None:
    """If nobody can prove a name no run is opened, and the error says what is missing."""
    world.mods = dict.fromkeys(NAMES, mute)
    says = r"0 of 3 nodes proved.*KeyError: 'arrays'.*fedchain\.attest must be the first"
    with pytest.raises(RuleError, match=says):
        world.strategy().start(world.grid(), initial())
    assert world.said(wire.RunOpened) == []
