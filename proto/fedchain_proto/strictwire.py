"""Protobuf from outside, read without protobuf's leniency, at every depth.

protobuf keeps unknown fields, lets unknown enum numbers through, and takes the last of a repeated
singular field. Two versions of a program would then read two meanings out of one signed payload.
"""

from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from fedchain_proto.errors import EvidenceError

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class _Check:
    """A field that is an enum, or a message that holds one at some depth."""

    name: str
    repeated: bool
    numbers: frozenset[int] | None  # what an enum may be; None for a message
    inner: "tuple[_Check, ...]"


def parse_strict(kind: type[M], raw: bytes) -> M:
    """Parse one message that is nothing but the known fields, each written once.

    Args:
        kind: Message class of wire.proto.
        raw: Its bytes; the caller has bounded their number.

    Raises:
        EvidenceError: Not that message; or unknown fields, unknown or unspecified enum values,
            repeated singular fields, defaults or numbers written in more bytes than they need.
    """
    try:
        message = kind.FromString(raw)
    except (DecodeError, UnicodeDecodeError):  # the latter where protobuf is pure Python
        raise EvidenceError(f"not a {kind.DESCRIPTOR.name}") from None
    checks = _checks(kind.DESCRIPTOR)
    if checks:
        _check_enums(message, checks)
    # Without what is unknown, at any depth, the shortest encoding must have the length that came.
    # Lengths follow from the wire format alone; the bytes themselves would also depend on the
    # order in which a release of the library writes fields.
    message.DiscardUnknownFields()
    if message.ByteSize() != len(raw):
        raise EvidenceError(f"a {kind.DESCRIPTOR.name} with unknown or superfluous fields")
    return message


@cache
def _checks(descriptor: Descriptor) -> tuple[_Check, ...]:
    """List the fields of a message type that lead to an enum; the types of wire.proto only."""
    found = []
    for field in descriptor.fields:
        if field.enum_type is not None:
            # Number 0 is "unspecified" in every enum of wire.proto: it says nothing.
            numbers = frozenset(value.number for value in field.enum_type.values) - {0}
            found.append(_Check(field.name, field.is_repeated, numbers, ()))
        elif field.message_type is not None and (inner := _checks(field.message_type)):
            found.append(_Check(field.name, field.is_repeated, None, inner))
    return tuple(found)


def _check_enums(message: Message, checks: tuple[_Check, ...]) -> None:
    for check in checks:
        if check.repeated:
            values = getattr(message, check.name)
        elif check.numbers is not None or message.HasField(check.name):
            values = (getattr(message, check.name),)
        else:
            continue
        for value in values:
            if check.numbers is None:
                _check_enums(value, check.inner)
            elif value not in check.numbers:
                where = f"{message.DESCRIPTOR.name}.{check.name}"
                raise EvidenceError(f"{where} has the unknown value {value}")
