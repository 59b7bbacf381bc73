"""The owner's mod: what it refuses to train on, what it signs, and that it signs once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedchain._flower import set_identity
from fedchain_clients import OwnerHome, attest
from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.digest import model_digest
from fedchain_proto.envelope import decode, verify_signatures
from fedchain_proto.errors import EvidenceError, FedchainError, RuleError, UsageError
from fedchain_proto.flowrecords import hello_preimage, message_instruction
from fedchain_proto.keys import verify
from fedchain_proto.npy import read_arrays
from fedchain_proto.statements import parse
from tests.builders import make_test_genesis
from tests.fakeledger import FakeLedger, member_key

AGGREGATOR, ALICE, BOB = member_key(0), member_key(1), member_key(2)
RUN = bytes([9] * 32)
Change = Callable[["Server"], None]


def arrays_of(**named: np.ndarray) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in named.items()})


def digest_of(record: ArrayRecord) -> bytes:
    return model_digest(read_arrays(record))


class Server:
    """What a server sends to alice; each part can be falsified before it does."""

    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger
        self.message_type = "train"
        self.content: dict[str, Any] = {
            "arrays": arrays_of(w=np.arange(3, dtype=np.float32)),
            "config": ConfigRecord({"lr": 0.1, "server-round": 1}),
        }
        self.opened: dict[str, Any] = {
            "chain_id": ledger.chain_id,
            "run": RUN,
            "round": 1,
            "base_model": digest_of(self.content["arrays"]),
            "instruction": self.instruction(),
            "cohort": ["alice", "bob"],
        }
        self.closed: dict[str, Any] | None = None
        self.record: dict[str, Any] = {}

    def instruction(self) -> bytes:
        configs = {k: v for k, v in self.content.items() if isinstance(v, ConfigRecord)}
        return message_instruction(self.message_type, configs)

    def second_round(self, alice: wire.UpdateSubmitted | None, raw: bytes) -> None:
        """Go on to round 2, after a round 1 that included alice's sealed update."""
        included = []
        if alice is not None:
            transaction = decode(raw).tx_id
            included = [wire.Included(participant="alice", transaction=transaction, num_examples=5)]
        names = {entry.participant for entry in included}
        self.content["config"] = ConfigRecord({"lr": 0.1, "server-round": 2})
        self.closed = {
            "chain_id": self.ledger.chain_id,
            "run": RUN,
            "round": 1,
            "outcome": wire.OUTCOME_AVERAGED,
            "base_model": bytes(32),
            "included": included,
            "excluded": [
                wire.Exclusion(participant=name, reason=wire.REASON_CLIENT_FAILED)
                for name in ("alice", "bob")
                if name not in names
            ],
            "total_weight": 5,
            "rule": "fedavg/v1",
            "model": self.opened["base_model"],
        }
        self.opened |= {"round": 2, "instruction": self.instruction()}

    def message(self) -> Message:
        """Record what is to be proved, and write the message."""
        opened = self.ledger.record(wire.RoundOpened(**self.opened), AGGREGATOR)
        record = {flowkeys.ROUND_OPENED: opened}
        if self.closed is not None:
            record[flowkeys.CLOSED] = self.ledger.record(
                wire.RoundClosed(**self.closed), AGGREGATOR
            )
        content = {**self.content, flowkeys.RECORD: ConfigRecord({**record, **self.record})}
        return Message(RecordDict(content), dst_node_id=1, message_type=self.message_type)


class App:
    """A client's app that records what it was shown and answers as told."""

    def __init__(self) -> None:
        self.calls: list[Message] = []
        self.arrays: dict[str, ArrayRecord] = {"arrays": arrays_of(w=np.ones(3, np.float32))}
        self.metrics: dict[str, MetricRecord] = {
            "metrics": MetricRecord({"num-examples": 5, "loss": 0.5})
        }

    def __call__(self, message: Message, context: Context) -> Message:
        self.calls.append(message)
        return Message(RecordDict({**self.arrays, **self.metrics}), reply_to=message)


@pytest.fixture
def ledger() -> FakeLedger:
    set_identity(1, 0)
    return FakeLedger()


@pytest.fixture
def server(ledger: FakeLedger) -> Server:
    return Server(ledger)


