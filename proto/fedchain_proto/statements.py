"""The statements that a chain records: their types, and what one must look like to be read at all.

`parse` judges shape only: sizes, ranges, order. What a statement may say, when, and whose keys
must have signed it is the ledger's policy.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import MAX_ENVELOPE_BYTES, seal
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.hashing import DIGEST_SIZE
from fedchain_proto.keys import SIGNATURE_SIZE, SigningKey, check_public_key
from fedchain_proto.names import is_name, is_text, printable
from fedchain_proto.strictwire import parse_strict

MAX_COHORT = 4096
MAX_ROUND = 2**32 - 1
MAX_EXAMPLES = 2**29 - 1  # bytes.md: n_i * x_i is exact in float64
MAX_TOTAL_WEIGHT = 2**53 - 1
MAX_ROUND_DEADLINE_MS = 30 * 24 * 3600 * 1000
MAX_REASON_TEXT = 200
NONCE_SIZE = 16

_RULE = re.compile(r"[a-z0-9][a-z0-9._-]{0,46}/v[0-9]{1,9}")

Statement: TypeAlias = (
    wire.MemberAdmitted
    | wire.MemberRevoked
    | wire.RunOpened
    | wire.RoundOpened
    | wire.UpdateSubmitted
    | wire.RoundClosed
    | wire.RunClosed
    | wire.Evidence
)


@dataclass(frozen=True)
class Policy:
    """The rules of a run, fixed when it opens.

    Attributes:
        min_clients: Fewest updates that make an average, 1 to 4096.
        max_examples_per_client: Largest weight that an update may claim, 1 to 2**29 - 1.
        round_timeout_s: Seconds from a round's opening to its deadline, 0.001 s to 30 days.
    """

    min_clients: int = 1
    max_examples_per_client: int = 100_000
    round_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        _check_setting("min_clients", self.min_clients, MAX_COHORT)
        _check_setting("max_examples_per_client", self.max_examples_per_client, MAX_EXAMPLES)
        seconds = self.round_timeout_s
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise UsageError(f"round_timeout_s must be a number of seconds, not {seconds!r}")
        # Also false for NaN; the product of an infinity is compared, never rounded.
        if not 1 <= seconds * 1000 <= MAX_ROUND_DEADLINE_MS:
            raise UsageError(f"round_timeout_s must be 0.001 s to 30 days, not {seconds!r}")

    @property
    def round_deadline_ms(self) -> int:
        """`round_timeout_s` as the chain holds it."""
        return round(self.round_timeout_s * 1000)


def _check_setting(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise UsageError(f"{name} must be a whole number of 1 to {most}, not {value!r}")


# ---------------------------------------------------------------- reading and sealing


def parse(payload_type: str, payload: bytes) -> Statement:
    """Read a payload as the statement that its type names.

    Raises:
        EvidenceError: An unknown type; or a field is unknown, missing, out of range or order.
    """
    entry = _SHAPES.get(payload_type)
    if entry is None:
        raise EvidenceError(f"not a known type of statement: {printable(payload_type, 100)!r}")
    if len(payload) > MAX_ENVELOPE_BYTES:
        raise EvidenceError(f"a statement of more than {MAX_ENVELOPE_BYTES} bytes")
    kind, check = entry
    statement = parse_strict(kind, payload)
    check(statement)
    return statement


def payload_type(statement: Statement | type[Statement]) -> str:
    """Name a statement's kind and version: ``application/vnd.fedchain.run-opened.v1+proto``."""
    return _PAYLOAD_TYPES[statement.DESCRIPTOR.name]


def seal_statement(statement: Statement, *keys: SigningKey) -> bytes:
    """Sign a statement; the bytes of its envelope.

    Raises:
        UsageError: The statement is out of shape, or the keys are (see envelope.seal).
    """
    kind = payload_type(statement)
    payload = statement.SerializeToString(deterministic=True)
    try:
        parse(kind, payload)
    except EvidenceError as error:
        raise UsageError(f"this is not a statement: {error}") from None
    return seal(kind, payload, keys)


# ---------------------------------------------------------------- the shape of each


def _member_admitted(s: wire.MemberAdmitted) -> None:
    _size("chain_id", s.chain_id, DIGEST_SIZE)
    _name("name", s.name)
    _size("possession", s.possession, SIGNATURE_SIZE)
    check_public_key(s.public_key)


def _member_revoked(s: wire.MemberRevoked) -> None:
    _size("chain_id", s.chain_id, DIGEST_SIZE)
    _name("name", s.name)
    if not is_text(s.reason, MAX_REASON_TEXT):
        raise EvidenceError(f"reason is not plain text of at most {MAX_REASON_TEXT} characters")


def _run_opened(s: wire.RunOpened) -> None:
    _size("chain_id", s.chain_id, DIGEST_SIZE)
    _size("nonce", s.nonce, NONCE_SIZE)
    _name("aggregator", s.aggregator)
    _size("initial_model", s.initial_model, DIGEST_SIZE)
    if not s.HasField("policy"):
        raise EvidenceError("policy is missing")
    policy = s.policy
    _range("min_clients", policy.min_clients, 1, MAX_COHORT)
    _range("max_examples_per_client", policy.max_examples_per_client, 1, MAX_EXAMPLES)
    _range("round_deadline_ms", policy.round_deadline_ms, 1, MAX_ROUND_DEADLINE_MS)
    _rule(policy.rule)


