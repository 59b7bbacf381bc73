"""`LedgerFedAvg` on the real ledger and the real Grid: processes, consensus, SQLite, and an audit.

What the fakes of the other strategy tests stand for is checked here to be so.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message

from fedchain.federation import Federation
from fedchain.grid import InProcessGrid, NodeSpec
from fedchain_clients import OwnerHome, attest
from fedchain_ledger.offline import audit_folder
from fedchain_ledger.service.reading import open_reader
from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import decode
from fedchain_proto.errors import RuleError
from fedchain_proto.statements import Policy, parse, seal_statement
from fedchain_server import LedgerFedAvg
from tests import tiny

Attack = Callable[[wire.UpdateSubmitted], None]
POLICY = Policy(min_clients=2, max_examples_per_client=1000, round_timeout_s=30.0)
BAD = 1  # the partition that misbehaves


def forger(attack: Attack) -> Callable[..., Message]:
    """A mod around `attest` that signs the bad partition's updates anew, falsified."""

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        config = message.content.get("config")
        if config is None or context.node_config["partition-id"] != BAD:
            return reply
        record = reply.content[flowkeys.RECORD]
        signed = decode(record[flowkeys.UPDATE])  # type: ignore[arg-type]
        update = parse(signed.payload_type, signed.payload)
        assert isinstance(update, wire.UpdateSubmitted)
        attack(update)
        home = OwnerHome(str(context.node_config[flowkeys.NODE_CONFIG_HOME]))
        forged = seal_statement(update, home.key)
        reply.content[flowkeys.RECORD] = ConfigRecord({flowkeys.UPDATE: forged})
        return reply

    return mod


class Stack:
    """A federation of three and its grid, both running."""

    def __init__(self, path: Path, federation: Federation, grid: InProcessGrid) -> None:
        self.path = path
        self.federation = federation
        self.grid = grid

    def strategy(self, **options: Any) -> LedgerFedAvg:
        return self.federation.strategy(policy=POLICY, **options)

    def verdict(self) -> tuple[str, list[str]]:
        """What an auditor says, with the claims that fail."""
        report = audit_folder(self.path, depth="full")
        return report.verdict, [c.id for c in report.claims if c.verdict == "FAIL"]


