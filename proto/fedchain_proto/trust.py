"""The trust root: a genesis file that names a chain's validators and admission keys.

Everything that a verifier believes without proof is in these bytes, which it pins. They are JSON,
so that people can read them, and are hashed verbatim: re-formatting makes another chain.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import (
    PUBLIC_KEY_SIZE,
    SIGNATURE_SIZE,
    SigningKey,
    check_public_key,
    key_id,
    verify,
)
from fedchain_proto.names import is_name, is_text, printable
from fedchain_proto.strictjson import (
    hex_bytes,
    integer,
    items,
    members,
    parse_hex,
    strict_json,
    text,
)

MAX_GENESIS_BYTES = 1 << 20
MAX_VALIDATORS = 100
MAX_ADMISSION_KEYS = 100
MAX_OPERATOR = 60  # characters; at most 240 bytes of UTF-8, so that its length fits a byte
MAX_TIME_MS = 2**53 - 1
NONCE_SIZE = 16

_FORMAT = "fedchain-genesis/1"
_CHAIN = b"fedchain/genesis/v1\0"
_VALIDATORS = b"fedchain/validators/v1\0"
_POSSESSION = b"fedchain/validator/v1\0"


@dataclass(frozen=True)
class Validator:
    """One member of a validator set.

    Attributes:
        name: Unique in the set.
        operator: Who runs it, in words; several validators may have one operator.
        public_key: Ed25519, 32 bytes.
        key_id: SHA-256 of the key.
    """

    name: str
    operator: str
    public_key: bytes
    key_id: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_id", key_id(self.public_key))


@dataclass(frozen=True)
class ValidatorSet:
    """Validators in the order that votes number them in.

    Attributes:
        validators: At least one.
        n: Their number.
        f: How many may lie or be silent: floor((n - 1) / 3).
        quorum: Distinct signers that decide: ceil(2n / 3) (consensus.md, Numbers).
        hash: What votes, headers and certificates name the set by, 32 bytes.
    """

    validators: tuple[Validator, ...]
    n: int = field(init=False, compare=False)
    f: int = field(init=False, compare=False)
    quorum: int = field(init=False, compare=False)
    hash: bytes = field(init=False, compare=False, repr=False)
    _index: dict[bytes, int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.validators)
        index = {validator.key_id: at for at, validator in enumerate(self.validators)}
        if not 1 <= n <= MAX_VALIDATORS or len(index) != n:
            raise UsageError(f"a validator set has 1 to {MAX_VALIDATORS} members of distinct keys")
        parts = [_VALIDATORS, n.to_bytes(4, "little")]
        for validator in self.validators:
            parts += (validator.public_key, _labels(validator.name, validator.operator))
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "f", (n - 1) // 3)
        object.__setattr__(self, "quorum", -(-2 * n // 3))
        object.__setattr__(self, "hash", sha256(*parts))
        object.__setattr__(self, "_index", index)

    def index_of(self, key_id: bytes) -> int | None:
        """Position of the validator with this key id, None if it is no member."""
        return self._index.get(key_id)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Validator]:
        return iter(self.validators)

    def __getitem__(self, index: int) -> Validator:
        return self.validators[index]


@dataclass(frozen=True)
class Genesis:
    """A trust root, checked.

    Attributes:
        raw: The file's bytes.
        chain_id: SHA-256("fedchain/genesis/v1" NUL, raw), 32 bytes.
        name: The chain's name, for people; not unique.
        created_ms: Unix milliseconds; the time of height 0.
        validators: The first validator set.
        admission_keys: Public keys that admit and revoke members.
        admission_threshold: How many of them must sign.
    """

    raw: bytes = field(repr=False)
    chain_id: bytes
    name: str
    created_ms: int
    validators: ValidatorSet
    admission_keys: tuple[bytes, ...]
    admission_threshold: int

    @classmethod
    def parse(cls, raw: bytes) -> "Genesis":
        """Read and check a genesis file's bytes.

        Raises:
            EvidenceError: Not exactly a genesis, or a validator does not hold its key.
        """
        document = strict_json(raw, MAX_GENESIS_BYTES)
        names = {"format", "name", "created_unix_ms", "nonce", "digest", "validators", "admission"}
        top = members(document, "the genesis", names)
        if text(top, "format") != _FORMAT:
            raise EvidenceError(f"its format is not {_FORMAT!r}")
        if text(top, "digest") != "sha256":
            raise EvidenceError("its digest algorithm is not known to this version")
        hex_bytes(top, "nonce", NONCE_SIZE)
        admission = members(top["admission"], "admission", {"keys", "threshold"})
        keys = tuple(
            parse_hex(entry, "an admission key", PUBLIC_KEY_SIZE)
            for entry in items(admission, "keys", 1, MAX_ADMISSION_KEYS)
        )
        threshold = integer(admission, "threshold", 1, len(keys))
        validators = tuple(
            _parse_validator(entry) for entry in items(top, "validators", 1, MAX_VALIDATORS)
        )
        _check_distinct(validators, keys)
        return cls(
            raw=raw,
            chain_id=sha256(_CHAIN, raw),
            name=_name(top),
            created_ms=integer(top, "created_unix_ms", 0, MAX_TIME_MS),
            validators=ValidatorSet(validators),
            admission_keys=keys,
            admission_threshold=threshold,
        )

    @classmethod
    def load(cls, path: str | Path) -> "Genesis":
        """Read a genesis file.

        Raises:
            UsageError: Missing, unreadable, or not a genesis.
        """
        try:
            with open(path, "rb", opener=_without_waiting) as file:
                raw = file.read(MAX_GENESIS_BYTES + 1)
        except OSError as error:
            raise UsageError(f"cannot read the genesis {path}: {error.strerror}") from None
        try:
            return cls.parse(raw)
        except EvidenceError as error:
            raise UsageError(f"{path} is not a genesis that can be trusted: {error}") from None


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a named pipe would otherwise wait for a writer for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def make_genesis(
    name: str,
    created_ms: int,
    nonce: bytes,
    validators: Sequence[tuple[Validator, bytes]],
    admission_keys: Sequence[bytes],
    threshold: int,
) -> bytes:
    """Write a genesis file.

    Args:
        name: The chain's name.
        created_ms: Unix milliseconds.
        nonce: 16 random bytes: two chains of equal members are two chains.
        validators: Each with its proof from `validator_possession`.
        admission_keys: Public keys, 32 bytes each.
        threshold: How many admission keys must sign an admission.

    Returns:
        The file's bytes; its reader hashes them as they are.

    Raises:
        UsageError: What `Genesis.parse` would refuse.
    """
    document = {
        "format": _FORMAT,
        "name": name,
        "created_unix_ms": created_ms,
        "nonce": nonce.hex(),
        "digest": "sha256",
        "validators": [
            {
                "name": validator.name,
                "operator": validator.operator,
                "public_key": validator.public_key.hex(),
                "possession": proof.hex(),
            }
            for validator, proof in validators
        ],
        "admission": {"keys": [key.hex() for key in admission_keys], "threshold": threshold},
    }
    raw = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii")
    try:
        Genesis.parse(raw)
    except EvidenceError as error:
        raise UsageError(f"this is not a genesis: {error}") from None
    return raw


def validator_possession(key: SigningKey, name: str, operator: str) -> bytes:
    """Sign that this key's holder wants to be that validator; 64 bytes. No chain exists yet."""
    return key.sign(_POSSESSION + _labels(name, operator))


