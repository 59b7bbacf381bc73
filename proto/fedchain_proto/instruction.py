"""The digest of what every client of a round is told to do.

RoundOpened commits to it, each owner recomputes it from the message that arrived, and each update
names it: so no client can be trained on other settings than the rest. Flower's own serialisation
is not canonical; this one is type-tagged, length-prefixed and sorted. It covers message type,
configuration and application, never the weights: these have their own digest.
Golden vectors: tests/vectors/numbers.json.

    digest = H("fedchain/instruction/v1\\0" || text(message type) || bytes(app)
               || u32 entries || (text(key) || value) per key, ascending by UTF-8 bytes)
    value  = "b" u8 | "i" i64 | "f" IEEE 754 double | "s" text | "y" bytes
             | "l" u32 items || value per item
    text, bytes = u32 length || bytes;  all numbers little-endian
"""

import math
import struct
from collections.abc import Mapping, Sequence

from fedchain_proto.errors import RuleError
from fedchain_proto.hashing import sha256
from fedchain_proto.names import printable

Scalar = int | float | str | bytes | bool
ConfigValue = Scalar | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bytes]
"""What a Flower ConfigRecord holds: a scalar, or a list of scalars of one type."""

_DOMAIN = b"fedchain/instruction/v1\0"


def instruction_digest(
    message_type: str, config: Mapping[str, ConfigValue], app: bytes = b""
) -> bytes:
    """Hash one instruction; 32 bytes that do not depend on the order of `config`.

    Args:
        message_type: Flower's, e.g. "train".
        config: Every entry that reaches the client, e.g. its learning rate.
        app: The digest of the application's code, if it is pinned; else empty.

    Raises:
        RuleError: A value is NaN, an integer beyond 64 bits, a list of mixed types, or of a
            type that has no place in a configuration; or a text is not UTF-8.
    """
    parts = [_DOMAIN, _text(message_type), _sized(app), struct.pack("<I", len(config))]
    for key in sorted(config, key=_utf8):
        parts += (_text(key), _value(key, config[key]))
    return sha256(*parts)


def _value(key: str, value: object) -> bytes:
    """Encode one configuration value."""
    if isinstance(value, list | tuple):
        items = [_scalar(key, item) for item in value]
        if len({item[:1] for item in items}) > 1:
            raise _refused(key, "a list of mixed types")
        return b"l" + struct.pack("<I", len(items)) + b"".join(items)
    return _scalar(key, value)


def _scalar(key: str, value: object) -> bytes:
    if isinstance(value, bool):  # before int: True is an int to Python, not to a client
        return b"b" + bytes([value])
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise _refused(key, "an integer beyond 64 bits")
        return b"i" + struct.pack("<q", value)
    if isinstance(value, float):
        if math.isnan(value):
            raise _refused(key, "not a number")  # NaN differs from itself: it promises nothing
        return b"f" + struct.pack("<d", value)
    if isinstance(value, str):
        return b"s" + _text(value)
    if isinstance(value, bytes):
        return b"y" + _sized(value)
    raise _refused(key, f"a {type(value).__name__}")


def _text(text: str) -> bytes:
    return _sized(_utf8(text))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RuleError(
            f"not UTF-8 in an instruction: {printable(text, 40)!r}", code="instruction", claim="C5"
        ) from None


def _sized(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def _refused(key: str, what: str) -> RuleError:
    return RuleError(
        f"configuration entry {printable(key, 40)!r} is {what}; use int, float, str, bytes, bool"
        " or a list of one of these",
        code="instruction",
        claim="C5",
    )
