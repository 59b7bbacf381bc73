"""What a round came to, for people and programs. The ledger's own words are its statements."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedchain_proto import reasons
from fedchain_proto.wire_pb2 import Reason


@dataclass(frozen=True)
class UpdateRecord:
    """One update that is in the round's average.

    Attributes:
        participant: Its owner's name.
        examples: The weight that the owner signed: training examples.
        digest: Model digest of its arrays, ``sha256:<hex>``.
    """

    participant: str
    examples: int
    digest: str


@dataclass(frozen=True)
class ExclusionRecord:
    """One cohort member that is not in the round's average.

    Attributes:
        participant: The member's name.
        reason: Stable code, e.g. ``not-finite`` (fedchain_proto.reasons).
        words: The reason in plain words, with what the server saw; printable.
        proven: Whether the chain or the kept arrays show it; else it is the server's word.
    """

    participant: str
    reason: str
    words: str
    proven: bool


@dataclass(frozen=True)
class RoundRecord:
    """One closed round.

    Attributes:
        number: From 1.
        height: Of the block that closed it.
        model: Model digest of the round's output, ``sha256:<hex>``.
        updates: What was averaged, ascending by participant.
        exclusions: Who is left out and why, ascending by participant.
        metrics: Unsigned, for display: the server's evaluation under its own names, the clients'
            weighted means as ``train/<name>`` and ``evaluate/<name>``.
        abandoned: Too few updates held; `model` is then the round's base model.
    """

    number: int
    height: int
    model: str
    updates: tuple[UpdateRecord, ...]
    exclusions: tuple[ExclusionRecord, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    abandoned: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why a cohort member's update does not count.

    Attributes:
        reason: As the chain will hold it.
        detail: What the server saw, printable, short; may be empty.
    """

    reason: Reason.ValueType
    detail: str = ""

    @property
    def words(self) -> str:
        """The reason in plain words, to follow the participant's name."""
        said = reasons.describe(self.reason)
        return f"{said}: {self.detail}" if self.detail else said

    def record(self, participant: str) -> ExclusionRecord:
        """Show this refusal of a participant."""
        code, proven = reasons.code(self.reason), reasons.is_proven(self.reason)
        return ExclusionRecord(participant, code, self.words, proven)
