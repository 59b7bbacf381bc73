"""The way to a ledger for everybody else: submit and read, and get only what has been verified.

Synchronous and thread-safe. It believes no validator: whatever comes back is checked against the
genesis here. Which wire it travels on is the transport's business.
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, TypeAlias

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate, Header
from fedchain_proto.envelope import decode
from fedchain_proto.errors import EvidenceError, RuleError, UnavailableError
from fedchain_proto.hashing import short
from fedchain_proto.receipts import VerifiedReceipt, verify_receipt, verify_receipts
from fedchain_proto.trust import Genesis

Refusal: TypeAlias = RuleError | EvidenceError
"""Why the ledger does not record an envelope: the rules refuse it, or it does not hold."""

DEFAULT_TIMEOUT_S = 30.0
MAX_BATCH = 500
_ATTEMPT_S = 10.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class LedgerTransport(Protocol):
    """One validator's service, as its user sees it. Thread-safe; every call may block.

    Every method raises UnavailableError when there is no answer within `timeout_s`; what was
    asked for may happen all the same.
    """

    def submit(
        self, envelopes: Sequence[bytes], *, flush: bool, timeout_s: float
    ) -> list[bytes | Refusal]:
        """Bring envelopes into the ledger; each one's receipt, or why it is refused.

        One whose statement is committed already gets the receipt of that.
        """
        ...

    def receipt(self, tx_id: bytes, *, timeout_s: float) -> bytes | None:
        """Return a committed transaction's receipt, None if none is committed."""
        ...

    def round_updates(self, run: bytes, number: int, *, timeout_s: float) -> list[bytes]:
        """Return the receipts of the updates that stand in the log for a round, in log order."""
        ...

    def members(self, *, timeout_s: float) -> list[bytes]:
        """Return the receipts of every admission and revocation, in log order."""
        ...

    def head(self, *, timeout_s: float) -> tuple[bytes, bytes] | None:
        """Return the last header and its certificate, None before the first block."""
        ...