@pytest.fixture
def home(tmp_path: Path, ledger: FakeLedger) -> OwnerHome:
    path = tmp_path / "home"
    OwnerHome.create(path, name="alice", genesis=ledger.genesis.raw, key=ALICE, passphrase=None)
    return OwnerHome(path)


def context(home: OwnerHome) -> Context:
    return Context(1, 1, {flowkeys.NODE_CONFIG_HOME: str(home.path)}, RecordDict(), {})


def update_in(reply: Message) -> tuple[bytes, wire.UpdateSubmitted]:
    raw = reply.content[flowkeys.RECORD][flowkeys.UPDATE]
    assert isinstance(raw, bytes)
    signed = decode(raw)
    verify_signatures(signed, {ALICE.key_id: ALICE.public}.get)
    update = parse(signed.payload_type, signed.payload)
    assert isinstance(update, wire.UpdateSubmitted)
    return raw, update


# ---------------------------------------------------------------- what is signed


def test_reply_carries_the_signed_update(server: Server, home: OwnerHome) -> None:
    """The update says all that the round says, the arrays' digest and the app's example count."""
    app = App()
    reply = attest(server.message(), context(home), app)
    _, update = update_in(reply)
    assert update == wire.UpdateSubmitted(
        chain_id=home.genesis.chain_id,
        run=RUN,
        round=1,
        participant="alice",
        base_model=server.opened["base_model"],
        instruction=server.opened["instruction"],
        update=digest_of(app.arrays["arrays"]),
        num_examples=5,
    )
    assert reply.content["arrays"] == app.arrays["arrays"]


def test_app_never_sees_fedchains_record(server: Server, home: OwnerHome) -> None:
    """The app gets what its server meant for it; the message of other clients stays whole."""
    app, message = App(), server.message()
    shared = message.content
    attest(message, context(home), app)
    assert set(app.calls[0].content) == {"arrays", "config"}
    assert flowkeys.RECORD in shared


def test_update_is_on_disk_before_the_reply_is_out(server: Server, home: OwnerHome) -> None:
    """Durable before audible: the journal holds the very bytes that are sent."""
    raw, _ = update_in(attest(server.message(), context(home), App()))
    entry = home.journal.signed(home.genesis.chain_id, RUN, 1)
    assert entry is not None
    assert entry.raw == raw


def test_unwritable_journal_sends_nothing(server: Server, home: OwnerHome) -> None:
    """Without a journal entry no signature leaves the machine."""
    (home.path / "journal").write_text("a file in the way")
    with pytest.raises(UsageError, match="journal"):
        attest(server.message(), context(home), App())


def test_asked_again_the_same_bytes_are_sent(server: Server, home: OwnerHome) -> None:
    """A retry that trains to the same arrays gets the journaled envelope."""
    first, _ = update_in(attest(server.message(), context(home), App()))
    again, _ = update_in(attest(server.message(), context(home), App()))
    assert first == again


def test_what_is_sent_again_is_made_durable_again(
    server: Server, home: OwnerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that wrote the entry may have died before the entry's name was on the disk."""
    attest(server.message(), context(home), App())
    entry = next((home.path / "journal").rglob("*.update"))
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), fsync(fd)))
    attest(server.message(), context(home), App())
    assert entry.parent.stat().st_ino in synced


@pytest.mark.parametrize("what", ["arrays", "examples"])
def test_never_signs_a_second_update_for_a_round(
    server: Server, home: OwnerHome, what: str
) -> None:
    """Other arrays or another weight for a signed round are refused: they would be a conflict."""
    attest(server.message(), context(home), App())
    app = App()
    if what == "arrays":
        app.arrays = {"arrays": arrays_of(w=np.zeros(3, np.float32))}
    else:
        app.metrics = {"metrics": MetricRecord({"num-examples": 6})}
    with pytest.raises(RuleError, match="never signs twice"):
        attest(server.message(), context(home), app)


def test_round_two_follows_its_own_round_one(server: Server, home: OwnerHome) -> None:
    """An owner whose update was included goes on."""
    raw, update = update_in(attest(server.message(), context(home), App()))
    server.second_round(update, raw)
    _, second = update_in(attest(server.message(), context(home), App()))
    assert second.round == 2


