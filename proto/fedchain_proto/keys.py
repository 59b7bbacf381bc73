"""Ed25519 keys: sign, verify, prove possession, keep in a file.

One verifier for the whole chain, libsodium's (through PyNaCl): it refuses small-order and
non-canonical keys and non-canonical signatures, which others accept, and a chain that two
verifiers judge differently splits. Only `SigningKey.generate` and `save_key` draw randomness.
"""

import json
import os
import secrets
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from nacl import bindings
from nacl.exceptions import BadSignatureError

from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.hashing import DIGEST_SIZE, sha256
from fedchain_proto.names import is_name
from fedchain_proto.strictjson import hex_bytes, integer, members, strict_json, text

PUBLIC_KEY_SIZE = 32
SIGNATURE_SIZE = 64
SEED_SIZE = 32

_POSSESSION = b"fedchain/possession/v1\0"
_FORMAT = "fedchain-key/1"
_MAX_FILE_BYTES = 1 << 16
_SALT_SIZE = 16
_NONCE_SIZE = 12
_TAG_SIZE = 16
# 116 ms on one core of 2026; RFC 9106, section 4, second recommended option has lanes 4.
_KDF: Final = {"name": "argon2id", "memory_kib": 65536, "iterations": 3, "lanes": 1}
# A file from elsewhere must not make the reader allocate or compute without end.
_MAX_MEMORY_KIB = 1 << 20
_MAX_ITERATIONS = 64
_MAX_LANES = 16


def key_id(public: bytes) -> bytes:
    """Name a public key: its SHA-256, 32 bytes."""
    return sha256(public)


def check_public_key(public: bytes) -> None:
    """Check that a key can be enrolled: canonical, of the prime-order group.

    Raises:
        EvidenceError: It is not.
    """
    if len(public) != PUBLIC_KEY_SIZE:
        raise EvidenceError(f"a public key has {PUBLIC_KEY_SIZE} bytes, this one {len(public)}")
    if not bindings.crypto_core_ed25519_is_valid_point(public):
        raise EvidenceError(f"not a canonical Ed25519 key of the prime-order group: {public.hex()}")


def verify(public: bytes, signature: bytes, message: bytes) -> None:
    """Check one Ed25519 signature (RFC 8032, with libsodium's refusals).

    Raises:
        EvidenceError: It does not hold.
    """
    if len(public) != PUBLIC_KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        raise EvidenceError("a public key or a signature has a wrong size")
    try:
        bindings.crypto_sign_open(signature + message, public)
    except BadSignatureError:
        raise EvidenceError(f"a signature of key {key_id(public).hex()} does not hold") from None


