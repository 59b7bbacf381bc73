"""Ed25519 keys: what is refused that other libraries accept, and the key file."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedchain_proto import keys
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.keys import (
    SigningKey,
    check_public_key,
    key_id,
    load_key,
    possession,
    save_key,
    verify,
    verify_possession,
)
from tests.builders import key

CHAIN = bytes(range(32))
P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
# The eight points of small order (order 1, 2, 4, 4, 8, 8, 8, 8), and encodings of the first
# points with the field's prime added or the sign bit misused: RFC 8032 says refuse.
_EIGHT = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
_EIGHT_NEGATED = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"
SMALL_ORDER = [
    (1).to_bytes(32, "little"),
    (P - 1).to_bytes(32, "little"),
    (0).to_bytes(32, "little"),
    (1 << 255).to_bytes(32, "little"),
    bytes.fromhex(_EIGHT),
    bytes.fromhex(_EIGHT_NEGATED),
    bytes.fromhex(_EIGHT[:-2] + "85"),
    bytes.fromhex(_EIGHT_NEGATED[:-2] + "fa"),
]
NOT_CANONICAL = [
    P.to_bytes(32, "little"),
    (P + 1).to_bytes(32, "little"),
    (2**255 - 1).to_bytes(32, "little"),
    (2**256 - 1).to_bytes(32, "little"),
    (1 | 1 << 255).to_bytes(32, "little"),
]


def test_signature_holds() -> None:
    """What a key signs, its public half verifies, here and in OpenSSL."""
    signature = key(1).sign(b"message")
    verify(key(1).public, signature, b"message")
    Ed25519PublicKey.from_public_bytes(key(1).public).verify(signature, b"message")


def test_a_key_signs_the_same_bytes_twice() -> None:
    """Ed25519 is deterministic: a statement sealed again is the same envelope."""
    assert key(1).sign(b"message") == key(1).sign(b"message")


@pytest.mark.parametrize("bit", [0, 255, 256, 511])
def test_flipped_signature_does_not_hold(bit: int) -> None:
    """Either half of a signature matters."""
    signature = bytearray(key(1).sign(b"message"))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(EvidenceError):
        verify(key(1).public, bytes(signature), b"message")


def test_other_message_or_key_does_not_hold() -> None:
    """A signature is of one message by one key."""
    signature = key(1).sign(b"message")
    with pytest.raises(EvidenceError):
        verify(key(1).public, signature, b"massage")
    with pytest.raises(EvidenceError):
        verify(key(2).public, signature, b"message")


@pytest.mark.parametrize("sizes", [(31, 64), (33, 64), (32, 63), (32, 65), (0, 0)])
def test_wrong_sizes_do_not_hold(sizes: tuple[int, int]) -> None:
    """A cut or lengthened key or signature is refused, not padded."""
    public, signature = sizes
    with pytest.raises(EvidenceError):
        verify(bytes(public), bytes(signature), b"message")


def test_bytes_do_not_move_between_signature_message_and_key() -> None:
    """The library sees signature and message joined: only the sizes keep them apart."""
    signature = key(1).sign(b"message")
    for public, moved, rest in (
        (key(1).public, signature + b"m", b"essage"),
        (key(1).public, signature[:63], signature[63:] + b"message"),
        (key(1).public + b"x", signature, b"message"),
    ):
        with pytest.raises(EvidenceError, match="size"):
            verify(public, moved, rest)


def test_second_form_of_a_signature_is_refused() -> None:
    """S + L satisfies the equation too; accepting it would give one envelope two forms."""
    signature = key(1).sign(b"message")
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    with pytest.raises(EvidenceError):
        verify(key(1).public, signature[:32] + scalar.to_bytes(32, "little"), b"message")


@pytest.mark.parametrize("public", SMALL_ORDER + NOT_CANONICAL)
def test_weak_keys_are_refused(public: bytes) -> None:
    """Under a small-order key one signature fits any message; it neither enrols nor verifies."""
    with pytest.raises(EvidenceError):
        check_public_key(public)
    with pytest.raises(EvidenceError):
        verify(public, bytes(64), b"message")
    with pytest.raises(EvidenceError):
        verify(public, public + bytes(32), b"message")


def test_mixed_order_key_is_refused() -> None:
    """An honest key plus a point of order two is no key of the prime-order group."""
    # Adding the point (0, -1) maps (x, y) to (-x, -y).
    number = int.from_bytes(key(1).public, "little")
    y, sign = number & (2**255 - 1), number >> 255
    mixed = ((P - y) | (1 - sign) << 255).to_bytes(32, "little")
    with pytest.raises(EvidenceError):
        check_public_key(mixed)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33)])
def test_public_key_has_its_size(public: bytes) -> None:
    """A key of another size is refused by us, not by a library's error."""
    with pytest.raises(EvidenceError):
        check_public_key(public)


