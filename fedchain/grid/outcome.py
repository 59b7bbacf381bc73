"""How one call of a client ended, and the error codes that a strategy may meet.

Above Flower's own codes (0 to 8 in flwr 1.41), so that neither is mistaken for the other.
"""

from dataclasses import dataclass

from flwr.app import RecordDict

from fedchain_proto.names import printable

FAILED = 1001
"""The client raised, exited, crashed or was killed."""
OVERRAN = 1002
"""The client, or its round, ran out of time."""
MALFORMED = 1003
"""The client answered with something that is no reply."""
REFUSED = 1004
"""A fedchain mod declined the instruction (`RuleError` or `EvidenceError` in the client)."""

REASON_CHARS = 500


@dataclass(frozen=True)
class Outcome:
    """What a call came to: `content`, or `code` and `reason` when there is none."""

    content: RecordDict | None
    code: int = 0
    reason: str = ""


def clean(text: str) -> str:
    """Make a client's own words safe to print: one line of at most `REASON_CHARS` characters."""
    return printable(" ".join(text[: 4 * REASON_CHARS].split()), REASON_CHARS)
