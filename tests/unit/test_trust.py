"""The genesis: means one thing, hashed as it is, and every key in it is held by its owner."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import verify
from fedchain_proto.trust import (
    MAX_GENESIS_BYTES,
    Genesis,
    Validator,
    ValidatorSet,
    make_genesis,
    validator_possession,
)
from tests.builders import CREATED_MS, key, make_test_genesis


def document() -> dict[str, Any]:
    genesis, _, _ = make_test_genesis(4, admission=3, threshold=2)
    result: dict[str, Any] = json.loads(genesis.raw)
    return result


def written(content: Any) -> bytes:
    return json.dumps(content).encode()


def test_genesis_is_read() -> None:
    """What was made is read back, and its id is over the file's bytes."""
    genesis, validator_keys, admission_keys = make_test_genesis(4, admission=3, threshold=2)
    assert genesis.chain_id == sha256(b"fedchain/genesis/v1\0", genesis.raw)
    assert (genesis.name, genesis.created_ms) == ("test-chain", CREATED_MS)
    assert [v.public_key for v in genesis.validators] == [k.public for k in validator_keys]
    assert genesis.validators[1].operator == "operator 2"
    assert genesis.admission_keys == tuple(k.public for k in admission_keys)
    assert genesis.admission_threshold == 2
    assert Genesis.parse(genesis.raw) == genesis


def test_genesis_is_for_people_too() -> None:
    """The file is indented JSON in ASCII with a newline at its end."""
    raw = make_test_genesis()[0].raw
    assert raw.startswith(b'{\n  "admission": {\n')
    assert raw.endswith(b"}\n")
    assert raw.isascii()


def test_reformatted_genesis_is_another_chain() -> None:
    """The bytes are hashed as they are; equal meaning is not equal identity."""
    genesis = make_test_genesis()[0]
    other = Genesis.parse(written(json.loads(genesis.raw)))
    assert other.validators == genesis.validators
    assert other.chain_id != genesis.chain_id


def test_nonce_makes_another_chain() -> None:
    """Two chains of one name and equal members cannot replay each other."""
    one, two = document(), document()
    two["nonce"] = "01" * 16
    assert Genesis.parse(written(one)).chain_id != Genesis.parse(written(two)).chain_id


Change = Callable[[dict[str, Any]], object]

