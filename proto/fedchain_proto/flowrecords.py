"""What clients and server both compute over a Flower message, said once.

Works on plain mappings, so that proto needs no flwr.
"""

from collections.abc import Mapping

from fedchain_proto.errors import RuleError
from fedchain_proto.flowkeys import RECORD
from fedchain_proto.hashing import DIGEST_SIZE
from fedchain_proto.instruction import ConfigValue, instruction_digest
from fedchain_proto.names import check_name, printable

NONCE_SIZE = 32
_HELLO = b"fedchain/hello/v1\0"


def message_instruction(
    message_type: str, configs: Mapping[str, Mapping[str, ConfigValue]], app: bytes = b""
) -> bytes:
    """Digest what one Flower message tells a client to do; 32 bytes.

    Args:
        message_type: Of the message, e.g. "train".
        configs: Its ConfigRecords by name; fedchain's own is left out. Entry ``lr`` of record
            ``config`` is digested as ``config/lr``.
        app: As for `instruction_digest`.

    Raises:
        RuleError: A record's name holds a "/" (two records could then share an entry's name), or
            an entry is refused by `instruction_digest`.
    """
    flat: dict[str, ConfigValue] = {}
    for name, record in configs.items():
        if name == RECORD:
            continue
        if "/" in name:
            raise RuleError(
                f"ConfigRecord {printable(name, 40)!r} has a '/' in its name; rename it",
                code="instruction",
                claim="C5",
            )
        flat |= {f"{name}/{key}": value for key, value in record.items()}
    return instruction_digest(message_type, flat, app)


def hello_preimage(chain_id: bytes, nonce: bytes, name: str) -> bytes:
    """What an owner signs to prove its name to the server that sent `nonce`.

    ``"fedchain/hello/v1\\0" || chain id (32) || nonce (32) || u8 name length || name``: fixed
    places, so that no choice of nonce makes it another statement.

    Raises:
        RuleError: Nonce or chain id is not 32 bytes, or the name is not one.
    """
    if len(nonce) != NONCE_SIZE or len(chain_id) != DIGEST_SIZE:
        raise RuleError(f"a hello's nonce has {NONCE_SIZE} bytes", code="hello", claim="C4")
    label = check_name(name).encode("ascii")
    return _HELLO + chain_id + nonce + bytes([len(label)]) + label