class LedgerClient:
    """What clients and the server know of the ledger.

    Args:
        transport: Where to ask.
        genesis: The trust root that every answer is checked against.
    """

    def __init__(self, transport: LedgerTransport, genesis: Genesis) -> None:
        self._transport = transport
        self.genesis = genesis

    def submit(
        self,
        envelopes: Sequence[bytes],
        *,
        flush: bool = True,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> list[VerifiedReceipt | Refusal]:
        """Have envelopes recorded, and wait until they are.

        Equal bytes are recorded once, however often they are submitted: when no answer comes they
        are submitted again until the time is up.

        Args:
            envelopes: Sealed statements; a later one may build on an earlier one.
            flush: Whether a block is cut at once; if not, the validators wait a little for more.
            timeout_s: Seconds for all of them together.

        Returns:
            In the same order, for each its verified receipt, or the error that refuses it.

        Raises:
            UnavailableError: No answer in time; the outcome of some is unknown.
            EvidenceError: A validator answered with a receipt that does not hold.
        """
        deadline = time.monotonic() + timeout_s
        outcomes: list[VerifiedReceipt | Refusal] = []
        for start in range(0, len(envelopes), MAX_BATCH):
            batch = envelopes[start : start + MAX_BATCH]
            answers = self._submit_until(batch, flush, deadline)
            if len(answers) != len(batch):
                raise EvidenceError(
                    f"a validator gave {len(answers)} answers to {len(batch)} envelopes"
                )
            outcomes += self._outcomes(batch, answers)
        return outcomes

    def _submit_until(
        self, batch: Sequence[bytes], flush: bool, deadline: float
    ) -> list[bytes | Refusal]:
        pause = _FIRST_PAUSE_S
        while True:
            left = deadline - time.monotonic()
            try:
                attempt_s = max(0.0, min(left, _ATTEMPT_S))
                return self._transport.submit(batch, flush=flush, timeout_s=attempt_s)
            except UnavailableError as error:
                if deadline - time.monotonic() <= pause:
                    raise UnavailableError(
                        f"no receipt in time, the outcome is unknown: {error}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _outcomes(
        self, envelopes: Sequence[bytes], answers: Sequence[bytes | Refusal]
    ) -> list[VerifiedReceipt | Refusal]:
        raws = [answer for answer in answers if isinstance(answer, bytes)]
        receipts = iter(verify_receipts(raws, self.genesis))
        outcomes: list[VerifiedReceipt | Refusal] = []
        for envelope, answer in zip(envelopes, answers, strict=True):
            if not isinstance(answer, bytes):
                outcomes.append(answer)
                continue
            receipt = next(receipts)
            # The committed envelope may carry other signatures; what it says is the same.
            if receipt.signed.tx_id != decode(envelope).tx_id:
                raise EvidenceError("a validator answered with another transaction's receipt")
            outcomes.append(receipt)
        return outcomes

    def receipt(
        self, tx_id: bytes, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> VerifiedReceipt | None:
        """Fetch a transaction's receipt, None if the validator has none.

        Args:
            tx_id: Transaction id, 32 bytes.
            timeout_s: Seconds to wait.

        Raises:
            UnavailableError: No answer in time.
            EvidenceError: The receipt does not hold, or is another transaction's.
        """
        raw = self._transport.receipt(tx_id, timeout_s=timeout_s)
        if raw is None:
            return None
        receipt = verify_receipt(raw, self.genesis)
        if receipt.signed.tx_id != tx_id:
            raise EvidenceError(f"asked for {short(tx_id)}, got another transaction's receipt")
        return receipt

    def round_updates(
        self, run: bytes, round: int, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[VerifiedReceipt]:
        """Fetch the updates that stand in the log for one round, in log order.

        Each is proved; that none is missing is the validator's word, until the round is audited.

        Args:
            run: Run id, 32 bytes.
            round: Round, from 1.
            timeout_s: Seconds to wait.

        Raises:
            UnavailableError: No answer in time.
            EvidenceError: A receipt does not hold, is not of that round, or is out of order.
        """
        answers = self._transport.round_updates(run, round, timeout_s=timeout_s)
        receipts = self._in_log_order(answers)
        for receipt in receipts:
            said = receipt.statement
            if not isinstance(said, wire.UpdateSubmitted) or (said.run, said.round) != (run, round):
                raise EvidenceError(f"asked for the updates of round {round}, got something else")
        return receipts

    def members(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[VerifiedReceipt]:
        """Fetch every admission and revocation, in log order.

        Each is proved; that none is missing is the validator's word.

        Raises:
            UnavailableError: No answer in time.
            EvidenceError: A receipt does not hold, is of another kind of statement, or is out of
                order: an admission told after its revocation would undo it.
        """
        answers = self._transport.members(timeout_s=timeout_s)
        receipts = self._in_log_order(answers)
        for receipt in receipts:
            if not isinstance(receipt.statement, wire.MemberAdmitted | wire.MemberRevoked):
                raise EvidenceError("asked for the members, got something else")
        return receipts

    def _in_log_order(self, answers: Sequence[bytes]) -> list[VerifiedReceipt]:
        """Verify receipts and, since each proves its place in the log, their order."""
        receipts = verify_receipts(answers, self.genesis)
        if any(one.leaf_index >= next_.leaf_index for one, next_ in pairwise(receipts)):
            raise EvidenceError("a validator's receipts are not in the order of the log")
        return receipts

    def head(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> tuple[int, bytes]:
        """Fetch the last certified height and block id; (0, chain id) before the first block.

        Raises:
            UnavailableError: No answer in time.
            EvidenceError: The head is not certified, or of another chain.
        """
        answer = self._transport.head(timeout_s=timeout_s)
        if answer is None:
            return 0, self.genesis.chain_id
        header = Header.decode(answer[0])
        certificate = Certificate.decode(answer[1])
        if header.chain_id != self.genesis.chain_id:
            raise EvidenceError("a head of another chain")
        if (certificate.height, certificate.block_id) != (header.height, header.id):
            raise EvidenceError("a head with another block's certificate")
        certificate.verify(self.genesis.chain_id, self.genesis.validators)
        return header.height, header.id