class SigningKey:
    """An Ed25519 key pair, held in memory. Its text form shows the public half only."""

    __slots__ = ("_secret", "key_id", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_SIZE:
            raise UsageError(f"a key's seed has {SEED_SIZE} bytes, this one {len(seed)}")
        self.public: bytes
        self.public, self._secret = bindings.crypto_sign_seed_keypair(seed)
        self.key_id: bytes = key_id(self.public)

    @classmethod
    def generate(cls) -> "SigningKey":
        """Make a key from the operating system's randomness."""
        return cls(secrets.token_bytes(SEED_SIZE))

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """Rebuild the key of a 32-byte seed."""
        return cls(seed)

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes; for `save_key`."""
        return bindings.crypto_sign_ed25519_sk_to_seed(self._secret)

    def sign(self, message: bytes) -> bytes:
        """Sign `message`; 64 bytes, the same each time."""
        return bindings.crypto_sign(message, self._secret)[:SIGNATURE_SIZE]

    def __repr__(self) -> str:
        return f"SigningKey({self.public.hex()})"


# ---------------------------------------------------------------- possession


def possession(key: SigningKey, chain_id: bytes, name: str, role: int) -> bytes:
    """Sign that this key's holder wants to be `name` with `role` on this chain; 64 bytes.

    Without it, a member could enrol a stranger's key and claim what that key signs.
    """
    return key.sign(_possession_preimage(chain_id, name, role))


def verify_possession(public: bytes, chain_id: bytes, name: str, role: int, sig: bytes) -> None:
    """Check what `possession` made.

    Raises:
        EvidenceError: It does not hold.
    """
    try:
        message = _possession_preimage(chain_id, name, role)
    except UsageError as error:
        raise EvidenceError(str(error)) from None
    verify(public, sig, message)


def _possession_preimage(chain_id: bytes, name: str, role: int) -> bytes:
    if len(chain_id) != DIGEST_SIZE or not is_name(name) or not 0 < role < 256:
        raise UsageError("possession wants a 32-byte chain id, a name and a role of 1 to 255")
    label = name.encode("ascii")
    return _POSSESSION + chain_id + bytes([len(label)]) + label + bytes([role])


# ---------------------------------------------------------------- key file


def save_key(
    path: str | Path, key: SigningKey, passphrase: str | None, *, unencrypted: bool = False
) -> None:
    """Write a key file, mode 0600. Never overwrites; a crash leaves the whole file or none.

    Args:
        path: The file to make; its folder exists.
        key: What to keep.
        passphrase: Encrypts the file (Argon2id, then AES-256-GCM); None for a plain file.
        unencrypted: Must be True, and the passphrase None, for a file without encryption.

    Raises:
        UsageError: The file exists or cannot be written, or the choice of encryption is unclear.
    """
    if (passphrase is None) != unencrypted:
        raise UsageError("give a passphrase, or ask for an unencrypted key file, not both")
    document: dict[str, Any] = {"format": _FORMAT, "public_key": key.public.hex()}
    if passphrase is None:
        document |= {"cipher": "none", "seed": key.seed.hex()}
    else:
        kdf = _KDF | {"salt": secrets.token_bytes(_SALT_SIZE).hex()}
        nonce = secrets.token_bytes(_NONCE_SIZE)
        document |= {"cipher": "aes-256-gcm", "kdf": kdf, "nonce": nonce.hex()}
        secret = AESGCM(_derive(kdf, passphrase)).encrypt(nonce, key.seed, _bound(document))
        document["ciphertext"] = secret.hex()
    content = json.dumps(document, indent=2, sort_keys=True) + "\n"
    _write_new(Path(path), content.encode("ascii"))


def load_key(path: str | Path, passphrase: Callable[[], str] | None = None) -> SigningKey:
    """Read a key file.

    Args:
        path: What `save_key` wrote.
        passphrase: Asked only if the file is encrypted.

    Raises:
        UsageError: Unreadable, not a key file, wrong or missing passphrase, altered, or an
            unencrypted file that others than its owner may read.
    """
    path = Path(path)
    raw, mode = _read_regular(path)
    try:
        document = strict_json(raw, _MAX_FILE_BYTES)
        return _open_document(document, mode, path, passphrase)
    except EvidenceError as error:
        raise UsageError(f"{path} is not a whole fedchain key file: {error}") from None


def _open_document(
    document: Any, mode: int, path: Path, passphrase: Callable[[], str] | None
) -> SigningKey:
    common = {"format", "public_key", "cipher"}
    encrypted = isinstance(document, dict) and document.get("cipher") != "none"
    own = {"kdf", "nonce", "ciphertext"} if encrypted else {"seed"}
    fields = members(document, "key file", common | own)
    if text(fields, "format") != _FORMAT:
        raise EvidenceError(f'its format is not "{_FORMAT}"')
    if encrypted:
        seed = _decrypt(fields, path, passphrase)
    else:
        if mode & 0o077:
            raise UsageError(
                f"{path} holds an unencrypted key that others than its owner may read;"
                f" run: chmod 600 {path}"
            )
        seed = hex_bytes(fields, "seed", SEED_SIZE)
    key = SigningKey(seed)
    if key.public != hex_bytes(fields, "public_key", PUBLIC_KEY_SIZE):
        raise EvidenceError("its public key is not that of its secret key")
    return key


def _decrypt(fields: dict[str, Any], path: Path, passphrase: Callable[[], str] | None) -> bytes:
    if text(fields, "cipher") != "aes-256-gcm":
        raise EvidenceError("its cipher is not known")
    kdf = members(fields["kdf"], "kdf", {"name", "memory_kib", "iterations", "lanes", "salt"})
    if text(kdf, "name") != "argon2id":
        raise EvidenceError("its key derivation is not argon2id")
    lanes = integer(kdf, "lanes", 1, _MAX_LANES)
    integer(kdf, "memory_kib", 8 * lanes, _MAX_MEMORY_KIB)
    integer(kdf, "iterations", 1, _MAX_ITERATIONS)
    hex_bytes(kdf, "salt", _SALT_SIZE)
    nonce = hex_bytes(fields, "nonce", _NONCE_SIZE)
    secret = hex_bytes(fields, "ciphertext", SEED_SIZE + _TAG_SIZE)
    if passphrase is None:
        raise UsageError(f"{path} is encrypted: a passphrase is needed")
    try:
        return AESGCM(_derive(kdf, passphrase())).decrypt(nonce, secret, _bound(fields))
    except InvalidTag:
        raise UsageError(f"wrong passphrase for {path}, or the file was altered") from None


def _derive(kdf: dict[str, Any], passphrase: str) -> bytes:
    """Stretch a passphrase to 32 bytes (RFC 9106)."""
    if not passphrase:
        raise UsageError("an empty passphrase protects nothing")
    try:
        # Keyboards differ in how they compose an accented letter; the passphrase is the same.
        secret = unicodedata.normalize("NFC", passphrase).encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the passphrase is not valid text") from None
    return Argon2id(
        salt=bytes.fromhex(kdf["salt"]),
        length=32,
        iterations=kdf["iterations"],
        lanes=kdf["lanes"],
        memory_cost=kdf["memory_kib"],
    ).derive(secret)


def _bound(document: dict[str, Any]) -> bytes:
    """Say what the ciphertext is bound to, so that nothing beside it can be exchanged."""
    bound = {name: document[name] for name in ("format", "public_key", "cipher", "kdf")}
    return json.dumps(bound, sort_keys=True, separators=(",", ":")).encode("ascii")


def _read_regular(path: Path) -> tuple[bytes, int]:
    """Read a small regular file; its bytes and permission bits."""
    try:
        # Non-blocking: opening a named pipe would otherwise wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is not a file")
            return file.read(_MAX_FILE_BYTES + 1), stat.S_IMODE(status.st_mode)
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror}") from None


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet; whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # unlike a rename, it fails if the name is taken
        finally:
            draft.unlink()
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise UsageError(f"{path} exists; a key is never overwritten") from None
    except OSError as error:
        raise UsageError(f"cannot write the key {path}: {error.strerror}") from None