def test_owner_that_was_left_out_with_a_reason_goes_on(server: Server, home: OwnerHome) -> None:
    """An exclusion by name is an answer, with or without the transaction."""
    raw, _ = update_in(attest(server.message(), context(home), App()))
    for transaction in (b"", decode(raw).tx_id):
        server.second_round(None, b"")
        assert server.closed is not None
        server.closed["excluded"][0].transaction = transaction
        attest(server.message(), context(home), App())


def test_owner_that_joins_late_starts_in_round_two(server: Server, home: OwnerHome) -> None:
    """An owner with no part in the round before checks that round's output and goes on."""
    server.second_round(None, b"")
    _, update = update_in(attest(server.message(), context(home), App()))
    assert update.round == 2


# ---------------------------------------------------------------- what is refused before training


def _replace_arrays(server: Server) -> None:
    server.content["arrays"] = arrays_of(w=np.zeros(3, np.float32))


def _second_arrays(server: Server) -> None:
    server.content["more"] = arrays_of(v=np.zeros(3, np.float32))


def _hostile_arrays(server: Server) -> None:
    server.content["arrays"]["w"] = Array("float32", (3,), "pickle", b"cos\nsystem\n")


def _replace_config(server: Server) -> None:
    server.content["config"] = ConfigRecord({"lr": 1e9, "server-round": 1})


def _second_config(server: Server) -> None:
    server.content["extra"] = ConfigRecord({"lr": 1e9})


def _message_type(server: Server) -> None:
    server.message_type = "train.other"


def _metrics(server: Server) -> None:
    server.content["metrics"] = MetricRecord({"lr": 1e9})


def _cohort(server: Server) -> None:
    server.opened["cohort"] = ["bob"]


def _no_receipt(server: Server) -> None:
    server.record[flowkeys.ROUND_OPENED] = b""


def _broken_receipt(server: Server) -> None:
    raw = server.ledger.record(wire.RoundOpened(**server.opened), AGGREGATOR)
    server.record[flowkeys.ROUND_OPENED] = raw[:-1] + bytes([raw[-1] ^ 1])


def _text_receipt(server: Server) -> None:
    server.record[flowkeys.ROUND_OPENED] = "a receipt"


def _other_statement(server: Server) -> None:
    ended = wire.RunClosed(
        chain_id=server.ledger.chain_id,
        run=RUN,
        outcome=wire.RUN_OUTCOME_ABORTED,
        model=bytes(32),
    )
    server.record[flowkeys.ROUND_OPENED] = server.ledger.record(ended, AGGREGATOR)


BEFORE: list[tuple[Change, type[FedchainError], str]] = [
    (_replace_arrays, EvidenceError, "not the one that round 1 starts from"),
    (_second_arrays, RuleError, "exactly one ArrayRecord"),
    (_hostile_arrays, EvidenceError, "serialised as 'pickle'"),
    (_replace_config, EvidenceError, "not what round 1 told everybody"),
    (_second_config, EvidenceError, "not what round 1 told everybody"),
    (_message_type, EvidenceError, "not what round 1 told everybody"),
    (_metrics, RuleError, "MetricRecord"),
    (_cohort, RuleError, "not in the cohort"),
    (_no_receipt, EvidenceError, "header|receipt"),
    (_broken_receipt, EvidenceError, "signature|certificate"),
    (_text_receipt, EvidenceError, "lacks 'round-opened'"),
    (_other_statement, EvidenceError, "not for the opening of a round"),
]


@pytest.mark.parametrize(("change", "error", "says"), BEFORE)
def test_untrue_instruction_is_refused_before_training(
    server: Server, home: OwnerHome, change: Change, error: type[FedchainError], says: str
) -> None:
    """Whatever in an instruction is not what the ledger says stops the owner: nothing is trained,
    nothing signed."""
    change(server)
    app = App()
    with pytest.raises(error, match=says):
        attest(server.message(), context(home), app)
    assert app.calls == []
    assert home.journal.latest_round(home.genesis.chain_id, RUN) == 0


def test_message_without_fedchains_record_is_refused(server: Server, home: OwnerHome) -> None:
    """A training message that proves nothing is not trained on: closed by default."""
    message = server.message()
    del message.content[flowkeys.RECORD]
    app = App()
    with pytest.raises(RuleError, match="no fedchain receipt"):
        attest(message, context(home), app)
    assert app.calls == []


