"""Names and other strings that strangers chose: which are let in, and how the rest is shown.

What counts as a control character is a fixed list, never `str.isprintable`: that follows the
Unicode tables of one Python version, and two validators must not differ about a statement.
"""

import re

from fedchain_proto.errors import RuleError

MAX_NAME = 63
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

# C0, DEL, C1, soft hyphen, zero-width and directional marks, line and paragraph separators,
# byte-order mark, interlinear marks, variation and tag characters, surrogates, private use of no
# meaning to a reader. All of them change what a terminal or a page shows without showing.
_UNSAFE = re.compile(
    "[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ue000-\uf8ff\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\uffff\U000e0000-\U0010ffff]"
)


def is_name(text: str) -> bool:
    """Whether `text` is a member's, validator's or chain's name."""
    return NAME.fullmatch(text) is not None


def check_name(text: str) -> str:
    """Return `text` if it is a name: ``[a-z0-9][a-z0-9._-]{0,62}``.

    Raises:
        RuleError: It is not (code "name").
    """
    if not is_name(text):
        raise RuleError(
            f"not a name: {printable(text, 80)!r}; use 1 to {MAX_NAME} of a-z, 0-9, '.', '_', '-',"
            " beginning with a letter or digit",
            code="name",
        )
    return text


def is_text(text: str, limit: int) -> bool:
    """Whether `text` has at most `limit` characters, none of which hides or steers others."""
    return len(text) <= limit and _UNSAFE.search(text) is None


def check_text(text: str, limit: int) -> str:
    """Return `text` if it is at most `limit` characters that a reader can see.

    Raises:
        RuleError: Too long, or a control character is in it (code "text").
    """
    if not is_text(text, limit):
        raise RuleError(
            f"not plain text of at most {limit} characters: {printable(text, 80)!r}", code="text"
        )
    return text


def printable(text: str, limit: int) -> str:
    """Make an untrusted string safe to show: escapes for what is unsafe, an ellipsis for the rest.

    Args:
        text: Any string, lone surrogates included.
        limit: Most characters of the result, at least 1.
    """
    # A character becomes at least one: what lies behind `limit` cannot show and is not looked at.
    shown = _UNSAFE.sub(_escape, text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
