"""Why an update is not in the average: each reason's code, its words, and how far it is proved."""

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.wire_pb2 import Reason

# What the chain or the kept arrays show to anybody. All others are the server's word.
PROVEN: frozenset[Reason.ValueType] = frozenset(
    {
        wire.REASON_SILENT,
        wire.REASON_NOT_FINITE,
        wire.REASON_WRONG_STRUCTURE,
        wire.REASON_WEIGHT_SUM,
    }
)

_WORDS: dict[Reason.ValueType, str] = {
    wire.REASON_SILENT: "sent no update before the deadline",
    wire.REASON_CLIENT_FAILED: "its client raised an error, exited or crashed",
    wire.REASON_CLIENT_OVERRAN: "its client ran past the time-out and was stopped",
    wire.REASON_MALFORMED_REPLY: "its reply held no readable signed update",
    wire.REASON_BAD_SIGNATURE: "its signature does not hold",
    wire.REASON_UNKNOWN_PARTICIPANT: "it is not an admitted participant",
    wire.REASON_WRONG_RUN: "its update names another run",
    wire.REASON_WRONG_ROUND: "its update names another round",
    wire.REASON_WRONG_BASE_MODEL: "its update started from another model",
    wire.REASON_WRONG_INSTRUCTION: "its update followed another instruction",
    wire.REASON_WEIGHT_NOT_POSITIVE: "it claims no training example",
    wire.REASON_WEIGHT_OVER_CAP: "it claims more training examples than the run allows",
    wire.REASON_DIGEST_MISMATCH: "its arrays are not those that it signed",
    wire.REASON_NOT_FINITE: "its arrays hold NaN or infinity",
    wire.REASON_WRONG_STRUCTURE: "its arrays differ from the model in name, shape or dtype",
    wire.REASON_ARRAYS_MISSING: "its arrays never came, only its signed update",
    wire.REASON_LATE: "its update came after the deadline",
    wire.REASON_CONFLICT: "it signed a second, different update",
    wire.REASON_CLIENT_REFUSED: "its client checked what it was sent and declined",
    wire.REASON_WEIGHT_SUM: "the sum of the weights would leave the exact range",
    wire.REASON_NOT_ASKED: "the server did not ask it: not sampled, or not connected",
}


def is_proven(reason: Reason.ValueType) -> bool:
    """Whether chain or kept arrays show this reason, rather than the server's word."""
    return reason in PROVEN


def describe(reason: Reason.ValueType) -> str:
    """Say a reason in plain words, to follow a participant's name."""
    return _WORDS.get(reason, f"for a reason that this version does not know ({reason})")


def code(reason: Reason.ValueType) -> str:
    """Stable kebab-case name of a reason, for programs: ``not-finite``."""
    if reason not in _WORDS:
        return f"unknown-{reason}"
    return Reason.Name(reason).removeprefix("REASON_").lower().replace("_", "-")
