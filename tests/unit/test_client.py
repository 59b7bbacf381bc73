"""The ledger's client believes no validator, and never changes the bytes that it retries."""

from collections.abc import Callable, Sequence

import pytest

from fedchain_ledger.client import LedgerClient, Refusal
from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate
from fedchain_proto.errors import EvidenceError, RuleError, UnavailableError
from fedchain_proto.receipts import VerifiedReceipt, make_receipt
from tests.unit.chainkit import ALICE, BOB, MODEL_0, Consortium, Scribe, tx_id

CONSORTIUM = Consortium()


class Ledger:
    """A validator that answers from a chain made by hand; tests bend single answers.

    Attributes:
        submitted: Every batch that came, and whether it asked for a flush.
        fail: Raised for so many submissions, one after the other.
    """

    def __init__(self) -> None:
        self.scribe = Scribe(CONSORTIUM)
        self.submitted: list[tuple[list[bytes], bool]] = []
        self.fail: list[UnavailableError] = []
        self.bend: Callable[[list[bytes | Refusal]], list[bytes | Refusal]] = lambda answers: (
            answers
        )
        self.receipts: dict[bytes, bytes] = {}
        self.updates: list[bytes] = []
        self.refuse: dict[bytes, Refusal] = {}
        self.tip: tuple[bytes, bytes] | None = None

    def write(self, *envelopes: bytes) -> list[bytes]:
        """Decide one block of these; their receipts."""
        before = self.scribe.chain.state.log.size
        committed = self.scribe.write(*envelopes)
        stored = self.scribe.blocks[-1]
        leaves = [merkle.leaf_hash(raw) for block in self.scribe.blocks for raw in block.envelopes]
        receipts = []
        for position, verified in enumerate(committed.valid.transactions):
            path = merkle.path(leaves, before + position)
            raw = make_receipt(verified.signed.raw, path, stored.header, stored.certificate)
            self.receipts[verified.signed.tx_id] = raw
            receipts.append(raw)
        self.tip = stored.header, stored.certificate
        return receipts

    def submit(
        self, envelopes: Sequence[bytes], *, flush: bool, timeout_s: float
    ) -> list[bytes | Refusal]:
        self.submitted.append((list(envelopes), flush))
        if self.fail:
            raise self.fail.pop()
        good = [raw for raw in envelopes if raw not in self.refuse]
        receipts = dict(zip(good, self.write(*good), strict=True)) if good else {}
        return self.bend([self.refuse.get(raw) or receipts[raw] for raw in envelopes])

    def receipt(self, tx_id: bytes, *, timeout_s: float) -> bytes | None:
        return self.receipts.get(tx_id)

    def round_updates(self, run: bytes, number: int, *, timeout_s: float) -> list[bytes]:
        return self.updates

    def members(self, *, timeout_s: float) -> list[bytes]:
        return list(self.receipts.values())

    def head(self, *, timeout_s: float) -> tuple[bytes, bytes] | None:
        return self.tip


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def client(ledger: Ledger) -> LedgerClient:
    return LedgerClient(ledger, CONSORTIUM.genesis)


# ---------------------------------------------------------------- submit


def test_submission_returns_verified_receipts_in_order(
    ledger: Ledger, client: LedgerClient
) -> None:
    """Each envelope's receipt, in order; a refused one keeps its place and its reason."""
    envelopes = CONSORTIUM.admissions()
    late = RuleError("too late", code="late", claim="C10")
    ledger.refuse = {envelopes[1]: late}
    outcomes = client.submit(envelopes)
    assert outcomes[1] is late
    receipts = [outcome for outcome in outcomes if isinstance(outcome, VerifiedReceipt)]
    assert [receipt.signed.raw for receipt in receipts] == [
        raw for raw in envelopes if raw != envelopes[1]
    ]
    assert ledger.submitted[0][1] is True
    client.submit([CONSORTIUM.seal(CONSORTIUM.run_opened())], flush=False)
    assert ledger.submitted[1][1] is False


