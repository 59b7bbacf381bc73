"""Intake: each way in which a reply can be wrong has its own name, and a right one passes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)

from fedchain._flower import make_message
from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFolder
from fedchain_proto.average import MemoryArrays
from fedchain_proto.digest import model_digest
from fedchain_proto.envelope import decode, seal
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.keys import SigningKey
from fedchain_proto.npy import read_arrays, read_npy, write_npy
from fedchain_proto.statements import seal_statement
from fedchain_server.intake import Intake, RoundFacts
from tests.fakeledger import member_key

ALICE, BOB, EVE = member_key(1), member_key(2), member_key(3)
CHAIN, RUN, INSTRUCTION = bytes([1] * 32), bytes([2] * 32), bytes([3] * 32)
BASE = {"w": np.zeros((2, 3), np.float32), "n": np.zeros((), np.int64)}
GOOD = {"w": np.ones((2, 3), np.float32), "n": np.array(7, np.int64)}
ALICES_NODE, BOBS_NODE = 11, 12


class Desk:
    """An intake for one round of alice and bob, and a writer of replies."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.store = ArtifactFolder(folder)
        opened = wire.RoundOpened(
            chain_id=CHAIN,
            run=RUN,
            round=4,
            base_model=model_digest(BASE),
            instruction=INSTRUCTION,
            cohort=["alice", "bob"],
        )
        keys = {"alice": ALICE.public, "bob": BOB.public, "outside": EVE.public}
        facts = RoundFacts(opened, keys, 1000, MemoryArrays(BASE))
        names = {ALICES_NODE: "alice", BOBS_NODE: "bob"}
        self.intake = Intake(facts, names, self.store, pool, 2)

    def update(self, arrays: dict[str, np.ndarray], **changes: Any) -> wire.UpdateSubmitted:
        fields: dict[str, Any] = {
            "chain_id": CHAIN,
            "run": RUN,
            "round": 4,
            "participant": "alice",
            "base_model": model_digest(BASE),
            "instruction": INSTRUCTION,
            "update": model_digest(arrays),
            "num_examples": 10,
        }
        return wire.UpdateSubmitted(**{**fields, **changes})

    def send(
        self,
        arrays: dict[str, np.ndarray] | None = None,
        *,
        keys: tuple[SigningKey, ...] = (ALICE,),
        node: int = ALICES_NODE,
        **changes: Any,
    ) -> bytes:
        """Send an update, falsified by `changes`; its envelope."""
        said = GOOD if arrays is None else arrays
        envelope = seal_statement(self.update(said, **changes), *keys)
        self.deliver({"arrays": record_of(said)}, envelope, node)
        return envelope

    def deliver(
        self, content: dict[str, Any], envelope: object | None, node: int = ALICES_NODE
    ) -> None:
        records = dict(content)
        if envelope is not None:
            records[flowkeys.RECORD] = ConfigRecord({flowkeys.UPDATE: envelope})  # type: ignore[dict-item]  # wrong ones too
        self.intake.receive(reply(RecordDict(records), node))

    def refusal(self, name: str = "alice") -> tuple[str, str]:
        """Reason and words of what was refused on the envelope."""
        refusal = self.intake.refusals[name]
        assert name not in self.intake.candidates
        return wire.Reason.Name(refusal.reason), refusal.words

    def judgement(self, name: str = "alice") -> str | None:
        """What became of the arrays of an update that stands."""
        found = self.intake.candidates[name].arrays.result(timeout=10)
        return None if found is None else wire.Reason.Name(found.reason)