@pytest.fixture
def run_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Start a stack, with the given misdeeds and mods; all of it is stopped at the end."""
    running: list[Any] = []

    def start(
        misdeeds: dict[tuple[int, int], str] | None = None, mods: tuple[Any, ...] = (attest,)
    ) -> Stack:
        federation = Federation(tmp_path / "run", clients=3, validators=4)
        nodes = [
            NodeSpec(number, name, federation.node_config(name))
            for number, name in enumerate(federation.participants, start=1)
        ]
        grid = InProcessGrid(
            tiny.make_app(misdeeds), nodes=nodes, workers=2, seed=3, timeout_s=20.0, mods=mods
        )
        running.append(grid.__enter__())
        running.append(federation.__enter__())
        return Stack(tmp_path / "run", federation, grid)

    yield start
    for thing in reversed(running):
        thing.__exit__(None, None, None)


def test_two_honest_rounds_audit(run_stack: Callable[..., Stack]) -> None:
    """Three owners, two rounds: two blocks a round, every claim holds, C6 among them."""
    stack = run_stack()
    strategy = stack.strategy()
    strategy.start(stack.grid, tiny.initial_arrays(), num_rounds=2)
    assert [[u.participant for u in r.updates] for r in strategy.rounds] == [
        ["client-00", "client-01", "client-02"]
    ] * 2
    assert strategy.rounds[1].height - strategy.rounds[0].height == 2
    assert stack.verdict() == ("PASS", [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"participant": "client-02"}, "bad-signature"),
        ({"round": 9}, "wrong-round"),
        ({"base_model": bytes(32)}, "wrong-base-model"),
        ({"num_examples": 1001}, "weight-over-cap"),
        ({"update": bytes(32)}, "digest-mismatch"),
    ],
)
def test_forger_is_left_out_and_the_history_audits(
    run_stack: Callable[..., Stack], change: dict[str, Any], reason: str
) -> None:
    """The real ledger takes the close that leaves a forger out, and an auditor agrees."""

    def attack(update: wire.UpdateSubmitted) -> None:
        for name, value in change.items():
            setattr(update, name, value)

    stack = run_stack(mods=(forger(attack), attest))
    strategy = stack.strategy()
    strategy.start(stack.grid, tiny.initial_arrays(), num_rounds=1)
    (record,) = strategy.rounds
    assert [(e.participant, e.reason) for e in record.exclusions] == [("client-01", reason)]
    assert [u.participant for u in record.updates] == ["client-00", "client-02"]
    assert stack.verdict() == ("PASS", [])


def test_owner_whose_key_somebody_else_uses_stops(run_stack: Callable[..., Stack]) -> None:
    """An owner that finds an update in the close which it did not sign trains no further."""

    def attack(update: wire.UpdateSubmitted) -> None:
        update.num_examples = 7

    stack = run_stack(mods=(forger(attack), attest))
    strategy = stack.strategy()
    strategy.start(stack.grid, tiny.initial_arrays(), num_rounds=2)
    assert strategy.rounds[0].exclusions == ()  # genuine to all but its owner
    (out,) = strategy.rounds[1].exclusions
    assert (out.participant, out.reason) == ("client-01", "client-refused")
    assert "journal does not hold" in out.words


def test_update_that_an_owner_submitted_itself_is_not_dropped(
    run_stack: Callable[..., Stack],
) -> None:
    """An update that stands in the log although its reply was lost is in the close, by name: the
    ledger refuses the close that forgets it, and the server reads again."""
    stack = run_stack({(BAD, 1): "raise"})
    federation = stack.federation
    strategy = stack.strategy(on_reply=lambda number, name: submit_directly(number))
    sent: list[int] = []

    def submit_directly(number: int) -> None:
        """Stand in for the owner's own process: sign for the open round, and tell the ledger."""
        if number in sent or number != 1:
            return
        sent.append(number)
        opened = strategy_opened(strategy, federation)
        update = wire.UpdateSubmitted(
            chain_id=opened.chain_id,
            run=opened.run,
            round=opened.round,
            participant="client-01",
            base_model=opened.base_model,
            instruction=opened.instruction,
            update=bytes([7] * 32),
            num_examples=5,
        )
        home = OwnerHome(stack.path / "participants" / "client-01")
        (outcome,) = federation.ledger.submit([seal_statement(update, home.key)])
        assert not isinstance(outcome, Exception)

    strategy.start(stack.grid, tiny.initial_arrays(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason) == ("client-01", "arrays-missing")
    assert stack.verdict() == ("PASS", [])


def strategy_opened(strategy: LedgerFedAvg, federation: Federation) -> wire.RoundOpened:
    """The open first round, from the instruction that an owner's mod got for it."""
    path = federation.workdir.ledger / "validator-1.db"
    with open_reader(path) as reader:
        for stored in reader.round_transactions(bytes.fromhex(strategy.run_id), 1):
            signed = decode(stored.envelope)
            said = parse(signed.payload_type, signed.payload)
            if isinstance(said, wire.RoundOpened):
                return said
    raise AssertionError("no round is open")


def test_too_few_updates_end_the_run_and_the_history_audits(
    run_stack: Callable[..., Stack],
) -> None:
    """Below min_clients the error counts and names, and what happened audits."""
    stack = run_stack({(0, 2): "nan", (2, 2): "raise"})
    with pytest.raises(RuleError, match="round 2: 1 of 3 updates held, the run needs 2"):
        stack.strategy().start(stack.grid, tiny.initial_arrays(), num_rounds=3)
    assert stack.verdict() == ("PASS", [])


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_interrupt_leaves_a_history_that_audits(
    run_stack: Callable[..., Stack], where: str
) -> None:
    """Ctrl-C while clients train, or between rounds: the ledger says aborted, and audits."""

    def stop_training(number: int, name: str) -> None:
        if where == "training" and number == 2:
            raise KeyboardInterrupt

    def stop_evaluating(number: int, arrays: ArrayRecord) -> None:
        if where == "evaluation" and number == 2:
            raise KeyboardInterrupt

    stack = run_stack()
    with pytest.raises(KeyboardInterrupt):
        stack.strategy(on_reply=stop_training).start(
            stack.grid, tiny.initial_arrays(), num_rounds=3, evaluate_fn=stop_evaluating
        )
    assert stack.verdict() == ("PASS", [])