def test_receipt_of_another_chain_is_refused(tmp_path: Path, server: Server) -> None:
    """A genuine receipt of a chain that the owner did not pin proves nothing to it."""
    other, _, _ = make_test_genesis(name="another-chain")
    path = tmp_path / "other"
    OwnerHome.create(path, name="alice", genesis=other.raw, key=ALICE, passphrase=None)
    with pytest.raises(EvidenceError, match="another chain"):
        attest(server.message(), context(OwnerHome(path)), App())


def _no_close(server: Server) -> None:
    server.closed = None


def _close_of_another_run(server: Server) -> None:
    assert server.closed is not None
    server.closed["run"] = bytes([8] * 32)


def _close_of_another_round(server: Server) -> None:
    assert server.closed is not None
    server.closed["round"] = 3


def _close_with_another_model(server: Server) -> None:
    assert server.closed is not None
    server.closed["model"] = bytes(32)


def _close_without_me(server: Server) -> None:
    assert server.closed is not None
    server.closed |= {"included": [], "excluded": server.closed["excluded"][-1:]}


def _close_with_anothers_transaction(server: Server) -> None:
    assert server.closed is not None
    server.closed["included"][0].transaction = bytes([5] * 32)


def _excluded_with_anothers_transaction(server: Server) -> None:
    assert server.closed is not None
    out = wire.Exclusion(
        participant="alice", transaction=bytes([5] * 32), reason=wire.REASON_NOT_FINITE
    )
    server.closed |= {"included": [], "excluded": [out, *server.closed["excluded"]]}


def _opened_in_place_of_close(server: Server) -> None:
    opened = wire.RoundOpened(**server.opened)
    server.record[flowkeys.CLOSED] = server.ledger.record(opened, AGGREGATOR)


PREVIOUS: list[tuple[Change, str]] = [
    (_no_close, "no receipt for the close of round 1"),
    (_close_of_another_run, "not for the close of round 1 of this run"),
    (_close_of_another_round, "not for the close of round 1 of this run"),
    (_opened_in_place_of_close, "not for the close of round 1 of this run"),
    (_close_with_another_model, "round 2 starts from"),
    (_close_without_me, "my update is missing"),
    (_close_with_anothers_transaction, "journal does not hold"),
    (_excluded_with_anothers_transaction, "journal does not hold"),
]


@pytest.mark.parametrize(("change", "says"), PREVIOUS)
def test_owner_stops_when_the_round_before_does_not_hold(
    server: Server, home: OwnerHome, change: Change, says: str
) -> None:
    """From round 2 on the owner also checks where the model comes from, and its own part in it."""
    raw, update = update_in(attest(server.message(), context(home), App()))
    server.second_round(update, raw)
    change(server)
    app = App()
    with pytest.raises(EvidenceError, match=says):
        attest(server.message(), context(home), app)
    assert app.calls == []


def test_rounds_never_go_back(server: Server, home: OwnerHome) -> None:
    """Once round 2 is signed, a request for round 1 is refused, though it is genuine."""
    first = server.message()
    server.second_round(None, b"")
    attest(server.message(), context(home), App())
    with pytest.raises(RuleError, match="never go back"):
        attest(first, context(home), App())


def test_inclusion_without_a_journal_entry_stops_the_owner(server: Server, home: OwnerHome) -> None:
    """An update under its name that the owner does not know: a stolen key, or a lost journal."""
    server.second_round(None, b"")
    assert server.closed is not None
    counted = wire.Included(participant="alice", transaction=bytes([5] * 32), num_examples=5)
    server.closed |= {"included": [counted], "excluded": server.closed["excluded"][1:]}
    with pytest.raises(EvidenceError, match="journal does not hold"):
        attest(server.message(), context(home), App())


# ---------------------------------------------------------------- what is refused after training


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"metrics": MetricRecord({"loss": 0.5})},
        {"metrics": MetricRecord({"num-examples": 5.0})},
        {"metrics": MetricRecord({"num-examples": 0})},
        {"metrics": MetricRecord({"num-examples": -3})},
        {"metrics": MetricRecord({"num-examples": 1 << 64})},
        {"metrics": MetricRecord({"num-examples": [5]})},
        {
            "metrics": MetricRecord({"num-examples": 5}),
            "more": MetricRecord({"num-examples": 6}),
        },
    ],
)
def test_unclear_weight_is_not_signed(
    server: Server, home: OwnerHome, metrics: dict[str, MetricRecord]
) -> None:
    """The owner signs a positive whole number of examples that its app names once, or nothing."""
    app = App()
    app.metrics = metrics
    with pytest.raises(RuleError, match="num-examples"):
        attest(server.message(), context(home), app)
    assert home.journal.latest_round(home.genesis.chain_id, RUN) == 0


