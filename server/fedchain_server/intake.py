"""One round's replies, judged one by one as they arrive. Every refusal has a name.

A reply is judged in two parts. Its envelope decides whether an update stands: one that is validly
signed by a cohort member, for this round, goes to the ledger whatever its arrays look like (a
refusal before the receipt would be free censorship). Its arrays decide whether that update counts.
The costly part, digest and store, runs on threads while other clients still train. Memory does
not grow with the number of clients: arrays are let go once they are in the store.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from threading import BoundedSemaphore

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFolder
from fedchain_proto.average import MemoryArrays, TensorSource, check_update
from fedchain_proto.digest import model_digest
from fedchain_proto.envelope import Signed, decode, verify_signatures
from fedchain_proto.errors import EvidenceError, FedchainError, RuleError, UsageError
from fedchain_proto.hashing import short
from fedchain_proto.keys import key_id
from fedchain_proto.names import printable
from fedchain_proto.npy import read_arrays
from fedchain_proto.statements import parse
from fedchain_server.metrics import only_metrics
from fedchain_server.rounds import Refusal

MAX_DETAIL = 200  # characters of a stranger's words
# Faulty arrays are kept as proof up to this, else one client could fill the disk with them: every
# element of the model in the widest dtype, and room for more.
KEPT_FACTOR = 8
KEPT_SLACK_BYTES = 1 << 20
_LOG = logging.getLogger("fedchain.server")

_OF_ERROR: dict[int, wire.Reason.ValueType] = {
    flowkeys.ERROR_FAILED: wire.REASON_CLIENT_FAILED,
    flowkeys.ERROR_OVERRAN: wire.REASON_CLIENT_OVERRAN,
    flowkeys.ERROR_MALFORMED: wire.REASON_MALFORMED_REPLY,
    flowkeys.ERROR_REFUSED: wire.REASON_CLIENT_REFUSED,
}


@dataclass(frozen=True)
class RoundFacts:
    """What every update of a round is held against.

    Attributes:
        opened: The round as it stands on the ledger.
        keys: Public key (32 bytes) of every participant admitted and not revoked, by name.
        cap: Largest weight that the run allows.
        base: The base model, whose structure binds.
    """

    opened: wire.RoundOpened
    keys: Mapping[str, bytes]
    cap: int
    base: TensorSource


class RefusedError(FedchainError):
    """An update that does not stand; its refusal says why."""

    def __init__(self, reason: wire.Reason.ValueType, detail: str = "") -> None:
        super().__init__(detail)
        self.refusal = Refusal(reason, printable(detail, MAX_DETAIL))


@dataclass(frozen=True)
class Candidate:
    """A validly signed update of this round, whose arrays may still be under judgement.

    Attributes:
        signed: Its envelope.
        update: What the envelope says.
        metrics: The client's own figures, unsigned; None if there are none to use.
        arrays: Comes to None if the arrays are kept and can be averaged, else to the refusal.
    """

    signed: Signed
    update: wire.UpdateSubmitted
    metrics: MetricRecord | None
    arrays: "Future[Refusal | None]"


class Intake:
    """One round's replies.

    Args:
        facts: What they are held against.
        names: Participant of each node that was asked.
        store: Where arrays are kept.
        pool: Threads for digests and writes.
        threads: How many of them; bounds what is in memory, too.

    Attributes:
        candidates: Updates that stand, by participant.
        refusals: Why a participant has none, by participant.
        conflicts: Two envelopes of one participant that must not both exist.
    """

    def __init__(
        self,
        facts: RoundFacts,
        names: Mapping[int, str],
        store: ArtifactFolder,
        pool: Executor,
        threads: int,
    ) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.refusals: dict[str, Refusal] = {}
        self.conflicts: dict[str, tuple[bytes, bytes]] = {}
        self._facts = facts
        self._names = names
        self._store = store
        self._pool = pool
        self._threads = threads
        self._room = BoundedSemaphore(threads + 1)

    def receive(self, reply: Message) -> str | None:
        """Take one reply in.

        Returns:
            The participant whose node sent it; None for a node that was not asked.

        Raises:
            UsageError: The store cannot be written.
        """
        sender = self._names.get(reply.metadata.src_node_id)
        if sender is None:
            _LOG.warning("a reply from node %d, which was not asked", reply.metadata.src_node_id)
            return None
        try:
            self._take(sender, reply)
        except RefusedError as error:
            self.refusals.setdefault(sender, error.refusal)
        return sender

    def _take(self, sender: str, reply: Message) -> None:
        if reply.has_error():
            reason = _OF_ERROR.get(reply.error.code, wire.REASON_CLIENT_FAILED)
            # The in-process Grid names the participant first; so do all who show the reason.
            words = (reply.error.reason or "").removeprefix(f"{sender}: ")
            raise RefusedError(reason, words)
        if not reply.has_content():
            raise RefusedError(wire.REASON_MALFORMED_REPLY, "an empty reply")
        signed, update = read_update(envelope_in(reply.content), sender, self._facts)
        before = self.candidates.get(sender)
        if before is not None:
            if before.signed.tx_id != signed.tx_id:
                self.conflicts[sender] = (before.signed.raw, signed.raw)
            return
        self.candidates[sender] = Candidate(
            signed,
            update,
            only_metrics(reply.content),
            self._judge_later(reply.content, update),
        )

    def _judge_later(
        self, content: RecordDict, update: wire.UpdateSubmitted
    ) -> "Future[Refusal | None]":
        """Judge the arrays on a thread; waits while too many others are in memory."""
        self._room.acquire()
        facts, store, threads = self._facts, self._store, self._threads
        job = self._pool.submit(judge_arrays, content, update, facts, store, threads)
        job.add_done_callback(lambda _: self._room.release())
        return job


def envelope_in(content: RecordDict) -> bytes:
    """Find the sealed update in a reply.

    Raises:
        RefusedError: There is none, or the client says that it declined.
    """
    record = content.get(flowkeys.RECORD)
    if not isinstance(record, ConfigRecord):
        raise RefusedError(
            wire.REASON_MALFORMED_REPLY,
            "no record of fedchain in it; is fedchain.attest the first of the client's mods?",
        )
    refused, envelope = record.get(flowkeys.REFUSED), record.get(flowkeys.UPDATE)
    if isinstance(refused, str):
        raise RefusedError(wire.REASON_CLIENT_REFUSED, refused)
    if not isinstance(envelope, bytes):
        raise RefusedError(wire.REASON_MALFORMED_REPLY, "no sealed update in it")
    return envelope


def read_update(raw: bytes, sender: str, facts: RoundFacts) -> tuple[Signed, wire.UpdateSubmitted]:
    """Read an envelope as `sender`'s update of this round, signature included.

    Raises:
        RefusedError: It is not one; the first reason in the order of the checks below.
    """
    try:
        signed = decode(raw)
        update = parse(signed.payload_type, signed.payload)
    except EvidenceError as error:
        raise RefusedError(wire.REASON_MALFORMED_REPLY, str(error)) from None
    if not isinstance(update, wire.UpdateSubmitted):
        raise RefusedError(wire.REASON_MALFORMED_REPLY, "the envelope holds no update")
    _check_author(signed, update.participant, sender, facts)
    _check_round(update, facts.opened)
    if update.num_examples == 0:
        raise RefusedError(wire.REASON_WEIGHT_NOT_POSITIVE)
    if update.num_examples > facts.cap:
        detail = f"{update.num_examples} examples; the run allows {facts.cap}"
        raise RefusedError(wire.REASON_WEIGHT_OVER_CAP, detail)
    return signed, update


def _check_author(signed: Signed, author: str, sender: str, facts: RoundFacts) -> None:
    """Check that exactly the named participant signed, and that it is who was asked."""
    if author not in facts.keys or author not in facts.opened.cohort:
        raise RefusedError(wire.REASON_UNKNOWN_PARTICIPANT, f"it names {author}")
    public = facts.keys[author]
    try:
        # The only key that is known here is the author's: any other signer is refused.
        verify_signatures(signed, {key_id(public): public}.get)
    except EvidenceError as error:
        raise RefusedError(wire.REASON_BAD_SIGNATURE, str(error)) from None
    if author != sender:
        # Genuine, but brought by somebody else, who has shown no update of its own. The author's
        # own node decides what of the author's is taken in.
        raise RefusedError(wire.REASON_MALFORMED_REPLY, f"it is an update of {author}")


def _check_round(update: wire.UpdateSubmitted, opened: wire.RoundOpened) -> None:
    """Check that an update is for the round that was opened."""
    if update.chain_id != opened.chain_id:
        raise RefusedError(wire.REASON_WRONG_RUN, "it names another chain")
    if update.run != opened.run:
        raise RefusedError(wire.REASON_WRONG_RUN, f"it names run {short(update.run)}")
    if update.round != opened.round:
        raise RefusedError(wire.REASON_WRONG_ROUND, f"it names round {update.round}")
    if update.base_model != opened.base_model:
        raise RefusedError(wire.REASON_WRONG_BASE_MODEL, f"it names {short(update.base_model)}")
    if update.instruction != opened.instruction:
        raise RefusedError(wire.REASON_WRONG_INSTRUCTION)


def judge_arrays(
    content: RecordDict,
    update: wire.UpdateSubmitted,
    facts: RoundFacts,
    store: ArtifactFolder,
    threads: int,
) -> Refusal | None:
    """Keep the arrays that came with an update, and say why it cannot be averaged, if so.

    Only arrays that have the signed digest are kept: others prove nothing. Faulty ones that were
    signed are kept too, so that an auditor can see the fault, unless they are far larger than the
    model.

    Raises:
        UsageError: The store cannot be written.
    """
    records: list[ArrayRecord] = list(content.array_records.values())
    if not records:
        return Refusal(wire.REASON_ARRAYS_MISSING)
    if len(records) > 1:
        return Refusal(wire.REASON_MALFORMED_REPLY, "several ArrayRecords in it")
    try:
        arrays = read_arrays(records[0])
        held = sum(array.nbytes for array in arrays.values())
        base = sum(facts.base.flat(name).nbytes for name in facts.base.names)
        if held > KEPT_FACTOR * base + KEPT_SLACK_BYTES:
            detail = f"{held} bytes of arrays, where the model has {base}"
            return Refusal(wire.REASON_MALFORMED_REPLY, detail)
        digest = model_digest(arrays, threads=threads)
        if digest != update.update:
            detail = f"signed {short(update.update)}, sent {short(digest)}"
            return Refusal(wire.REASON_DIGEST_MISMATCH, detail)
        store.put(arrays, digest)
        reason = check_update(MemoryArrays(arrays), facts.base)
    except (EvidenceError, RuleError) as error:
        return Refusal(wire.REASON_MALFORMED_REPLY, printable(str(error), MAX_DETAIL))
    except OSError as error:
        raise UsageError(f"cannot keep an update in {store.root}: {error.strerror}") from error
    return None if reason is None else Refusal(reason)