CHANGES: dict[str, Change] = {
    "format": lambda d: d.update(format="fedchain-genesis/2"),
    "digest": lambda d: d.update(digest="md5"),
    "name": lambda d: d.update(name="Not A Name"),
    "name is a number": lambda d: d.update(name=1),
    "unknown member": lambda d: d.update(extra=1),
    "missing member": lambda d: d.pop("nonce"),
    "nonce short": lambda d: d.update(nonce="00" * 15),
    "nonce upper case": lambda d: d.update(nonce="AB" * 16),
    "nonce not hex": lambda d: d.update(nonce="zz" * 16),
    "time negative": lambda d: d.update(created_unix_ms=-1),
    "time float": lambda d: d.update(created_unix_ms=1.0),
    "time true": lambda d: d.update(created_unix_ms=True),
    "time text": lambda d: d.update(created_unix_ms="1"),
    "time NaN": lambda d: d.update(created_unix_ms=float("nan")),
    "time infinite": lambda d: d.update(created_unix_ms=float("inf")),
    "time without end": lambda d: d.update(created_unix_ms=2**53),
    "no validators": lambda d: d.update(validators=[]),
    "validators no list": lambda d: d.update(validators={"a": d["validators"][0]}),
    "too many validators": lambda d: d.update(validators=d["validators"] * 30),
    "one validator twice": lambda d: d["validators"].append(d["validators"][0]),
    "validator no object": lambda d: d["validators"].append("validator"),
    "validator unknown member": lambda d: d["validators"][0].update(extra=1),
    "validator missing member": lambda d: d["validators"][0].pop("operator"),
    "validator name": lambda d: d["validators"][0].update(name="validator-9"),
    "operator": lambda d: d["validators"][0].update(operator="somebody else"),
    "possession of another": lambda d: d["validators"][0].update(
        possession=d["validators"][1]["possession"]
    ),
    "key of another": lambda d: d["validators"][0].update(
        public_key=d["validators"][1]["public_key"]
    ),
    "weak key": lambda d: d["validators"][0].update(public_key="01" + "00" * 31),
    "admission extra": lambda d: d["admission"].update(extra=1),
    "admission null": lambda d: d.update(admission=None),
    "no admission keys": lambda d: d["admission"].update(keys=[]),
    "admission key twice": lambda d: d["admission"].update(keys=d["admission"]["keys"][:1] * 2),
    "admission key weak": lambda d: d["admission"]["keys"].append("01" + "00" * 31),
    "admission key no text": lambda d: d["admission"].update(keys=[1, 2]),
    "admission key is a validator's": lambda d: d["admission"]["keys"].append(
        d["validators"][0]["public_key"]
    ),
    "threshold 0": lambda d: d["admission"].update(threshold=0),
    "threshold above": lambda d: d["admission"].update(threshold=4),
    "threshold true": lambda d: d["admission"].update(threshold=True),
    "threshold float": lambda d: d["admission"].update(threshold=1.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_wrong_genesis_is_refused(change: Change) -> None:
    """Nothing missing, unknown, out of range, twice, or without its key's own signature."""
    content = document()
    Genesis.parse(written(content))
    change(content)
    with pytest.raises(EvidenceError):
        Genesis.parse(written(content))


@pytest.mark.parametrize("operator", ["", "x" * 61, "\x1b[31m", "a\nb", "\u202e", "\ud800"])
def test_operator_is_plain_text_even_if_signed(operator: str) -> None:
    """Its own key's signature does not make a string fit to be shown."""
    proof = validator_possession(key(0), "validator-1", operator)
    entry = (Validator("validator-1", operator, key(0).public), proof)
    with pytest.raises(UsageError, match="operator is not plain text"):
        make_genesis("c", 0, bytes(16), [entry], [key(2).public], 1)


def test_mixed_order_key_is_refused_even_with_a_signature() -> None:
    """Such a key can be made to sign; verifiers that multiply by the cofactor would then differ."""
    message = b"fedchain/validator/v1\0" + b"\x0bvalidator-1" + b"\x01x"
    public, proof = mixed_order_signature(message)
    verify(public, proof, message)  # libsodium's verifier alone lets it through
    entry = (Validator("validator-1", "x", public), proof)
    with pytest.raises(UsageError, match="prime-order"):
        make_genesis("c", 0, bytes(16), [entry], [key(2).public], 1)


def mixed_order_signature(message: bytes) -> tuple[bytes, bytes]:
    """A key a*B plus the point of order two, and a signature: holds once the challenge is even."""
    p = 2**255 - 19
    secret = bindings.crypto_core_ed25519_scalar_reduce(bytes(range(64)))
    number = int.from_bytes(bindings.crypto_scalarmult_ed25519_base_noclamp(secret), "little")
    y, sign = number & (2**255 - 1), number >> 255
    public = ((p - y) | (1 - sign) << 255).to_bytes(32, "little")  # (x, y) to (-x, -y)
    for attempt in range(1, 200):
        nonce = attempt.to_bytes(32, "little")
        point = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
        wide = hashlib.sha512(point + public + message).digest()
        challenge = bindings.crypto_core_ed25519_scalar_reduce(wide)
        if challenge[0] % 2 == 0:
            product = bindings.crypto_core_ed25519_scalar_mul(challenge, secret)
            return public, point + bindings.crypto_core_ed25519_scalar_add(nonce, product)
    raise AssertionError("200 odd challenges in a row")


def test_two_validators_of_one_name_are_refused() -> None:
    """Each holds its own key and signs for the name; the name is still one."""
    entries = []
    for holder in (key(0), key(1)):
        proof = validator_possession(holder, "validator-1", "x")
        entries.append((Validator("validator-1", "x", holder.public), proof))
    with pytest.raises(UsageError, match="one name"):
        make_genesis("c", 0, bytes(16), entries, [key(2).public], 1)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"format": NaN}',
        b"{} {}",
        b" " * (MAX_GENESIS_BYTES + 1),
    ],
)
def test_junk_is_no_genesis(raw: bytes) -> None:
    """Deep nesting, endless numbers, other encodings: an EvidenceError and nothing else."""
    with pytest.raises(EvidenceError):
        Genesis.parse(raw)


def test_key_named_twice_is_refused() -> None:
    """JSON readers differ on which of two equal keys counts."""
    raw = make_test_genesis()[0].raw
    name = b'"name": "test-chain"'
    assert raw.count(name) == 1
    for twice in (name + b",\n" + name, b'"name": "other", ' + name):
        with pytest.raises(EvidenceError, match="twice"):
            Genesis.parse(raw.replace(name, twice))