def test_honest_key_can_be_enrolled() -> None:
    """Twin of the refusals."""
    check_public_key(key(1).public)
    assert key(1).key_id == key_id(key(1).public)


def test_key_shows_its_public_half_only() -> None:
    """A key that lands in a log or a traceback gives nothing away."""
    assert key(1).public.hex() in repr(key(1))
    assert key(1).seed.hex() not in repr(key(1)) + str(key(1))


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_seed_has_its_size(seed: bytes) -> None:
    """A key is made from exactly 32 bytes."""
    with pytest.raises(UsageError):
        SigningKey.from_seed(seed)


def test_generated_keys_differ() -> None:
    """Each key is drawn anew."""
    assert SigningKey.generate().public != SigningKey.generate().public


# ---------------------------------------------------------------- possession


def test_possession_holds() -> None:
    """A key's holder can ask for a name and a role."""
    proof = possession(key(1), CHAIN, "client-00", 1)
    verify_possession(key(1).public, CHAIN, "client-00", 1, proof)


@pytest.mark.parametrize(
    ("public", "chain", "name", "role"),
    [
        (key(2).public, CHAIN, "client-00", 1),
        (key(1).public, bytes(32), "client-00", 1),
        (key(1).public, CHAIN, "client-01", 1),
        (key(1).public, CHAIN, "client-00", 2),
        (key(1).public, CHAIN, "not a name", 1),
        (key(1).public, CHAIN, "client-00", 0),
        (key(1).public, CHAIN[:31], "client-00", 1),
    ],
)
def test_possession_is_of_one_key_chain_name_and_role(
    public: bytes, chain: bytes, name: str, role: int
) -> None:
    """A proof cannot be replayed for another member, chain or duty."""
    proof = possession(key(1), CHAIN, "client-00", 1)
    with pytest.raises(EvidenceError):
        verify_possession(public, chain, name, role, proof)


def test_possession_of_nonsense_is_not_signed() -> None:
    """The signer learns of a wrong name before anything is signed."""
    for chain, name, role in (
        (CHAIN, "Not A Name", 1),
        (CHAIN[:31], "client-00", 1),
        (CHAIN, "client-00", 0),
        (CHAIN, "client-00", 256),
    ):
        with pytest.raises(UsageError):
            possession(key(1), chain, name, role)