def record_of(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def reply(body: RecordDict | Error, node: int = ALICES_NODE) -> Message:
    return make_message(Metadata(1, "2", node, 0, "1", "", 0.0, 60.0, "train"), body)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with ThreadPoolExecutor(2) as pool:
        yield Desk(tmp_path / "artifacts", pool)


# ---------------------------------------------------------------- what passes


def test_good_update_stands_and_its_arrays_are_kept(desk: Desk) -> None:
    """An honest update is a candidate, holds, and lies in the store under its digest."""
    envelope = desk.send()
    candidate = desk.intake.candidates["alice"]
    assert candidate.signed.raw == envelope
    assert candidate.update.num_examples == 10
    assert desk.judgement() is None
    assert desk.intake.refusals == {}
    with desk.store.open(model_digest(GOOD)) as kept:
        np.testing.assert_array_equal(kept.arrays()["w"], GOOD["w"])


def test_metrics_are_kept_beside_the_update(desk: Desk) -> None:
    """The client's own figures are kept for display; several records of them are none."""
    metrics = MetricRecord({"loss": 0.5})
    envelope = seal_statement(desk.update(GOOD), ALICE)
    desk.deliver({"arrays": record_of(GOOD), "metrics": metrics}, envelope)
    assert desk.intake.candidates["alice"].metrics == metrics
    other = seal_statement(desk.update(GOOD, participant="bob"), BOB)
    content = {"arrays": record_of(GOOD), "one": metrics, "two": metrics}
    desk.deliver(content, other, BOBS_NODE)
    assert desk.intake.candidates["bob"].metrics is None


def test_largest_allowed_weight_passes(desk: Desk) -> None:
    """The cap itself is allowed."""
    desk.send(num_examples=1000)
    assert desk.judgement() is None


# ---------------------------------------------------------------- the envelope


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chain_id": bytes(32)}, "REASON_WRONG_RUN"),
        ({"run": bytes(32)}, "REASON_WRONG_RUN"),
        ({"round": 3}, "REASON_WRONG_ROUND"),
        ({"round": 5}, "REASON_WRONG_ROUND"),
        ({"base_model": bytes(32)}, "REASON_WRONG_BASE_MODEL"),
        ({"instruction": bytes(32)}, "REASON_WRONG_INSTRUCTION"),
        ({"num_examples": 0}, "REASON_WEIGHT_NOT_POSITIVE"),
        ({"num_examples": 1001}, "REASON_WEIGHT_OVER_CAP"),
        ({"num_examples": 2**64 - 1}, "REASON_WEIGHT_OVER_CAP"),
        ({"participant": "nobody"}, "REASON_UNKNOWN_PARTICIPANT"),
        ({"participant": "outside", "keys": (EVE,)}, "REASON_UNKNOWN_PARTICIPANT"),
        ({"participant": "bob"}, "REASON_BAD_SIGNATURE"),
        ({"keys": (BOB,)}, "REASON_BAD_SIGNATURE"),
        ({"keys": (ALICE, BOB)}, "REASON_BAD_SIGNATURE"),
        ({"participant": "bob", "keys": (BOB,)}, "REASON_MALFORMED_REPLY"),
    ],
)
def test_update_that_is_not_this_rounds_is_refused_by_name(
    desk: Desk, changes: dict[str, Any], reason: str
) -> None:
    """Each field that differs from the round has its own reason, charged to who sent it."""
    desk.send(**changes)
    assert desk.refusal()[0] == reason
    assert "bob" not in desk.intake.refusals
    assert "bob" not in desk.intake.candidates


def test_altered_signature_is_refused_by_name(desk: Desk) -> None:
    """One flipped bit in the signature, and the update is nobody's."""
    raw = bytearray(seal_statement(desk.update(GOOD), ALICE))
    raw[-1] ^= 1
    desk.deliver({"arrays": record_of(GOOD)}, bytes(raw))
    assert desk.refusal()[0] == "REASON_BAD_SIGNATURE"


def test_altered_payload_is_refused_by_name(desk: Desk) -> None:
    """A weight changed after signing does not carry the signature."""
    honest = decode(seal_statement(desk.update(GOOD), ALICE))
    forged = desk.update(GOOD, num_examples=999).SerializeToString(deterministic=True)
    envelope = wire.Envelope(payload_type=honest.payload_type, payload=forged)
    for key_id, signature in honest.signatures:
        envelope.signatures.add(key_id=key_id, signature=signature)
    desk.deliver({"arrays": record_of(GOOD)}, envelope.SerializeToString(deterministic=True))
    assert desk.refusal()[0] == "REASON_BAD_SIGNATURE"


@pytest.mark.parametrize(
    "envelope", [None, b"", b"rubbish", "text", 7, seal("some/type", b"x", [ALICE])]
)
def test_reply_without_a_readable_update_is_malformed(desk: Desk, envelope: object) -> None:
    """No record, no envelope, or one that is none: there is nothing signed."""
    desk.deliver({"arrays": record_of(GOOD)}, envelope)
    assert desk.refusal()[0] == "REASON_MALFORMED_REPLY"


def test_another_statement_is_no_update(desk: Desk) -> None:
    """A genuine statement of another kind does not stand in for an update."""
    other = wire.RunClosed(
        chain_id=CHAIN, run=RUN, outcome=wire.RUN_OUTCOME_ABORTED, model=bytes(32)
    )
    desk.deliver({"arrays": record_of(GOOD)}, seal_statement(other, ALICE))
    assert desk.refusal()[0] == "REASON_MALFORMED_REPLY"


def test_second_update_of_one_sender_is_a_conflict(desk: Desk) -> None:
    """Two different sealed updates of one owner are kept as a pair; the same one again is not."""
    first = desk.send()
    desk.send()
    assert desk.intake.conflicts == {}
    second = desk.send(num_examples=11)
    assert desk.intake.conflicts == {"alice": (first, second)}


