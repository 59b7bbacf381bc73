"""Small proto objects for tests: keys from fixed seeds, a genesis, sealed statements.

Same arguments, same bytes, in every test and every run.
"""

from collections.abc import Sequence

from fedchain_proto.blocks import Certificate, Header
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import SigningKey
from fedchain_proto.statements import Statement, seal_statement
from fedchain_proto.trust import Genesis, Validator, make_genesis, validator_possession
from fedchain_proto.votes import sign_vote
from fedchain_proto.wire_pb2 import VOTE_TYPE_COMMIT

CREATED_MS = 1_800_000_000_000
_ADMISSION = 10_000  # first number of the admission keys, far from validators and members


def key(i: int) -> SigningKey:
    """Key number `i`; the same one each time. Validators have 0, 1, ...; take members from 100."""
    return SigningKey.from_seed(sha256(b"fedchain test key", i.to_bytes(8, "little")))


def make_test_genesis(
    n: int = 4, *, admission: int = 1, threshold: int = 1, name: str = "test-chain"
) -> tuple[Genesis, list[SigningKey], list[SigningKey]]:
    """Make a genesis of `n` validators; it, the validators' keys, the admission keys."""
    validator_keys = [key(i) for i in range(n)]
    admission_keys = [key(_ADMISSION + i) for i in range(admission)]
    entries = []
    for i, holder in enumerate(validator_keys):
        validator = Validator(f"validator-{i + 1}", f"operator {i + 1}", holder.public)
        proof = validator_possession(holder, validator.name, validator.operator)
        entries.append((validator, proof))
    publics = [holder.public for holder in admission_keys]
    raw = make_genesis(name, CREATED_MS, bytes(16), entries, publics, threshold)
    return Genesis.parse(raw), validator_keys, admission_keys


def sealed(statement: Statement, *keys: SigningKey) -> bytes:
    """Sign a statement; its envelope's bytes."""
    return seal_statement(statement, *keys)


def certify(
    header: Header, genesis: Genesis, validator_keys: Sequence[SigningKey], *, round: int = 0
) -> Certificate:
    """Let the first quorum of the validators commit to a header."""
    validators = genesis.validators
    signatures = []
    for index in range(validators.quorum):
        vote = sign_vote(
            validator_keys[index],
            genesis.chain_id,
            validators.hash,
            VOTE_TYPE_COMMIT,
            header.height,
            round,
            header.id,
            0,
            index,
        )
        signatures.append((index, vote.signature))
    return Certificate(header.height, round, header.id, validators.hash, tuple(signatures))
