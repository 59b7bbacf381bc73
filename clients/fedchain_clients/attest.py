"""`attest`: the Flower mod with which a data owner checks what it is asked and signs what it says.

List it first: ``ClientApp(mods=[attest, ...])``. The first mod is the outermost, so what it signs
is what leaves the machine, after any clipping or noise. The app's code stays as it was; it never
sees fedchain's record. Nothing from the server is believed: receipts are checked offline against
the genesis in the owner's folder. Every refusal is an error in plain words, and nothing is signed.
"""

from collections.abc import Callable
from contextvars import ContextVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedchain_clients.home import OwnerHome, home_of
from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.digest import model_digest
from fedchain_proto.errors import EvidenceError, RuleError
from fedchain_proto.flowrecords import hello_preimage, message_instruction
from fedchain_proto.hashing import short
from fedchain_proto.names import printable
from fedchain_proto.npy import read_arrays
from fedchain_proto.receipts import verify_receipt
from fedchain_proto.statements import parse, seal_statement

# An app may list the mod itself and the Grid may wrap it once more: the inner one stands aside.
_ACTIVE: ContextVar[bool] = ContextVar("fedchain_attest_active", default=False)


def attest(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Check a training instruction, let the app train, and sign its update.

    Messages that ask for evaluation or answer a query pass through untouched.

    Args:
        message: From the server.
        context: Flower's; ``node_config["fedchain-home"]`` names the owner's folder.
        call_next: The next mod, or the app.

    Returns:
        The app's reply, with the sealed `UpdateSubmitted` beside its arrays.

    Raises:
        EvidenceError: A receipt, digest or signature from the server does not hold.
        RuleError: The instruction or the app's reply breaks a rule; nothing was signed.
        UsageError: The owner's folder is missing, damaged or locked.
    """
    if _ACTIVE.get() or message.metadata.message_type.split(".")[0] != "train":
        return call_next(message, context)
    home = home_of(context.node_config)
    record = message.content.get(flowkeys.RECORD)
    if not isinstance(record, ConfigRecord):
        raise RuleError(
            "this training message carries no fedchain receipt: its server does not anchor its"
            " rounds; nothing was trained",
            code="no-receipt",
            claim="C5",
        )
    if flowkeys.HELLO in record:
        return _hello(message, record, home)
    opened = _check_instruction(message, record, home)
    # A new RecordDict: several messages may share the one that came.
    message.content = RecordDict({k: v for k, v in message.content.items() if k != flowkeys.RECORD})
    token = _ACTIVE.set(True)
    try:
        reply = call_next(message, context)
    finally:
        _ACTIVE.reset(token)
    if not isinstance(reply, Message) or not reply.has_content():
        return reply  # An error, or rubbish: there is nothing to sign, and the Grid names it.
    reply.content[flowkeys.RECORD] = ConfigRecord(
        {flowkeys.UPDATE: _sign(reply.content, opened, home)}
    )
    return reply


# ---------------------------------------------------------------- before training


def _hello(message: Message, record: ConfigRecord, home: OwnerHome) -> Message:
    """Answer "who are you?" with the name and a signature over the server's nonce."""
    nonce = _bytes(record, flowkeys.HELLO)
    signature = home.key.sign(hello_preimage(home.genesis.chain_id, nonce, home.name))
    answer = ConfigRecord({flowkeys.NAME: home.name, flowkeys.SIGNATURE: signature})
    return Message(RecordDict({flowkeys.RECORD: answer}), reply_to=message)


def _check_instruction(message: Message, record: ConfigRecord, home: OwnerHome) -> wire.RoundOpened:
    """Check all that the owner can check; return the round that it is about to train in."""
    opened = verify_receipt(_bytes(record, flowkeys.ROUND_OPENED), home.genesis).statement
    if not isinstance(opened, wire.RoundOpened):
        raise EvidenceError("the receipt is not for the opening of a round")
    if home.name not in opened.cohort:
        raise RuleError(
            f"{home.name} is not in the cohort of round {opened.round}", code="cohort", claim="C9"
        )
    if model_digest(read_arrays(_only_arrays(message.content))) != opened.base_model:
        raise EvidenceError(
            f"the model that came is not the one that round {opened.round} starts from"
            f" ({short(opened.base_model)})"
        )
    if message.content.metric_records:
        raise RuleError(
            "the instruction carries a MetricRecord, which its digest does not cover",
            code="instruction",
            claim="C5",
        )
    app = _bytes(record, flowkeys.APP) if flowkeys.APP in record else b""
    configs = message.content.config_records
    if message_instruction(message.metadata.message_type, configs, app) != opened.instruction:
        raise EvidenceError(
            f"the configuration that came is not what round {opened.round} told everybody"
        )
    if opened.round > 1:
        _check_previous(record, opened, home)
    latest = home.journal.latest_round(opened.chain_id, opened.run)
    if opened.round < latest:
        raise RuleError(
            f"asked for round {opened.round}, but {home.name} has signed round {latest} already;"
            " rounds never go back",
            code="round-order",
            claim="C10",
        )
    return opened


def _check_previous(record: ConfigRecord, opened: wire.RoundOpened, home: OwnerHome) -> None:
    """Check the round before: it produced this base model, and this owner's part was honoured."""
    before = opened.round - 1
    if flowkeys.CLOSED not in record:
        raise EvidenceError(f"no receipt for the close of round {before} came with this one")
    closed = verify_receipt(_bytes(record, flowkeys.CLOSED), home.genesis).statement
    if (
        not isinstance(closed, wire.RoundClosed)
        or closed.run != opened.run
        or closed.round != before
    ):
        raise EvidenceError(f"the receipt is not for the close of round {before} of this run")
    if closed.model != opened.base_model:
        raise EvidenceError(
            f"round {opened.round} starts from {short(opened.base_model)}, but round {before}"
            f" ended in {short(closed.model)}"
        )
    signed = home.journal.signed(opened.chain_id, opened.run, before)
    stands = {i.participant: i.transaction for i in closed.included}
    named = stands | {e.participant: e.transaction for e in closed.excluded}
    if signed is not None and home.name not in named:
        raise EvidenceError(
            f"my update is missing: {home.name} signed one for round {before}, and its close"
            " neither includes nor excludes it"
        )
    # An exclusion may lack the transaction (it never reached the log); an inclusion never does.
    transaction = named.get(home.name, b"")
    own = signed.tx_id if signed is not None else b""
    if transaction != own and (transaction or home.name in stands):
        raise EvidenceError(
            f"round {before} counts an update of {home.name} that this owner's journal does not"
            " hold: somebody else uses its key, or the journal was lost"
        )


# ---------------------------------------------------------------- after training


def _sign(content: RecordDict, opened: wire.RoundOpened, home: OwnerHome) -> bytes:
    """Sign the app's update and journal it; return the envelope, the same one each time."""
    update = wire.UpdateSubmitted(
        chain_id=opened.chain_id,
        run=opened.run,
        round=opened.round,
        participant=home.name,
        base_model=opened.base_model,
        instruction=opened.instruction,
        update=model_digest(read_arrays(_only_arrays(content))),
        num_examples=_num_examples(content),
    )
    before = home.journal.signed(opened.chain_id, opened.run, opened.round)
    if before is not None and parse(before.payload_type, before.payload) != update:
        raise RuleError(
            f"round {opened.round} has been signed already, for other arrays or another number of"
            " examples; an owner never signs twice",
            code="conflict",
            claim="C11",
        )
    envelope = seal_statement(update, home.key) if before is None else before.raw
    # A journaled one, too: nothing leaves before its entry is durable, whoever wrote that.
    home.journal.record(opened.chain_id, opened.run, opened.round, envelope)
    return envelope


def _num_examples(content: RecordDict) -> int:
    """Read the weight that the app claims for its update."""
    records = [r for r in content.metric_records.values() if flowkeys.NUM_EXAMPLES in r]
    if len(records) != 1:
        raise _unsignable(
            f"exactly one MetricRecord must hold {flowkeys.NUM_EXAMPLES!r}, here {len(records)} do"
        )
    value = records[0][flowkeys.NUM_EXAMPLES]
    if type(value) is not int or not 0 < value < 1 << 64:
        raise _unsignable(
            f"{flowkeys.NUM_EXAMPLES!r} must be a whole number above 0 (an int), not"
            f" {printable(repr(value), 40)}"
        )
    return value


def _only_arrays(content: RecordDict) -> ArrayRecord:
    records = list(content.array_records.values())
    if len(records) != 1:
        raise _unsignable(f"exactly one ArrayRecord is needed, here are {len(records)}")
    return records[0]


def _unsignable(why: str) -> RuleError:
    return RuleError(why, code="unsignable", claim="C4")


def _bytes(record: ConfigRecord, key: str) -> bytes:
    value = record.get(key)
    if not isinstance(value, bytes):
        raise EvidenceError(f"fedchain's record lacks {key!r}")
    return value
