"""One history, replayed block by block as an auditor does: nothing trusted, nothing skipped.

Structure (C2 links and roots, C3 certificates) is judged at every height, past any damage. The
state, and with it the rules, can be followed up to the first block that cannot be applied.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from fedchain_ledger.core import blockrules, policy
from fedchain_ledger.core.blockrules import Parent, Problem
from fedchain_ledger.core.policy import ViolationError
from fedchain_ledger.core.report import Notebook
from fedchain_ledger.core.rounds import RoundAudit
from fedchain_ledger.core.state import ChainState
from fedchain_ledger.core.verification import ForgeryError, VerificationCache, read, verify
from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import FIRST_HEIGHT, Certificate, Header, header_id
from fedchain_proto.envelope import Signed
from fedchain_proto.errors import EvidenceError
from fedchain_proto.statements import Statement
from fedchain_proto.trust import Genesis
from fedchain_proto.votes import NO_BLOCK


@dataclass(frozen=True, slots=True)
class RawBlock:
    """A block without its certificate, as a database gave it."""

    header: bytes
    envelopes: tuple[bytes, ...]


class Replay:
    """A history that one or more databases hold in common.

    Attributes:
        names: Those databases.
        height: Last height judged.
        head_id: Id of the block there, by its bytes.
        state: After the last block that was applied.
        stopped: Height of the first block that could not be applied, None if all could.
    """

    def __init__(
        self, names: Sequence[str], genesis: Genesis, notebook: Notebook, rounds: RoundAudit
    ) -> None:
        self.names = tuple(names)
        self.height = 0
        self.head_id = genesis.chain_id
        self.state = ChainState(genesis)
        self.stopped: int | None = None
        self._genesis = genesis
        self._notebook = notebook
        self._rounds = rounds
        self._cache = VerificationCache()
        self._parent: Parent | None = blockrules.parent_of(self.state)
        self._log: merkle.Frontier | None = self.state.log
        # Of the block before, by database: of one block several certificates are valid.
        self._certificates: dict[str, bytes] = {}

    def fork(self, names: Sequence[str]) -> "Replay":
        """Return the same history for some of its databases, which now part from the others."""
        other = Replay(names, self._genesis, self._notebook, self._rounds)
        other.height, other.head_id, other.stopped = self.height, self.head_id, self.stopped
        other.state = self.state.fork()
        other._cache, other._parent, other._log = self._cache, self._parent, self._log
        other._certificates = {n: c for n, c in self._certificates.items() if n in names}
        return other

    def skip(self, why: str) -> None:
        """Go past a block that cannot be read."""
        height = self.height + 1
        self._find("C2", height, why)
        self._lose(height, NO_BLOCK, {})

    def block(
        self, block: RawBlock, certificates: Mapping[str, bytes], checked: Counter[str]
    ) -> tuple[int, ...] | None:
        """Judge the next block.

        Args:
            block: As all databases of this history hold it.
            certificates: By database.
            checked: Gets, by claim, how many things held.

        Returns:
            Indices of the validators whose certificate makes the block final; None if no
            certificate does.
        """
        height, block_id = self.height + 1, header_id(block.header)
        signers = self._judge_certificates(height, block_id, certificates)
        if signers is not None:
            checked["C3"] += 1
        try:
            header = Header.decode(block.header)
        except EvidenceError as error:
            self._find("C1", height, f"its header: {error}")
            self._lose(height, block_id, certificates)
            return signers
        problems = list(self._structure(height, header, block))
        for problem in problems:
            self._find(problem.claim, height, problem.why)
        linked = self._judge_links(height, header)
        if linked and not any(problem.claim == "C2" for problem in problems):
            checked["C2"] += 1
        self._follow(height, header, block, checked)
        self.height, self.head_id = height, block_id
        self._parent = Parent(height, block_id, header.time_ms)
        self._certificates = dict(certificates)
        return signers

    # ------------------------------------------------------------ structure

    def _judge_certificates(
        self, height: int, block_id: bytes, certificates: Mapping[str, bytes]
    ) -> tuple[int, ...] | None:
        signers = None
        for raw, names in _holders(certificates).items():
            try:
                certificate = Certificate.decode(raw)
            except EvidenceError as error:
                self._find("C3", height, f"its certificate: {error}", names)
                continue
            problems = list(
                blockrules.certificate_problems(certificate, height, block_id, self._genesis)
            )
            for problem in problems:
                self._find(problem.claim, height, problem.why, names)
            if not problems:
                signers = tuple(index for index, _ in certificate.signatures)
        return signers

    def _structure(self, height: int, header: Header, block: RawBlock) -> Iterator[Problem]:
        """Judge links and roots; a damaged block before is not held against this one."""
        yield from blockrules.header_problems(header, self._parent, self._genesis)
        if self._parent is None and header.height != height:
            yield Problem("wrong-height", "C2", f"says height {header.height}")
        yield from blockrules.size_problems(block.envelopes)
        leaves = [merkle.leaf_hash(raw) for raw in block.envelopes]
        body = list(blockrules.body_problems(header, leaves))
        yield from body
        if self._log is None:
            return
        log = self._log
        for leaf in leaves:
            log = log.append(leaf)
        problems = list(blockrules.log_problems(header, log))
        self._log = None if problems else log
        if not body:  # else the log differs because the transactions do, which has been said
            yield from problems

    def _judge_links(self, height: int, header: Header) -> bool:
        """Judge each kept certificate of the block before against the one that is named."""
        holds = True
        kept: list[tuple[Certificate | None, Sequence[str]]] = []
        if height == FIRST_HEIGHT:
            kept.append((None, self.names))
        for raw, names in _holders(self._certificates).items():
            with suppress(EvidenceError):  # one that cannot be read was found at its own height
                kept.append((Certificate.decode(raw), names))
        for certificate, holders in kept:
            for problem in blockrules.link_problems(header, certificate):
                self._find(problem.claim, height, problem.why, holders)
                holds = False
        return holds

    # ------------------------------------------------------------ statements

    def _follow(self, height: int, header: Header, block: RawBlock, checked: Counter[str]) -> None:
        """Apply a block's statements; from the first block that cannot be applied, only read."""
        state = self.state.fork() if self.stopped is None else None
        for raw in block.envelopes:
            if state is None:
                self._read(height, raw, checked)
            elif not self._apply(state, height, header.time_ms, raw, checked):
                state = None
        if state is not None:
            problems = list(blockrules.state_problems(header, state))
            for problem in problems:
                self._find(problem.claim, height, problem.why)
            if not problems and self._log is not None:
                state.log = self._log
                state.advance(header, header_id(block.header))
                self.state = state
                return
        if self.stopped is None:
            self.stopped = height

    def _read(self, height: int, raw: bytes, checked: Counter[str]) -> None:
        try:
            read(raw)
        except ForgeryError as error:
            self._find(error.claim, height, str(error))
        else:
            checked["C1"] += 1

    def _apply(
        self, state: ChainState, height: int, time_ms: int, raw: bytes, checked: Counter[str]
    ) -> bool:
        """Judge one transaction by signature and rules and write it down; whether it holds."""
        try:
            verified = verify(raw, state.key_of, self._cache)
        except ForgeryError as error:
            self._find(error.claim, height, str(error), said=_about(raw))
            return False
        checked["C1"] += 1
        signed, statement = verified.signed, verified.statement
        before = state.runs.get(getattr(statement, "run", b""))
        try:
            policy.apply(state, signed, statement, height=height, time_ms=time_ms, tally=checked)
        except ViolationError as error:
            said = _About.of(signed, statement)
            if error.participant is not None:
                said = replace(said, participant=error.participant)
            self._find(error.claim, height, f"{error} ({error.code})", said=said)
            return False
        self._rounds.applied(height, before, state, verified)
        return True

    # ------------------------------------------------------------ inside

    def _lose(self, height: int, block_id: bytes, certificates: Mapping[str, bytes]) -> None:
        """Go past a block after which links, log and state cannot be followed."""
        self.height, self.head_id = height, block_id
        self._certificates = dict(certificates)
        self._parent = self._log = None
        if self.stopped is None:
            self.stopped = height

    def _find(
        self,
        claim: str,
        height: int,
        why: str,
        names: Sequence[str] | None = None,
        said: "_About | None" = None,
    ) -> None:
        holders = ", ".join(self.names if names is None else names)
        about = _About() if said is None else said
        self._notebook.find(
            claim,
            f"{why} [{holders}]",
            height=height,
            run=about.run,
            round=about.round,
            participant=about.participant,
        )


@dataclass(frozen=True, slots=True)
class _About:
    """Where a statement belongs, as it says itself."""

    run: bytes | None = None
    round: int | None = None
    participant: str | None = None

    @classmethod
    def of(cls, signed: Signed, said: Statement) -> "_About":
        match said:
            case wire.UpdateSubmitted():
                return cls(said.run, said.round, said.participant)
            case wire.RoundOpened() | wire.RoundClosed():
                return cls(said.run, said.round)
            case wire.RunClosed():
                return cls(said.run)
            case wire.RunOpened():
                return cls(signed.tx_id)
            case wire.MemberAdmitted() | wire.MemberRevoked():
                return cls(participant=said.name)
            case wire.Evidence():
                return cls()


def _about(raw: bytes) -> _About:
    """Where an envelope whose signatures do not hold says that it belongs, if it can be read."""
    try:
        return _About.of(*read(raw))
    except ForgeryError:
        return _About()


def _holders(certificates: Mapping[str, bytes]) -> dict[bytes, list[str]]:
    """Group databases by the certificate that they hold."""
    holders: dict[bytes, list[str]] = {}
    for name, raw in certificates.items():
        holders.setdefault(raw, []).append(name)
    return holders
