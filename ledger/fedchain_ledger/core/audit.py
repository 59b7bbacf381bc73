"""The offline audit: every database replayed from the pinned genesis, claim by claim.

Trusts the genesis and nothing else; the rules are the validators' own (policy.py, blockrules.py).
Databases that agree byte for byte are replayed once together, and part where they differ, so that
one flipped bit in one of them is found, and named with it. No clock, no network, no torch.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

from fedchain_ledger.core.arrays import ArrayAudit
from fedchain_ledger.core.claims import CLAIMS, NOTHING, REPLAYED, Claim
from fedchain_ledger.core.replay import RawBlock, Replay
from fedchain_ledger.core.report import ClaimResult, Depth, Notebook, Report
from fedchain_ledger.core.rounds import RoundAudit, open_rounds
from fedchain_proto.artifact import ArtifactReader
from fedchain_proto.errors import FedchainError, UsageError
from fedchain_proto.hashing import short
from fedchain_proto.names import printable
from fedchain_proto.trust import Genesis

# A database of which so many blocks cannot be read is not read further.
_MAX_UNREADABLE = 100
_MAX_SOURCE_NAME = 80

Progress = Callable[[int, int], None]
"""Called with (height judged, highest height)."""


class ChainSource(Protocol):
    """One validator's database, or anything else that holds a chain."""

    @property
    def name(self) -> str:
        """For people: which database it is."""

    def head_height(self) -> int:
        """Height of its last block, 0 if it has none; FedchainError if it cannot say."""

    def block(self, height: int) -> tuple[bytes, Sequence[bytes], bytes]:
        """Header, envelopes and certificate as stored; FedchainError if they cannot be read."""


def audit(
    sources: Sequence[ChainSource],
    genesis: Genesis,
    *,
    artifacts: ArtifactReader | None = None,
    depth: Depth = "chain",
    on_progress: Progress | None = None,
) -> Report:
    """Replay a chain from its genesis and judge every claim that can be judged.

    Args:
        sources: At least one, of distinct names; most often one per validator.
        genesis: The trust root, which the auditor got on another way.
        artifacts: Digest -> opened, unverified artifact; for depth full.
        depth: "chain", or "full" to recompute every round's model as well.
        on_progress: Told of every height that has been judged.

    Returns:
        The report. What is wrong with the history stands in it; nothing of that is raised.

    Raises:
        UsageError: No source, two of one name, an unknown depth, or full without artifacts.
        UnavailableError: This process may not open as many files as a round has updates.
        FedchainError: This process cannot compute averages exactly (subnormals are flushed).
    """
    _check_arguments(sources, artifacts, depth)
    notebook = Notebook()
    arrays = ArrayAudit(artifacts, notebook) if artifacts and depth == "full" else None
    rounds = RoundAudit(notebook, arrays)
    walk = _Walk(sources, genesis, notebook, rounds)
    walk.run(on_progress)
    main = walk.main
    if walk.highest == 0:
        notebook.find("C2", "there is no block: nothing proves anything")
    whole = main.stopped is None and main.height == walk.highest
    stopped = None if whole else (main.stopped or main.height + 1)
    rounds.summarise(main.state)
    notes = walk.notes
    if stopped is None:
        notes += open_rounds(main.state)
    else:
        notes.append(f"statements from height {stopped} on were not replayed")
    return Report(
        depth=depth,
        chain=genesis.name,
        height=main.height,
        head_id=main.head_id,
        validators=genesis.validators.n,
        operators=tuple(dict.fromkeys(v.operator for v in genesis.validators)),
        claims=tuple(_judge(claim, notebook, depth, stopped) for claim in CLAIMS),
        notes=tuple(notes),
    )


def _check_arguments(
    sources: Sequence[ChainSource], artifacts: ArtifactReader | None, depth: Depth
) -> None:
    if not sources:
        raise UsageError("nothing to audit: no database was given")
    if len({source.name for source in sources}) != len(sources):
        raise UsageError("two databases have one name; findings could not tell them apart")
    if depth not in get_args(Depth):
        raise UsageError(f"depth is chain or full, not {depth!r}")
    if depth == "full" and artifacts is None:
        raise UsageError("depth full needs the artifacts; give their folder, or use depth chain")


def _judge(claim: Claim, notebook: Notebook, depth: Depth, stopped: int | None) -> ClaimResult:
    """Give a claim its verdict: PASS only if all that it needs was looked at."""
    reason = claim.unchecked
    if reason is None and claim.id == "C6" and depth == "chain":
        reason = "depth chain opens no arrays: use --depth full"
    elif reason is None and stopped is not None and claim.id in REPLAYED[depth]:
        reason = f"the replay stopped at height {stopped}: later blocks were not judged"
    elif reason is None and not notebook.checked[claim.id]:
        reason = NOTHING.get(claim.id, "there was nothing to check")
    return notebook.result(claim.id, claim.title, reason)