@pytest.mark.parametrize("count", [0, 2])
def test_reply_needs_exactly_one_array_record(server: Server, home: OwnerHome, count: int) -> None:
    """Of several ArrayRecords none is the update; without one there is none."""
    app = App()
    app.arrays = {f"arrays-{i}": arrays_of(w=np.ones(3, np.float32)) for i in range(count)}
    with pytest.raises(RuleError, match=f"exactly one ArrayRecord is needed, here are {count}"):
        attest(server.message(), context(home), app)


@pytest.mark.parametrize("rubbish", [None, 3, "reply"])
def test_rubbish_from_the_app_is_passed_on_unsigned(
    server: Server, home: OwnerHome, rubbish: Any
) -> None:
    """What is no reply is for the Grid to name; the owner signs nothing."""
    assert attest(server.message(), context(home), lambda m, c: rubbish) is rubbish
    assert home.journal.latest_round(home.genesis.chain_id, RUN) == 0


# ---------------------------------------------------------------- what passes through


@pytest.mark.parametrize("kind", ["evaluate", "query", "evaluate.other"])
def test_other_messages_pass_untouched(home: OwnerHome, ledger: FakeLedger, kind: str) -> None:
    """Evaluation and queries are not training: nothing is checked and nothing signed."""
    message = Message(RecordDict(), dst_node_id=1, message_type=kind)
    app = App()
    reply = attest(message, context(home), app)
    assert app.calls == [message]
    assert flowkeys.RECORD not in reply.content


def test_mod_listed_twice_signs_once(server: Server, home: OwnerHome) -> None:
    """An app that lists the mod itself runs under a Grid that adds it."""
    app = App()
    reply = attest(server.message(), context(home), lambda message, ctx: attest(message, ctx, app))
    update_in(reply)
    assert len(app.calls) == 1


def test_mod_is_whole_again_after_an_error(server: Server, home: OwnerHome) -> None:
    """An app that raises must not switch the mod off for the next message."""

    def broken(message: Message, ctx: Context) -> Message:
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        attest(server.message(), context(home), broken)
    update_in(attest(server.message(), context(home), App()))


def test_node_without_a_home_is_told_so(server: Server) -> None:
    """A node that nobody configured refuses with the remedy."""
    empty = Context(1, 1, {}, RecordDict(), {})
    with pytest.raises(UsageError, match=flowkeys.NODE_CONFIG_HOME):
        attest(server.message(), empty, App())


# ---------------------------------------------------------------- hello


def hello(nonce: object) -> Message:
    record = ConfigRecord({flowkeys.HELLO: nonce})  # type: ignore[dict-item]  # also wrong ones
    return Message(RecordDict({flowkeys.RECORD: record}), dst_node_id=1, message_type="train")


def test_hello_is_answered_with_a_proved_name(home: OwnerHome, ledger: FakeLedger) -> None:
    """The answer proves the name for this nonce and no other; the app is not called."""
    app = App()
    nonce = bytes(range(32))
    answer = attest(hello(nonce), context(home), app).content[flowkeys.RECORD]
    assert isinstance(answer, ConfigRecord)
    assert answer[flowkeys.NAME] == "alice"
    signature = answer[flowkeys.SIGNATURE]
    assert isinstance(signature, bytes)
    chain = home.genesis.chain_id
    verify(ALICE.public, signature, hello_preimage(chain, nonce, "alice"))
    for name, other in (("bob", nonce), ("alice", bytes(32))):
        with pytest.raises(EvidenceError):
            verify(ALICE.public, signature, hello_preimage(chain, other, name))
    assert app.calls == []


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33), "text"])
def test_hello_with_a_nonce_of_another_size_is_refused(
    home: OwnerHome, ledger: FakeLedger, nonce: object
) -> None:
    """The owner's key signs nothing whose length the server chose."""
    with pytest.raises((RuleError, EvidenceError)):
        attest(hello(nonce), context(home), App())