def _round_opened(s: wire.RoundOpened) -> None:
    _size("chain_id", s.chain_id, DIGEST_SIZE)
    _size("run", s.run, DIGEST_SIZE)
    _range("round", s.round, 1, MAX_ROUND)
    _size("base_model", s.base_model, DIGEST_SIZE)
    _size("instruction", s.instruction, DIGEST_SIZE)
    _range("the cohort's size", len(s.cohort), 1, MAX_COHORT)
    _ascending("cohort", s.cohort)


def _update_submitted(s: wire.UpdateSubmitted) -> None:
    _size("chain_id", s.chain_id, DIGEST_SIZE)
    _size("run", s.run, DIGEST_SIZE)
    _range("round", s.round, 1, MAX_ROUND)
    _name("participant", s.participant)
    _size("base_model", s.base_model, DIGEST_SIZE)
    _size("instruction", s.instruction, DIGEST_SIZE)
    _size("update", s.update, DIGEST_SIZE)
    # Any num_examples is readable: a weight of 0 or over the cap is refused by name, by policy.
    if s.data_set:
        _size("data_set", s.data_set, DIGEST_SIZE)


def _round_closed(s: wire.RoundClosed) -> None:
    _size("chain_id", s.chain_id, DIGEST_SIZE)
    _size("run", s.run, DIGEST_SIZE)
    _range("round", s.round, 1, MAX_ROUND)
    _size("base_model", s.base_model, DIGEST_SIZE)
    _range("the cohort's size", len(s.included) + len(s.excluded), 1, MAX_COHORT)
    for included in s.included:
        _size("an included transaction", included.transaction, DIGEST_SIZE)
        _range("an included num_examples", included.num_examples, 1, MAX_EXAMPLES)
    for excluded in s.excluded:
        if excluded.transaction:
            _size("an excluded transaction", excluded.transaction, DIGEST_SIZE)
    names_in = [included.participant for included in s.included]
    names_out = [excluded.participant for excluded in s.excluded]
    _ascending("included", names_in)
    _ascending("excluded", names_out)
    if not set(names_in).isdisjoint(names_out):
        raise EvidenceError("a participant is included and excluded")
    _range("total_weight", s.total_weight, 0, MAX_TOTAL_WEIGHT)
    _rule(s.rule)
    _size("model", s.model, DIGEST_SIZE)


def _run_closed(s: wire.RunClosed) -> None:
    _size("chain_id", s.chain_id, DIGEST_SIZE)
    _size("run", s.run, DIGEST_SIZE)
    _range("rounds", s.rounds, 0, MAX_ROUND)
    _size("model", s.model, DIGEST_SIZE)


def _evidence(s: wire.Evidence) -> None:
    _size("chain_id", s.chain_id, DIGEST_SIZE)
    _size("accused", s.accused, DIGEST_SIZE)
    if not s.first or not s.first < s.second:
        raise EvidenceError("the two parts of evidence are not distinct and ascending")


def _size(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise EvidenceError(f"{what} has {len(value)} bytes, not {size}")


def _range(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise EvidenceError(f"{what} is {value}, not {least} to {most}")


def _name(what: str, value: str) -> None:
    if not is_name(value):
        raise EvidenceError(f"{what} is not a name: {printable(value, 80)!r}")


def _rule(value: str) -> None:
    if _RULE.fullmatch(value) is None:
        raise EvidenceError(f"not the name of a rule and its version: {printable(value, 80)!r}")


def _ascending(what: str, names: Iterable[str]) -> None:
    # Names are ASCII, so that Python's order of strings is that of their bytes.
    previous = ""
    for name in names:
        _name(f"a member of {what}", name)
        if name <= previous:
            raise EvidenceError(f"{what} is not in ascending order, each name once")
        previous = name


# ---------------------------------------------------------------- the types, by payload type

_CHECKS: Final[dict[type[Any], Callable[[Any], None]]] = {
    wire.MemberAdmitted: _member_admitted,
    wire.MemberRevoked: _member_revoked,
    wire.RunOpened: _run_opened,
    wire.RoundOpened: _round_opened,
    wire.UpdateSubmitted: _update_submitted,
    wire.RoundClosed: _round_closed,
    wire.RunClosed: _run_closed,
    wire.Evidence: _evidence,
}


def _type_of(kind: type[Any]) -> str:
    kebab = re.sub(r"(?<!^)([A-Z])", r"-\1", kind.DESCRIPTOR.name).lower()
    return f"application/vnd.fedchain.{kebab}.v1+proto"


TYPES: Final[dict[str, type[Statement]]] = {_type_of(kind): kind for kind in _CHECKS}
_PAYLOAD_TYPES: Final = {kind.DESCRIPTOR.name: name for name, kind in TYPES.items()}
_SHAPES: Final = {name: (kind, _CHECKS[kind]) for name, kind in TYPES.items()}
