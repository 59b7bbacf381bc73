"""The chain of one validator: its tip, the next blocks that it makes or checks, and its pool.

The application that the consensus core orders (application.py). Whether a block is valid follows
from the tip and the block's bytes, never from the pool: only `propose`, `has_work` and
`overlooked` look at that. No clock, no randomness, no IO: whoever calls brings the time, and
stores what `commit` returns.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fedchain_ledger.core import blockrules, policy
from fedchain_ledger.core.blockrules import BodyError, IrreproducibleError, Problem
from fedchain_ledger.core.pool import Pool, PoolLimits, WaitingRoom
from fedchain_ledger.core.state import ChainState
from fedchain_ledger.core.verification import VerificationCache, Verified, verify
from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TRANSACTIONS,
    NO_CERTIFICATE,
    Certificate,
    Header,
    header_id,
)
from fedchain_proto.errors import EvidenceError, FedchainError, RuleError, UsageError
from fedchain_proto.hashing import short
from fedchain_proto.keys import key_id
from fedchain_proto.trust import Genesis, ValidatorSet

Node = tuple[int, int, bytes]
"""(level, index, hash) of a finished subtree of the log, as merkle.NodeReader names them."""

# Blocks of one height that are remembered as valid: more rounds than one height ever needs.
_MAX_CANDIDATES = 16


@dataclass(frozen=True)
class ValidBlock:
    """A block that follows the tip by every rule.

    Attributes:
        block: As it came.
        header: Its header, decoded.
        block_id: The header's id, 32 bytes.
        transactions: In block order.
        log_nodes: The log's subtrees that this block completes.
        state: The chain's state after it.
    """

    block: wire.Block = field(repr=False)
    header: Header
    block_id: bytes
    transactions: tuple[Verified, ...] = field(repr=False)
    log_nodes: tuple[Node, ...] = field(repr=False)
    state: ChainState = field(repr=False)


@dataclass(frozen=True)
class Committed:
    """A decided block and the certificate that decided it: what a node stores."""

    valid: ValidBlock
    certificate: Certificate


class Chain:
    """One chain from its genesis on. Satisfies `application.Application`.

    Args:
        genesis: The trust root; the new chain has height 0.
        cache: May be shared by all chains of this process.
        limits: Bounds of the pool.
    """

    def __init__(
        self,
        genesis: Genesis,
        *,
        cache: VerificationCache | None = None,
        limits: PoolLimits | None = None,
    ) -> None:
        self.genesis = genesis
        self._cache = VerificationCache() if cache is None else cache
        self._tip = ChainState(genesis)
        self._certificate: Certificate | None = None
        # About 100 bytes a transaction; only tells "recorded already" from "refused".
        self._committed: set[bytes] = set()
        self._candidates: OrderedDict[bytes, ValidBlock] = OrderedDict()
        self._pool = Pool(limits or PoolLimits(), [key_id(key) for key in genesis.admission_keys])
        self._early = WaitingRoom()
        # The tip with all that waits applied to it, in order: what the next one is judged by.
        self._pending = self._tip.fork()
        self._clock_ms = genesis.created_ms
        self._refused: deque[tuple[bytes, RuleError]] = deque(maxlen=16_384)

    @property
    def state(self) -> ChainState:
        """The state at the tip; to be read only."""
        return self._tip

    @property
    def certificate(self) -> Certificate | None:
        """The tip's certificate, None at the genesis."""
        return self._certificate

    @property
    def tip_height(self) -> int:
        """Height of the last decided block; 0 is the genesis."""
        return self._tip.height

    @property
    def tip_proposer(self) -> int:
        """Proposer of the last decided block; 0 at the genesis."""
        return self._tip.proposer

    @property
    def validators(self) -> ValidatorSet:
        """The set in force at the next height."""
        return self._tip.validators

    # ------------------------------------------------------------ what waits

    def admit(self, raw: bytes, *, now_ms: int, hold: bool = False) -> Verified:
        """Let a transaction wait for a block. One that waits already is not let in twice.

        Args:
            raw: An envelope, from anyone.
            now_ms: This validator's clock.
            hold: Keep a genuine one that the rules refuse now for the next few blocks: for what
                other validators pass on, who may be a block ahead. It is refused all the same.

        Raises:
            EvidenceError: It is forged or malformed.
            RuleError: The rules refuse it after what is recorded or waits; code "duplicate" if
                it is recorded.
            UnavailableError: There is no room for it now.
        """
        verified = verify(raw, self._pending.key_of, self._cache)
        tx_id = verified.signed.tx_id
        if tx_id in self._committed:
            raise RuleError("it is recorded already", code="duplicate", claim="C11")
        waiting = self._pool.get(tx_id)
        if waiting is not None:
            return waiting
        try:
            self._enter(verified, self._next_time(now_ms))
        except RuleError:
            if hold:
                self._early.add(verified)
            raise
        return verified

    def has_work(self) -> bool:
        """Whether something waits. All that does was valid when last looked at."""
        return len(self._pool) > 0

    def overlooked(self) -> bool:
        """Whether a valid transaction stood through two decided blocks with room for it."""
        return self._pool.overlooked()

    def expire(self, now_ms: int) -> None:
        """Judge again by the clock: drop what is late now, let in what was too early."""
        self._settle(self._next_time(now_ms), new_block=False)

    def take_refused(self) -> list[tuple[bytes, RuleError]]:
        """Hand out, once, which waiting transactions (by id) were dropped since, and why."""
        refused = list(self._refused)
        self._refused.clear()
        return refused

    # ------------------------------------------------------------ blocks

    def propose(self, now_ms: int, proposer: int) -> wire.Block | None:
        """Make a new block on the tip of what waits, first come first served.

        Args:
            now_ms: This validator's clock.
            proposer: Its index in the set.

        Returns:
            The block, which `validate` will accept; None if nothing valid waits.
        """
        time_ms = self._next_time(now_ms)
        self._settle(time_ms, new_block=False)
        chosen: list[bytes] = []
        size = 0
        for verified in self._pool:
            size += len(verified.signed.raw)
            if len(chosen) == MAX_BLOCK_TRANSACTIONS or size > MAX_BLOCK_BYTES:
                break  # later ones may build on this one: none overtakes it
            chosen.append(verified.signed.raw)
        return self._make(chosen, time_ms, proposer) if chosen else None

    def validate(self, block: wire.Block, *, proposer: int | None, now_ms: int | None) -> bytes:
        """Check a block on the tip whole, and remember it for `commit`.

        Args:
            block: From anyone.
            proposer: The leader of its round if it is new; None if a quorum has validated it.
            now_ms: This validator's clock if it is new, else None.

        Returns:
            Its id, 32 bytes.

        Raises:
            BodyError: What came beside the header is not what the header names.
            EvidenceError: The block is malformed, forged or does not follow the tip.
            RuleError: The rules refuse one of its transactions.
        """
        header, leaves = self._read(block)
        parent = blockrules.parent_of(self._tip)
        if proposer is not None and header.proposer != proposer:
            raise EvidenceError(f"names proposer {header.proposer}; the leader is {proposer}")
        if now_ms is not None:
            problem = blockrules.clock_problem(header, parent, now_ms)
            if problem is not None:
                raise problem.error()
        block_id = header_id(block.header)
        valid = self._candidates.get(block_id)
        if valid is None:
            _raise_first(blockrules.header_problems(header, parent, self.genesis))
            valid = self._replay(block, header, leaves)
            self._remember(valid)
        self._candidates.move_to_end(block_id)
        return block_id

    def commit(self, block_id: bytes, certificate: Certificate) -> Committed:
        """Make a block that `validate` accepted the new tip, and look through the pool again.

        Args:
            block_id: As `validate` returned it.
            certificate: Of this block; its signatures have been verified.

        Raises:
            UsageError: It was not validated on this tip, or the certificate is another block's.
        """
        valid = self._candidates.get(block_id)
        if valid is None:
            raise UsageError(f"block {short(block_id)} was not validated on this tip")
        if (certificate.block_id, certificate.height) != (block_id, valid.header.height):
            raise UsageError(f"not a certificate of block {short(block_id)}")
        self._candidates.clear()
        self._tip, self._certificate = valid.state, certificate
        size = 0
        for verified in valid.transactions:
            self._committed.add(verified.signed.tx_id)
            self._pool.remove(verified.signed.tx_id)
            size += len(verified.signed.raw)
        self._settle(self._next_time(self._clock_ms), new_block=True)
        if len(valid.transactions) < MAX_BLOCK_TRANSACTIONS:
            self._pool.pass_over(MAX_BLOCK_BYTES - size)
        return Committed(valid, certificate)

    def restore(self, block: wire.Block, certificate: Certificate) -> Committed:
        """Take a decided block from a database or a peer: certificate, rules, new tip.

        Raises:
            EvidenceError: The certificate does not hold, or (BodyError) what came beside the
                header is not what it names: the source lies or is damaged.
            IrreproducibleError: The quorum's block breaks the rules.
        """
        height, block_id = self.tip_height + 1, header_id(block.header)
        _raise_first(blockrules.certificate_problems(certificate, height, block_id, self.genesis))
        try:
            self.validate(block, proposer=None, now_ms=None)
        except BodyError:
            raise
        except FedchainError as error:
            raise IrreproducibleError(
                f"block {height}, {short(block_id)}, is certified and breaks the rules: {error}"
            ) from error
        return self.commit(block_id, certificate)

    # ------------------------------------------------------------ inside

    def _next_time(self, now_ms: int) -> int:
        """Earliest header time of the next block; remembers the clock for when none is at hand."""
        self._clock_ms = now_ms
        return max(self._tip.time_ms + 1, now_ms)

    def _enter(self, verified: Verified, time_ms: int) -> None:
        """Let one into the pool, or raise RuleError or UnavailableError."""
        self._pool.check_room(verified)
        self._apply(self._pending, verified, time_ms)
        self._pool.add(verified)

    def _settle(self, time_ms: int, *, new_block: bool) -> None:
        """Judge all that waits again, on this tip and at this time."""
        self._pending = self._tip.fork()
        for verified in self._pool:
            try:
                self._apply(self._pending, verified, time_ms)
            except RuleError as error:
                self._pool.remove(verified.signed.tx_id)
                self._refused.append((verified.signed.tx_id, error))
        self._early.retry(lambda early: self._enter_early(early, time_ms), new_block=new_block)

    def _enter_early(self, verified: Verified, time_ms: int) -> None:
        tx_id = verified.signed.tx_id
        if tx_id not in self._committed and self._pool.get(tx_id) is None:
            self._enter(verified, time_ms)

    def _make(self, envelopes: Sequence[bytes], time_ms: int, proposer: int) -> wire.Block:
        """Build the block of envelopes that apply in this order at this time."""
        leaves = [merkle.leaf_hash(raw) for raw in envelopes]
        state, transactions, nodes = self._execute(envelopes, leaves, time_ms)
        certificate = self._certificate
        header = Header(
            chain_id=self.genesis.chain_id,
            height=self.tip_height + 1,
            parent_id=self._tip.head_id,
            time_ms=time_ms,
            proposer=proposer,
            tx_root=merkle.root(leaves),
            log_size=state.log.size,
            log_root=state.log.root(),
            validators_hash=self.validators.hash,
            next_validators_hash=self.validators.hash,
            last_commit_hash=NO_CERTIFICATE if certificate is None else certificate.hash,
            state_root=state.root(),
        )
        block = wire.Block(
            header=header.encode(),
            envelopes=envelopes,
            parent_certificate=b"" if certificate is None else certificate.encode(),
        )
        state.advance(header, header.id)
        self._remember(ValidBlock(block, header, header.id, transactions, nodes, state))
        return block

    def _read(self, block: wire.Block) -> tuple[Header, list[bytes]]:
        """Check that a block's body is its header's; return the header and the leaf hashes."""
        header = Header.decode(block.header)
        _raise_body(blockrules.size_problems(block.envelopes))
        leaves = [merkle.leaf_hash(raw) for raw in block.envelopes]
        _raise_body(blockrules.body_problems(header, leaves))
        certificate = _parent_certificate(block.parent_certificate)
        _raise_body(blockrules.link_problems(header, certificate))
        if certificate is not None and certificate != self._certificate:
            tip = self._tip
            _raise_first(
                blockrules.certificate_problems(certificate, tip.height, tip.head_id, self.genesis)
            )
        return header, leaves

    def _replay(self, block: wire.Block, header: Header, leaves: Sequence[bytes]) -> ValidBlock:
        """Apply a block's transactions to a fork of the tip; compare what its header says."""
        state, transactions, nodes = self._execute(block.envelopes, leaves, header.time_ms)
        _raise_first(blockrules.log_problems(header, state.log))
        _raise_first(blockrules.state_problems(header, state))
        block_id = header_id(block.header)
        state.advance(header, block_id)
        return ValidBlock(block, header, block_id, transactions, nodes, state)

    def _execute(
        self, envelopes: Sequence[bytes], leaves: Sequence[bytes], time_ms: int
    ) -> tuple[ChainState, tuple[Verified, ...], tuple[Node, ...]]:
        """Apply envelopes, in order, to a fork of the tip; also grow its log.

        Raises:
            EvidenceError: One is malformed or forged.
            RuleError: The rules refuse one.
        """
        state = self._tip.fork()
        transactions: list[Verified] = []
        nodes: list[Node] = []
        for raw, leaf in zip(envelopes, leaves, strict=True):
            verified = verify(raw, state.key_of, self._cache)
            self._apply(state, verified, time_ms)
            transactions.append(verified)
            nodes += merkle.stored_nodes(state.log, leaf)
            state.log = state.log.append(leaf)
        return state, tuple(transactions), tuple(nodes)

    def _apply(self, state: ChainState, verified: Verified, time_ms: int) -> None:
        """Judge one transaction of the next block and write it down in `state`, or RuleError."""
        height = self.tip_height + 1
        policy.apply(state, verified.signed, verified.statement, height=height, time_ms=time_ms)

    def _remember(self, valid: ValidBlock) -> None:
        self._candidates[valid.block_id] = valid
        if len(self._candidates) > _MAX_CANDIDATES:
            self._candidates.popitem(last=False)


def _parent_certificate(raw: bytes) -> Certificate | None:
    if not raw:
        return None
    try:
        return Certificate.decode(raw)
    except EvidenceError as error:
        raise BodyError(f"the parent's certificate: {error}") from error


def _raise_first(problems: Iterator[Problem]) -> None:
    for problem in problems:
        raise problem.error()


def _raise_body(problems: Iterator[Problem]) -> None:
    for problem in problems:
        raise BodyError(problem.why)