def test_reply_of_a_node_that_was_not_asked_is_nobodys(desk: Desk) -> None:
    """A genuine update from an unknown node neither helps nor harms anybody."""
    desk.send(node=99)
    assert desk.intake.candidates == {}
    assert desk.intake.refusals == {}


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (flowkeys.ERROR_FAILED, "REASON_CLIENT_FAILED"),
        (flowkeys.ERROR_OVERRAN, "REASON_CLIENT_OVERRAN"),
        (flowkeys.ERROR_MALFORMED, "REASON_MALFORMED_REPLY"),
        (flowkeys.ERROR_REFUSED, "REASON_CLIENT_REFUSED"),
        (2, "REASON_CLIENT_FAILED"),
    ],
)
def test_error_reply_is_named_by_its_code(desk: Desk, code: int, reason: str) -> None:
    """What the Grid says of a client becomes the reason, with its words made harmless."""
    desk.intake.receive(reply(Error(code, "broken\x1b[31m " + "x" * 1000)))
    named, words = desk.refusal()
    assert named == reason
    assert "broken" in words
    assert "\x1b" not in words
    assert len(words) < 400


def test_empty_reply_is_malformed(desk: Desk) -> None:
    """A reply with neither content nor error says nothing."""
    empty = reply(RecordDict())
    empty.__dict__["_content"] = None  # as Flower inflates a message from hostile bytes
    desk.intake.receive(empty)
    assert desk.refusal()[0] == "REASON_MALFORMED_REPLY"


def test_client_may_say_that_it_declined(desk: Desk) -> None:
    """A client that says why it refused is recorded as that."""
    record = ConfigRecord({flowkeys.REFUSED: "wrong genesis"})
    desk.intake.receive(reply(RecordDict({flowkeys.RECORD: record})))
    named, words = desk.refusal()
    assert named == "REASON_CLIENT_REFUSED"
    assert "wrong genesis" in words


# ---------------------------------------------------------------- the arrays


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"w": np.full((2, 3), np.nan, np.float32)}, "REASON_NOT_FINITE"),
        ({"w": np.full((2, 3), np.inf, np.float32)}, "REASON_NOT_FINITE"),
        ({"w": np.ones((3, 2), np.float32)}, "REASON_WRONG_STRUCTURE"),
        ({"w": np.ones((1,), np.float32)}, "REASON_WRONG_STRUCTURE"),
        ({"w": np.ones((2, 3), np.float64)}, "REASON_WRONG_STRUCTURE"),
        ({"n": np.array([7], np.int64)}, "REASON_WRONG_STRUCTURE"),
        ({"other": np.ones(1, np.float32)}, "REASON_WRONG_STRUCTURE"),
    ],
)
def test_signed_but_faulty_arrays_stand_and_are_kept(
    desk: Desk, changed: dict[str, np.ndarray], reason: str
) -> None:
    """An update whose arrays cannot be averaged still goes to the ledger, and its arrays are kept:
    so the reason can be proved."""
    arrays = {**GOOD, **changed}
    desk.send(arrays)
    assert desk.judgement() == reason
    assert desk.store.has(model_digest(arrays))