# ---------------------------------------------------------------- key file


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id at its smallest: these tests are not about its cost."""
    monkeypatch.setattr(keys, "_KDF", keys._KDF | {"memory_kib": 8, "iterations": 1})


def altered(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    for name, value in changes.items():
        parts = name.split("__")
        place = document
        for part in parts[:-1]:
            place = place[part]
        place[parts[-1]] = value
    path.write_text(json.dumps(document))


def test_encrypted_key_survives_its_file(tmp_path: Path) -> None:
    """With the real cost: what was saved is loaded, and the seed is not in the file."""
    save_key(tmp_path / "a.key", key(1), "correct horse")
    assert load_key(tmp_path / "a.key", lambda: "correct horse").public == key(1).public
    content = (tmp_path / "a.key").read_text()
    assert key(1).seed.hex() not in content
    kdf = json.loads(content)["kdf"]
    assert (kdf["name"], kdf["memory_kib"], kdf["iterations"]) == ("argon2id", 65536, 3)


@pytest.mark.usefixtures("cheap")
def test_wrong_passphrase_is_named(tmp_path: Path) -> None:
    """The message says what is wrong and names the file."""
    save_key(tmp_path / "a.key", key(1), "correct horse")
    with pytest.raises(UsageError, match=r"wrong passphrase for .*a\.key"):
        load_key(tmp_path / "a.key", lambda: "battery staple")


@pytest.mark.usefixtures("cheap")
def test_composed_and_decomposed_letters_are_one_passphrase(tmp_path: Path) -> None:
    """Another keyboard must not lock an owner out."""
    save_key(tmp_path / "a.key", key(1), "Z\u00fcrich")
    assert load_key(tmp_path / "a.key", lambda: "Zu\u0308rich").public == key(1).public


@pytest.mark.usefixtures("cheap")
def test_encrypted_key_needs_a_passphrase(tmp_path: Path) -> None:
    """No passphrase to ask for, an empty one, or one that is no text: plain words."""
    save_key(tmp_path / "a.key", key(1), "correct horse")
    for ask in (None, lambda: "", lambda: "\ud800"):
        with pytest.raises(UsageError, match="passphrase"):
            load_key(tmp_path / "a.key", ask)


def test_plain_key_needs_an_explicit_choice(tmp_path: Path) -> None:
    """Neither forgetting the passphrase nor giving both writes a file."""
    with pytest.raises(UsageError):
        save_key(tmp_path / "a.key", key(1), None)
    with pytest.raises(UsageError):
        save_key(tmp_path / "a.key", key(1), "correct horse", unencrypted=True)
    with pytest.raises(UsageError, match="empty"):
        save_key(tmp_path / "a.key", key(1), "")
    assert list(tmp_path.iterdir()) == []


def test_plain_key_is_the_owners_alone(tmp_path: Path) -> None:
    """It is written with mode 0600 whatever the umask, and refused once others may read it."""
    path = tmp_path / "a.key"
    before = os.umask(0)
    try:
        save_key(path, key(1), None, unencrypted=True)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).public == key(1).public
    path.chmod(0o400)
    assert load_key(path).public == key(1).public
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(UsageError, match="chmod 600"):
            load_key(path)


def test_key_file_is_never_overwritten(tmp_path: Path) -> None:
    """A second key of one name is refused, the first stays, and no draft is left."""
    path = tmp_path / "a.key"
    save_key(path, key(1), None, unencrypted=True)
    with pytest.raises(UsageError, match="exists"):
        save_key(path, key(2), None, unencrypted=True)
    assert load_key(path).public == key(1).public
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.key"]


def test_key_is_not_written_where_it_cannot_be(tmp_path: Path) -> None:
    """A missing folder is a usage error, not a traceback."""
    with pytest.raises(UsageError, match="cannot write"):
        save_key(tmp_path / "nowhere" / "a.key", key(1), None, unencrypted=True)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"public_key": key(2).public.hex()}, "passphrase"),  # bound to the ciphertext
        ({"kdf__iterations": 2}, "passphrase"),
        ({"kdf__salt": "00" * 16}, "passphrase"),
        ({"kdf__salt": "00" * 4}, "salt"),
        ({"kdf__salt": 1}, "salt"),
        ({"nonce": "00" * 12}, "passphrase"),
        ({"ciphertext": "00" * 48}, "passphrase"),
        ({"ciphertext": "00" * 47}, "ciphertext"),
        ({"format": "fedchain-key/2"}, "format"),
        ({"cipher": "rot13"}, "cipher"),
        ({"cipher": "none"}, "lacks"),  # a plain file has other members
        ({"extra": 1}, "unknown"),
        ({"kdf__extra": 1}, "unknown"),
        ({"kdf__name": "scrypt"}, "argon2id"),
        ({"kdf__memory_kib": 1 << 40}, "memory_kib"),
        ({"kdf__memory_kib": True}, "memory_kib"),
        ({"kdf__memory_kib": 8.0}, "integer"),
        ({"kdf__iterations": 10**9}, "iterations"),
        ({"kdf__lanes": 0}, "lanes"),
        ({"kdf": None}, "object"),
    ],
)
def test_altered_key_file_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    """Nothing beside the ciphertext can be exchanged, and no number in it costs without end."""
    path = tmp_path / "a.key"
    save_key(path, key(1), "correct horse")
    altered(path, **changes)
    with pytest.raises(UsageError, match=why):
        load_key(path, lambda: "correct horse")


def test_plain_key_with_another_public_key_is_refused(tmp_path: Path) -> None:
    """A file whose two halves disagree belongs to nobody."""
    path = tmp_path / "a.key"
    save_key(path, key(1), None, unencrypted=True)
    altered(path, public_key=key(2).public.hex())
    with pytest.raises(UsageError, match="public key"):
        load_key(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff", b"x" * 100_000, b"[" * 50_000, b'{"cipher": "none"}'],
)
def test_foreign_file_is_no_key(tmp_path: Path, content: bytes) -> None:
    """Whatever the file holds, the error says that it is not a key file."""
    path = tmp_path / "a.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="not a whole fedchain key file"):
        load_key(path)


def test_unreadable_key_is_named(tmp_path: Path) -> None:
    """A missing file, a folder and a named pipe are said to be so; the pipe does not hang."""
    with pytest.raises(UsageError, match="cannot read"):
        load_key(tmp_path / "missing.key")
    with pytest.raises(UsageError):
        load_key(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a file"):
        load_key(tmp_path / "pipe")