@dataclass(slots=True)
class _Reader:
    """A source, how high it says that it is, and how reading it went."""

    source: ChainSource
    height: int
    unreadable: int = 0
    last_read: int = 0


class _Walk:
    """Goes up height by height through all databases at once.

    Attributes:
        highest: Height of the highest block that could be read.
        notes: What concerns no single claim.
        main: After `run`, the history that was replayed furthest.
    """

    def __init__(
        self,
        sources: Sequence[ChainSource],
        genesis: Genesis,
        notebook: Notebook,
        rounds: RoundAudit,
    ) -> None:
        self.notes: list[str] = []
        self._notebook = notebook
        self._genesis = genesis
        self._readers: dict[str, _Reader] = {}
        for source in sources:
            try:
                self._readers[source.name] = _Reader(source, source.head_height())
            except FedchainError as error:
                notebook.find("C2", f"cannot be read: {error} [{source.name}]")
        self.highest = 0
        self.main = Replay([*self._readers], genesis, notebook, rounds)
        self._forked = False

    def run(self, on_progress: Progress | None) -> None:
        """Judge every height."""
        histories = [self.main] if self._readers else []
        ended: list[Replay] = []
        height = 0
        while any(reader.height > height for reader in self._readers.values()):
            height += 1
            counts: list[Counter[str]] = []
            following: list[Replay] = []
            finals: list[tuple[Replay, tuple[int, ...]]] = []
            for history in histories:
                parts = self._parts(history, height)
                if not parts:
                    ended.append(history)
                for part, block, certificates in parts:
                    checked: Counter[str] = Counter()
                    following.append(part)
                    if block is None:
                        continue
                    signers = part.block(block, certificates, checked)
                    counts.append(checked)
                    if signers is not None:
                        finals.append((part, signers))
            histories = following
            self._count(counts)
            self._look_for_fork(height, finals)
            if on_progress is not None:
                on_progress(height, max(reader.height for reader in self._readers.values()))
        self.highest = max((reader.last_read for reader in self._readers.values()), default=0)
        self.main = max([*histories, *ended], key=_followed, default=self.main)
        self._note_lag()

    def _parts(
        self, history: Replay, height: int
    ) -> list[tuple[Replay, RawBlock | None, dict[str, bytes]]]:
        """Split a history by what its databases hold at `height`."""
        held: dict[RawBlock, dict[str, bytes]] = {}
        parts: list[tuple[Replay, RawBlock | None, dict[str, bytes]]] = []
        for name in history.names:
            reader = self._readers[name]
            if reader.height < height:
                continue
            try:
                header, envelopes, certificate = reader.source.block(height)
            except FedchainError as error:
                damaged = history.fork([name])
                damaged.skip(f"cannot be read: {error}")
                reader.unreadable += 1
                if reader.unreadable == _MAX_UNREADABLE:
                    reader.height = height  # it is damaged throughout: enough has been said
                parts.append((damaged, None, {}))
                continue
            reader.last_read = height
            held.setdefault(RawBlock(header, tuple(envelopes)), {})[name] = certificate
        for block, certificates in held.items():
            together = len(certificates) == len(history.names)
            part = history if together else history.fork([*certificates])
            parts.append((part, block, certificates))
        return parts

    def _count(self, counts: list[Counter[str]]) -> None:
        """Count a height once, however many histories were judged there."""
        most: Counter[str] = Counter()
        for checked in counts:
            most |= checked
        self._notebook.checked.update(most)

    def _look_for_fork(self, height: int, finals: list[tuple[Replay, tuple[int, ...]]]) -> None:
        """Two final blocks of one height convict whoever signed both."""
        (first, signed), *others = finals or [(self.main, ())]
        for other, also_signed in others:
            if self._forked or other.head_id == first.head_id:
                continue
            self._forked = True
            both = sorted({*signed} & {*also_signed})
            names = ", ".join(self._genesis.validators[index].name for index in both)
            self._notebook.find(
                "C3",
                f"the chain forks: {short(first.head_id)} [{', '.join(first.names)}] and "
                f"{short(other.head_id)} [{', '.join(other.names)}] are both certified; "
                f"both were signed by {names}",
                height=height,
            )

    def _note_lag(self) -> None:
        for name, reader in self._readers.items():
            behind = self.highest - reader.height
            if behind > 0:
                # A database is called after its file, and whoever packed the folder named that.
                shown = printable(name, _MAX_SOURCE_NAME)
                self.notes.append(f"{shown} stands at height {reader.height}, {behind} behind")


def _followed(history: Replay) -> tuple[int, int]:
    """How far a history was replayed, then how many hold it."""
    return history.state.height, len(history.names)