def _labels(name: str, operator: str) -> bytes:
    parts = [label.encode("utf-8", "surrogatepass") for label in (name, operator)]
    if any(len(part) > 255 for part in parts):
        raise UsageError("a validator's name or operator has more than 255 bytes")
    return b"".join(bytes([len(part)]) + part for part in parts)


def _parse_validator(entry: Any) -> Validator:
    fields = members(entry, "a validator", {"name", "operator", "public_key", "possession"})
    name = _name(fields)
    operator = text(fields, "operator")
    if not operator or not is_text(operator, MAX_OPERATOR):
        raise EvidenceError(f"an operator is not plain text of 1 to {MAX_OPERATOR} characters")
    public = hex_bytes(fields, "public_key", PUBLIC_KEY_SIZE)
    check_public_key(public)
    proof = hex_bytes(fields, "possession", SIGNATURE_SIZE)
    verify(public, proof, _POSSESSION + _labels(name, operator))
    return Validator(name, operator, public)


def _name(fields: dict[str, Any]) -> str:
    name = text(fields, "name")
    if not is_name(name):
        raise EvidenceError(f"not a name: {printable(name, 80)!r}")
    return name


def _check_distinct(validators: Sequence[Validator], admission_keys: Sequence[bytes]) -> None:
    """One key has one duty, one name one validator; every admission key can be enrolled."""
    if len({validator.name for validator in validators}) != len(validators):
        raise EvidenceError("two validators have one name")
    keys = [*admission_keys, *(validator.public_key for validator in validators)]
    if len(set(keys)) != len(keys):
        raise EvidenceError("one key is named twice")
    for key in admission_keys:
        check_public_key(key)