def test_nothing_to_submit_is_nothing(ledger: Ledger, client: LedgerClient) -> None:
    """No envelope, no question."""
    assert client.submit([]) == []
    assert ledger.submitted == []


def test_no_answer_is_retried_with_equal_bytes(ledger: Ledger, client: LedgerClient) -> None:
    """While there is time the same bytes are submitted again, and then are recorded once."""
    ledger.fail = [UnavailableError("busy"), UnavailableError("busy")]
    envelopes = CONSORTIUM.admissions()
    outcomes = client.submit(envelopes)
    assert all(isinstance(outcome, VerifiedReceipt) for outcome in outcomes)
    assert ledger.submitted == [(envelopes, True)] * 3


def test_no_answer_in_time_is_unknown(ledger: Ledger, client: LedgerClient) -> None:
    """When the time is up the caller learns that the outcome is unknown, and why."""
    ledger.fail = [UnavailableError("nobody home")] * 1000
    with pytest.raises(UnavailableError, match="outcome is unknown: nobody home"):
        client.submit(CONSORTIUM.admissions(), timeout_s=0.3)
    assert 1 < len(ledger.submitted) < 10


def test_long_batches_are_split(client: LedgerClient, ledger: Ledger) -> None:
    """More envelopes than one submission takes go in several, in order."""
    envelopes = [CONSORTIUM.seal(CONSORTIUM.admitted(f"owner-{i}")) for i in range(501)]
    outcomes = client.submit(envelopes)
    assert [len(batch) for batch, _ in ledger.submitted] == [500, 1]
    assert all(isinstance(outcome, VerifiedReceipt) for outcome in outcomes)


def flip(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    "bend",
    [
        lambda answers: [flip(answers[0]), *answers[1:]],
        lambda answers: [answers[0], flip(answers[1]), *answers[2:]],
        lambda answers: [answers[1], answers[0], *answers[2:]],
        lambda answers: answers[:-1],
        lambda answers: [b"", *answers[1:]],
        lambda answers: [*answers, answers[0]],
    ],
    ids=["certificate", "second-certificate", "swapped", "missing", "empty", "surplus"],
)
def test_receipt_that_does_not_hold_is_no_answer(
    ledger: Ledger, client: LedgerClient, bend: Callable[[list[bytes]], list[bytes]]
) -> None:
    """A forged, swapped or missing receipt is never taken for success, nor for a refusal."""
    ledger.bend = bend  # type: ignore[assignment]  # only receipts come here
    with pytest.raises(EvidenceError):
        client.submit(CONSORTIUM.admissions())


def test_receipt_of_another_chain_is_refused(ledger: Ledger) -> None:
    """A receipt that holds on another chain proves nothing on this one."""
    other = LedgerClient(ledger, Consortium(label="another").genesis)
    with pytest.raises(EvidenceError, match="another chain"):
        other.submit(CONSORTIUM.admissions())


# ---------------------------------------------------------------- read


def test_receipt_is_that_of_the_transaction(ledger: Ledger, client: LedgerClient) -> None:
    """A receipt that is fetched is the asked transaction's, or none."""
    client.submit(CONSORTIUM.admissions())
    first, second = list(ledger.receipts)[:2]
    found = client.receipt(first)
    assert found is not None
    assert found.signed.tx_id == first
    assert client.receipt(bytes(32)) is None
    ledger.receipts[first] = ledger.receipts[second]
    with pytest.raises(EvidenceError, match="another transaction's receipt"):
        client.receipt(first)