@given(st.data())
def test_damaged_genesis_raises_nothing_else(data: st.DataObject) -> None:
    """A spliced file is another genesis or an EvidenceError."""
    raw = bytearray(GENESIS)
    at = data.draw(st.integers(0, len(raw)))
    raw[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    with contextlib.suppress(EvidenceError):
        Genesis.parse(bytes(raw))


GENESIS = make_test_genesis(1)[0].raw


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    """A whole file is loaded; a missing, foreign or unreadable one is named."""
    path = tmp_path / "genesis.json"
    path.write_bytes(GENESIS)
    assert Genesis.load(path) == Genesis.parse(GENESIS)
    path.write_bytes(b"{}")
    with pytest.raises(UsageError, match=r"genesis\.json is not a genesis"):
        Genesis.load(path)
    with pytest.raises(UsageError, match="cannot read the genesis"):
        Genesis.load(tmp_path / "missing.json")
    with pytest.raises(UsageError, match="cannot read the genesis"):
        Genesis.load(tmp_path)


def test_senseless_genesis_is_not_made() -> None:
    """The maker hears of it before anybody pins it."""
    proof = validator_possession(key(0), "validator-1", "x")
    entry = (Validator("validator-1", "x", key(0).public), proof)
    make_genesis("c", 0, bytes(16), [entry], [key(2).public], 1)
    for arguments in (
        ("No Name", 0, bytes(16), [entry], [key(2).public], 1),
        ("c", -1, bytes(16), [entry], [key(2).public], 1),
        ("c", 0, bytes(15), [entry], [key(2).public], 1),
        ("c", 0, bytes(16), [], [key(2).public], 1),
        ("c", 0, bytes(16), [entry], [], 1),
        ("c", 0, bytes(16), [entry], [key(2).public], 2),
        ("c", 0, bytes(16), [(entry[0], bytes(64))], [key(2).public], 1),
    ):
        with pytest.raises(UsageError):
            make_genesis(*arguments)
    with pytest.raises(UsageError):
        validator_possession(key(0), "validator-1", "x" * 256)


# ---------------------------------------------------------------- validator set


def members(n: int) -> ValidatorSet:
    return ValidatorSet(tuple(Validator(f"v{i}", "x", bytes([i]) * 32) for i in range(n)))


@pytest.mark.parametrize("n", range(1, 101))
def test_quorums_share_an_honest_validator_and_the_honest_make_one(n: int) -> None:
    """Safety and liveness of every set size (consensus.md, Numbers)."""
    validators = members(n)
    assert validators.n == len(validators) == n
    assert 2 * validators.quorum - n >= validators.f + 1
    assert validators.quorum <= n - validators.f
    assert 3 * validators.f + 1 <= n < 3 * (validators.f + 1) + 1


def test_quorum_is_not_two_f_plus_one() -> None:
    """At n = 5 and 6 the plain formula forks: 3 + 3 signers need not overlap honestly."""
    assert [members(n).quorum for n in range(1, 8)] == [1, 2, 2, 3, 4, 4, 5]


def test_members_are_found_by_key() -> None:
    """Each validator has its place; a stranger has none."""
    validators = members(4)
    assert [validators.index_of(v.key_id) for v in validators] == [0, 1, 2, 3]
    assert validators.index_of(bytes(32)) is None


def test_set_hash_covers_everything() -> None:
    """Key, name, operator, order and number: each makes another set."""
    a, b = Validator("a", "x", bytes(32)), Validator("b", "x", bytes([1]) * 32)
    sets = [
        (a,),
        (a, b),
        (b, a),
        (Validator("c", "x", a.public_key), b),
        (Validator("a", "y", a.public_key), b),
        (Validator("ax", "", a.public_key), b),
        (Validator("a", "x", bytes([2]) * 32), b),
    ]
    assert len({ValidatorSet(members).hash for members in sets}) == len(sets)


def test_set_is_neither_empty_nor_double() -> None:
    """Votes are counted by distinct members."""
    one = Validator("a", "x", bytes(32))
    for wrong in ((), (one, one), (*members(100), Validator("z", "x", b"z" * 32))):
        with pytest.raises(UsageError):
            ValidatorSet(wrong)
