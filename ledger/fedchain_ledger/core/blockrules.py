"""What makes a block right, given its parent: the one set of checks of validators and auditors.

Split as an auditor needs it: each function looks at one part and lists what is wrong with it, so
that a damaged part does not hide the next. A validator takes the first complaint as final.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedchain_ledger.core.state import ChainState
from fedchain_ledger.core.verification import ForgeryError
from fedchain_proto import merkle
from fedchain_proto.blocks import (
    FIRST_HEIGHT,
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TRANSACTIONS,
    NO_CERTIFICATE,
    Certificate,
    Header,
)
from fedchain_proto.errors import EvidenceError, FedchainError
from fedchain_proto.hashing import short
from fedchain_proto.trust import Genesis

# A new block's time may differ by so much from a validator's clock.
CLOCK_MS = 5_000


class BodyError(EvidenceError):
    """The bytes that came beside a header are not those that it names: the sender lied.

    Says nothing about the block: another sender may have its true body.
    """


class IrreproducibleError(FedchainError):
    """A quorum certified a block that these rules do not reproduce. React: halt, ask people.

    More than f validators lie, or this program differs from theirs: to go on would fork the
    chain in silence.
    """


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a block: code and claim as for a policy rule."""

    code: str
    claim: str
    why: str

    def error(self) -> ForgeryError:
        """As an error to raise."""
        return ForgeryError(self.why, code=self.code, claim=self.claim)


@dataclass(frozen=True, slots=True)
class Parent:
    """What a block's header must follow: the block before it, or the genesis."""

    height: int
    id: bytes
    time_ms: int


def parent_of(state: ChainState) -> Parent:
    """Return what the next block must follow."""
    return Parent(state.height, state.head_id, state.time_ms)


def header_problems(header: Header, parent: Parent | None, genesis: Genesis) -> Iterator[Problem]:
    """List what is wrong with a header on its own and as its parent's child.

    Args:
        header: To judge.
        parent: None if the block before it cannot be read; links are then not judged.
        genesis: The trust root, whose validator set is in force at every height here.
    """
    if header.chain_id != genesis.chain_id:
        yield Problem("wrong-chain", "C2", f"belongs to the chain {short(header.chain_id)}")
    validators = genesis.validators
    if header.validators_hash != validators.hash:
        yield Problem("wrong-validators", "C3", "names another validator set than is in force")
    if header.next_validators_hash != validators.hash:
        yield Problem("wrong-validators", "C3", "changes the validator set, which no rule allows")
    if header.proposer >= validators.n:
        yield Problem("wrong-proposer", "C3", f"proposed by {header.proposer} of {validators.n}")
    if parent is None:
        return
    if header.height != parent.height + 1:
        yield Problem("wrong-height", "C2", f"height {header.height} follows {parent.height}")
    if header.parent_id != parent.id:
        named, real = short(header.parent_id), short(parent.id)
        yield Problem("wrong-parent", "C2", f"follows {named}, but the block before is {real}")
    if header.time_ms <= parent.time_ms:
        yield Problem("wrong-time", "C2", "its time is not after that of the block before")


def size_problems(envelopes: Sequence[bytes]) -> Iterator[Problem]:
    """List which bounds a block's transactions exceed; looked at before anything is hashed."""
    if not envelopes:
        yield Problem("empty-block", "C10", "holds no transaction")
    if len(envelopes) > MAX_BLOCK_TRANSACTIONS:
        yield Problem("too-many", "C10", f"holds more than {MAX_BLOCK_TRANSACTIONS} transactions")
    if sum(map(len, envelopes)) > MAX_BLOCK_BYTES:
        yield Problem("too-large", "C10", f"holds more than {MAX_BLOCK_BYTES} bytes")


def body_problems(header: Header, leaves: Sequence[bytes]) -> Iterator[Problem]:
    """List how a block's transactions, by their leaf hashes, differ from those of its header."""
    if merkle.root(leaves) != header.tx_root:
        yield Problem("wrong-tx-root", "C2", "its transactions are not those of its tx_root")


def log_problems(header: Header, log: merkle.Frontier) -> Iterator[Problem]:
    """List how a header's log differs from `log`, the tree with this block's transactions."""
    if header.log_size != log.size:
        yield Problem("wrong-log-size", "C2", f"log_size {header.log_size}; the log has {log.size}")
    if header.log_root != log.root():
        yield Problem("wrong-log-root", "C2", "log_root is not the root of the log")


def state_problems(header: Header, state: ChainState) -> Iterator[Problem]:
    """List how a header's state differs from `state`, after this block's transactions."""
    if header.state_root != state.root():
        yield Problem("wrong-state-root", "C2", "state_root is not the root of the state")


def link_problems(header: Header, certificate: Certificate | None) -> Iterator[Problem]:
    """List how last_commit_hash differs from the parent's certificate: None for the genesis's."""
    if header.height == FIRST_HEIGHT:
        holds = certificate is None and header.last_commit_hash == NO_CERTIFICATE
    else:
        holds = certificate is not None and header.last_commit_hash == certificate.hash
    if not holds:
        yield Problem(
            "wrong-certificate", "C2", "the certificate of the block before is not the one it names"
        )


def certificate_problems(
    certificate: Certificate, height: int, block_id: bytes, genesis: Genesis
) -> Iterator[Problem]:
    """List what is wrong with a certificate of the block with this height and id."""
    if certificate.height != height or certificate.block_id != block_id:
        named = f"block {certificate.height}, {short(certificate.block_id)}"
        yield Problem("wrong-block", "C3", f"its certificate is for {named}, not {short(block_id)}")
        return
    try:
        certificate.verify(genesis.chain_id, genesis.validators)
    except EvidenceError as error:
        yield Problem("no-quorum", "C3", f"its certificate does not hold: {error}")


def clock_problem(header: Header, parent: Parent, now_ms: int) -> Problem | None:
    """Judge a new block's time by this validator's clock; never done a second time."""
    ahead_parent = parent.time_ms >= now_ms and header.time_ms == parent.time_ms + 1
    if abs(header.time_ms - now_ms) <= CLOCK_MS or ahead_parent:
        return None
    return Problem("wrong-clock", "C10", f"its time is {header.time_ms - now_ms} ms off this clock")