def test_round_updates_are_of_that_round(ledger: Ledger, client: LedgerClient) -> None:
    """Every update is proved and is of the asked run and round; anything else is refused."""
    client.submit(CONSORTIUM.admissions())
    opened = CONSORTIUM.run_opened()
    run = tx_id(opened)
    first = [CONSORTIUM.seal(one) for one in (opened, CONSORTIUM.round_opened(run, 1, MODEL_0))]
    opening = [outcome for outcome in client.submit(first) if isinstance(outcome, VerifiedReceipt)]
    updates = [CONSORTIUM.seal(CONSORTIUM.update(run, name)) for name in (BOB, ALICE)]
    ledger.updates = ledger.write(*updates)
    found = client.round_updates(run, 1)
    assert [receipt.signed.raw for receipt in found] == updates
    said = [receipt.statement for receipt in found]
    assert all(isinstance(one, wire.UpdateSubmitted) for one in said)
    for run_id, number in ((run, 2), (bytes(32), 1)):
        with pytest.raises(EvidenceError, match="got something else"):
            client.round_updates(run_id, number)
    ledger.updates = [opening[1].raw]
    with pytest.raises(EvidenceError, match="got something else"):
        client.round_updates(run, 1)


def test_members_are_admissions_and_revocations(ledger: Ledger, client: LedgerClient) -> None:
    """Who was let in, and out again, each proved; any other statement among them is refused."""
    assert client.members() == []
    client.submit(CONSORTIUM.admissions())
    client.submit([CONSORTIUM.seal(CONSORTIUM.revoked(BOB))])
    said = [receipt.statement for receipt in client.members()]
    assert [type(one) for one in said] == [wire.MemberAdmitted] * 4 + [wire.MemberRevoked]
    ledger.write(CONSORTIUM.seal(CONSORTIUM.run_opened()))
    with pytest.raises(EvidenceError, match="got something else"):
        client.members()


@pytest.mark.parametrize("told", ["reversed", "twice"])
def test_receipts_out_of_order_are_refused(ledger: Ledger, client: LedgerClient, told: str) -> None:
    """Each receipt proves its place: no validator lets somebody in again by telling it last."""
    client.submit(CONSORTIUM.admissions())
    client.submit([CONSORTIUM.seal(CONSORTIUM.revoked(BOB))])
    honest = list(ledger.receipts.items())
    ledger.receipts = dict(reversed(honest))
    if told == "twice":
        ledger.receipts = {**dict(honest), b"once more": honest[0][1]}
    with pytest.raises(EvidenceError, match="order of the log"):
        client.members()
    ledger.updates = list(ledger.receipts.values())
    with pytest.raises(EvidenceError, match="order of the log"):
        client.round_updates(bytes(32), 1)


def test_head_is_certified(ledger: Ledger, client: LedgerClient) -> None:
    """The head is the genesis, or a header with its own certificate; nothing else is believed."""
    assert client.head() == (0, CONSORTIUM.genesis.chain_id)
    client.submit(CONSORTIUM.admissions())
    assert client.head() == (1, ledger.scribe.chain.state.head_id)
    first = ledger.tip
    assert first is not None
    ledger.write(CONSORTIUM.seal(CONSORTIUM.run_opened()))
    assert ledger.tip is not None
    for header, certificate in (
        (ledger.tip[0], first[1]),
        (ledger.tip[0], flip(ledger.tip[1])),
        (flip(ledger.tip[0]), ledger.tip[1]),
        (b"", ledger.tip[1]),
        (ledger.tip[0], b""),
    ):
        ledger.tip = header, certificate
        with pytest.raises(EvidenceError):
            client.head()


def test_head_with_too_few_signatures_is_refused(ledger: Ledger, client: LedgerClient) -> None:
    """Two signatures of four validators are no quorum."""
    client.submit(CONSORTIUM.admissions())
    assert ledger.tip is not None
    whole = Certificate.decode(ledger.tip[1])
    short = Certificate(
        whole.height, whole.round, whole.block_id, whole.validators_hash, whole.signatures[:2]
    )
    ledger.tip = ledger.tip[0], short.encode()
    with pytest.raises(EvidenceError, match="quorum"):
        client.head()
