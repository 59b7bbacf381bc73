"""JSON from outside, read without JSON's leniency.

Duplicate keys, floats, NaN, a byte-order mark, and nesting or numbers without end are refused;
the little helpers then take a document apart member by member. For trust.py and keys.py.
"""

import json
from typing import Any, NoReturn

from fedchain_proto.errors import EvidenceError
from fedchain_proto.names import printable


def strict_json(raw: bytes, limit: int) -> Any:
    """Parse at most `limit` bytes of UTF-8 JSON that mean one thing only.

    Raises:
        EvidenceError: Too large, not UTF-8, not JSON, or lenient JSON.
    """
    if len(raw) > limit:
        raise EvidenceError(f"larger than {limit} bytes")
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_distinct,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
    except EvidenceError:
        raise
    except RecursionError:
        raise EvidenceError("JSON nested too deeply") from None
    except ValueError as error:  # covers bad UTF-8, bad JSON and integers of too many digits
        raise EvidenceError(f"not JSON: {printable(str(error), 120)}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise EvidenceError("a JSON object names a key twice")
    return result


def _no_float(digits: str) -> NoReturn:
    raise EvidenceError(f"a JSON number is not an integer: {printable(digits, 40)}")


def members(value: Any, what: str, names: set[str]) -> dict[str, Any]:
    """Return `value` if it is an object with exactly these members.

    Raises:
        EvidenceError: It is not, or one is missing or unknown.
    """
    if not isinstance(value, dict):
        raise EvidenceError(f"{what} is not a JSON object")
    if missing := sorted(names - value.keys()):
        raise EvidenceError(f"{what} lacks {missing[0]!r}")
    if unknown := sorted(value.keys() - names):
        raise EvidenceError(f"{what} has an unknown member {printable(unknown[0], 40)!r}")
    return value


def items(fields: dict[str, Any], name: str, least: int, most: int) -> list[Any]:
    """Return a list member of `least` to `most` entries."""
    value = fields[name]
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise EvidenceError(f"{name!r} is not a list of {least} to {most} entries")
    return value


def text(fields: dict[str, Any], name: str) -> str:
    """Return a string member."""
    value = fields[name]
    if not isinstance(value, str):
        raise EvidenceError(f"{name!r} is not a string")
    return value


def integer(fields: dict[str, Any], name: str, least: int, most: int) -> int:
    """Return an integer member within bounds; True and False are no integers here."""
    value = fields[name]
    if type(value) is not int or not least <= value <= most:
        raise EvidenceError(f"{name!r} is not an integer of {least} to {most}")
    return value


def hex_bytes(fields: dict[str, Any], name: str, size: int) -> bytes:
    """Return a member of `size` bytes in lower-case hex."""
    return parse_hex(fields[name], name, size)


def parse_hex(value: Any, name: str, size: int) -> bytes:
    """Read exactly `size` bytes of lower-case hex."""
    if (
        not isinstance(value, str)
        or len(value) != 2 * size
        or not set(value) <= set("0123456789abcdef")
    ):
        raise EvidenceError(f"{name!r} is not {size} bytes of lower-case hex")
    return bytes.fromhex(value)