@pytest.mark.parametrize(("elements", "kept"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_faulty_arrays_far_larger_than_the_model_are_not_kept(
    desk: Desk, elements: int, kept: bool
) -> None:
    """Proof of a fault costs the server a bounded place: nobody fills its disk by signing rubbish.

    The model has 32 bytes; 8 times that and 1 MiB are kept, and not a byte more.
    """
    arrays = {**GOOD, "rubbish": np.zeros(elements + 7 * 32, np.uint8)}
    desk.send(arrays)
    expected = "REASON_WRONG_STRUCTURE" if kept else "REASON_MALFORMED_REPLY"
    assert desk.judgement() == expected
    assert desk.store.has(model_digest(arrays)) is kept


def test_other_arrays_than_signed_are_a_mismatch_and_are_not_kept(desk: Desk) -> None:
    """What nobody signed proves nothing, and takes no room."""
    desk.deliver({"arrays": record_of(BASE)}, seal_statement(desk.update(GOOD), ALICE))
    assert desk.judgement() == "REASON_DIGEST_MISMATCH"
    assert not desk.store.has(model_digest(BASE))


def test_update_without_arrays_stands_alone(desk: Desk) -> None:
    """A signed update whose arrays were withheld is anchored, and excluded for that."""
    desk.deliver({}, seal_statement(desk.update(GOOD), ALICE))
    assert desk.judgement() == "REASON_ARRAYS_MISSING"


def test_several_array_records_are_malformed(desk: Desk) -> None:
    """Which of two records was signed is nobody's to guess."""
    content = {"one": record_of(GOOD), "two": record_of(GOOD)}
    desk.deliver(content, seal_statement(desk.update(GOOD), ALICE))
    assert desk.judgement() == "REASON_MALFORMED_REPLY"


def npy(array: np.ndarray) -> bytes:
    return Array(array).data


HOSTILE: list[tuple[str, Array]] = [
    ("another serialisation", Array("float32", (6,), "pickle", npy(np.ones(6, np.float32)))),
    ("no file", Array("float32", (6,), "numpy.ndarray", b"")),
    ("a cut file", Array("float32", (6,), "numpy.ndarray", npy(np.ones(6, np.float32))[:-1])),
    ("a longer file", Array("float32", (6,), "numpy.ndarray", npy(np.ones(6, np.float32)) + b"x")),
    ("a lying dtype", Array("float64", (6,), "numpy.ndarray", npy(np.ones(6, np.float32)))),
    ("a lying shape", Array("float32", (2, 3), "numpy.ndarray", npy(np.ones(6, np.float32)))),
    ("complex numbers", Array(np.ones(6, np.complex64))),
    ("text", Array(np.array(["a", "b"]))),
    ("dates", Array(np.zeros(2, "M8[s]"))),
    ("fields", Array(np.zeros(2, [("a", "f4"), ("b", "f4")]))),
    (
        "pickled objects",
        Array(
            "object",
            (1,),
            "numpy.ndarray",
            npy(np.ones(1, np.int64)).replace(b"'<i8'", b"'|O' "),
        ),
    ),
    (
        "a header that is an expression",
        Array(
            "float32",
            (1,),
            "numpy.ndarray",
            npy(np.ones(1, np.float32)).replace(b"(1,)", b"(2-1,)"[:4]),
        ),
    ),
    (
        "a huge shape",
        Array(
            "float32",
            (0, 10**12),
            "numpy.ndarray",
            b"\x93NUMPY\x01\x00\x76\x00"
            + b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1000000000000), }".ljust(117)
            + b"\n",
        ),
    ),
]


@pytest.mark.parametrize(("what", "array"), HOSTILE, ids=[what for what, _ in HOSTILE])
def test_hostile_tensor_is_malformed(desk: Desk, what: str, array: Array) -> None:
    """A tensor that lies about itself, or needs an interpreter, costs its sender the update."""
    desk.deliver({"arrays": ArrayRecord({"w": array})}, seal_statement(desk.update(GOOD), ALICE))
    assert desk.judgement() == "REASON_MALFORMED_REPLY"


@pytest.mark.parametrize("name", ["", "x" * 256, "tab\there", "__metadata__"])
def test_tensor_name_that_no_digest_covers_is_malformed(desk: Desk, name: str) -> None:
    """A name outside the rules is refused, not hashed."""
    desk.deliver({"arrays": record_of({name: GOOD["w"]})}, seal_statement(desk.update(GOOD), ALICE))
    assert desk.judgement() == "REASON_MALFORMED_REPLY"


def test_store_that_cannot_be_written_is_the_servers_error(desk: Desk) -> None:
    """A full or broken disk is not charged to the client."""
    desk.store.root.write_text("a file in the way")
    desk.send()
    with pytest.raises(UsageError, match="cannot keep an update"):
        desk.judgement()


# ---------------------------------------------------------------- the tensor reader


@pytest.mark.parametrize(
    "array",
    [
        np.array(2.5),
        np.ones(3, np.float32),
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype=">f4"),
        np.arange(4, dtype=">i2").reshape(2, 2),
        np.array([True, False]),
        np.arange(3, dtype=np.uint8),
        np.zeros((2, 2, 2), np.float16),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_plain_tensors_are_read_as_they_were_written(array: np.ndarray) -> None:
    """Shape, type and values survive, also through our own writer; the digest sees no layout."""
    read = read_arrays(ArrayRecord({"t": Array(array)}))["t"]
    for copy in (read, read_npy(write_npy(array))):
        assert copy.shape == array.shape
        assert copy.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(copy, array)
    assert model_digest({"t": read}) == model_digest({"t": array})


def test_reading_copies_nothing_and_allows_no_writing() -> None:
    """A tensor is a view of the bytes that came, which nobody can change through it."""
    data = npy(np.ones(1000, np.float32))
    read = read_npy(data)
    assert np.shares_memory(read, np.frombuffer(data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 2


def test_written_file_is_numpys_own() -> None:
    """What we write is what numpy.save writes, for an array in C order."""
    for array in (np.arange(6.0).reshape(2, 3), np.array(1, np.int64), np.zeros((0, 2), np.uint8)):
        assert write_npy(array) == npy(array)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"\x93NUMPY\x02\x00" + bytes(100), bytes(200)])
def test_what_is_no_npy_file_is_refused(data: bytes) -> None:
    """Cut, unknown and other files end in words, not in a crash."""
    with pytest.raises(EvidenceError, match=r"\.npy"):
        read_npy(data)
