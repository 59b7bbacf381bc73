"""Golden vectors of everything that is signed, hashed as evidence, or kept as a key.

They hold the formats still: an upgrade of a library or a careless change that moves one byte would
fork every chain, and fails here first. Each is also checked by means that share no code with ours:
hashlib, OpenSSL's Ed25519, and encodings written out by hand.
Source of truth: tests/vectors/evidence.json. A deliberate change of format (under a new type or
domain) prints its vectors with ``python -m tests.unit.test_vectors_evidence``.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import NO_CERTIFICATE, Certificate, Header, tx_root
from fedchain_proto.envelope import decode, pae, seal, transaction_id
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.keys import load_key, possession, save_key, verify_possession
from fedchain_proto.receipts import make_receipt, verify_receipt
from fedchain_proto.statements import Statement, parse, payload_type, seal_statement
from fedchain_proto.trust import Genesis, validator_possession
from fedchain_proto.votes import check_vote, decode_vote, preimage, sign_vote
from tests.builders import certify, key, make_test_genesis

FILE = Path(__file__).parents[1] / "vectors" / "evidence.json"
PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of a test key, on file on purpose
RUN, MODEL, TRAINED, INSTRUCTION, AVERAGE = (bytes([i]) * 32 for i in range(1, 6))


def statements(genesis: Genesis) -> list[Statement]:
    """One statement of each type."""
    chain = genesis.chain_id
    member = key(100)
    update = wire.UpdateSubmitted(
        chain_id=chain,
        run=RUN,
        round=1,
        participant="client-00",
        base_model=MODEL,
        instruction=INSTRUCTION,
        update=TRAINED,
        num_examples=180,
    )
    votes = sorted(vote.SerializeToString() for vote in (make_vote(2, b"b"), make_vote(2, b"c")))
    return [
        wire.MemberAdmitted(
            chain_id=chain,
            name="client-00",
            role=wire.ROLE_PARTICIPANT,
            public_key=member.public,
            possession=possession(member, chain, "client-00", wire.ROLE_PARTICIPANT),
        ),
        wire.MemberRevoked(chain_id=chain, name="client-00", reason="Zürich hat gekündigt"),
        wire.RunOpened(
            chain_id=chain,
            nonce=bytes(range(16)),
            aggregator="aggregator",
            initial_model=MODEL,
            policy=wire.RunPolicy(
                min_clients=1,
                max_examples_per_client=100_000,
                round_deadline_ms=600_000,
                rule="fedavg/v1",
            ),
        ),
        wire.RoundOpened(
            chain_id=chain,
            run=RUN,
            round=1,
            base_model=MODEL,
            instruction=INSTRUCTION,
            cohort=["client-00", "client-01"],
        ),
        update,
        wire.RoundClosed(
            chain_id=chain,
            run=RUN,
            round=1,
            outcome=wire.OUTCOME_AVERAGED,
            base_model=MODEL,
            included=[
                wire.Included(
                    participant="client-00",
                    transaction=transaction_id(payload_type(update), update.SerializeToString()),
                    num_examples=180,
                )
            ],
            excluded=[wire.Exclusion(participant="client-01", reason=wire.REASON_SILENT)],
            total_weight=180,
            rule="fedavg/v1",
            model=AVERAGE,
        ),
        wire.RunClosed(
            chain_id=chain, run=RUN, outcome=wire.RUN_OUTCOME_COMPLETED, rounds=1, model=AVERAGE
        ),
        wire.Evidence(
            chain_id=chain,
            offence=wire.OFFENCE_DOUBLE_VOTE,
            accused=key(1).key_id,
            first=votes[0],
            second=votes[1],
        ),
    ]


def make_vote(kind: wire.VoteType.ValueType, letter: bytes, prepared: int = 0) -> wire.SignedVote:
    genesis = make_test_genesis(4)[0]
    return sign_vote(
        key(1),
        genesis.chain_id,
        genesis.validators.hash,
        kind,
        2**40 + 7,
        3,
        letter * 32 if letter else b"",
        prepared,
        1,
    )


def build() -> dict[str, Any]:
    """Make every vector anew, from fixed seeds."""
    genesis, validator_keys, admission_keys = make_test_genesis(4)
    envelopes = [seal_statement(statement, key(100)) for statement in statements(genesis)]
    header = Header(
        chain_id=genesis.chain_id,
        height=1,
        parent_id=genesis.chain_id,
        time_ms=genesis.created_ms + 1,
        proposer=2,
        tx_root=tx_root(envelopes),
        log_size=len(envelopes),
        log_root=tx_root(envelopes),
        validators_hash=genesis.validators.hash,
        next_validators_hash=genesis.validators.hash,
        last_commit_hash=NO_CERTIFICATE,
        state_root=bytes([6]) * 32,
    )
    certificate = certify(header, genesis, validator_keys, round=1)
    path = merkle.path([merkle.leaf_hash(envelope) for envelope in envelopes], 4)
    receipt = make_receipt(envelopes[4], path, header.encode(), certificate.encode())
    two_signers = seal("text/plain", b"hello", [key(0), key(1)])
    votes = [
        make_vote(wire.VOTE_TYPE_PROPOSAL, b"b"),
        make_vote(wire.VOTE_TYPE_PREPARE, b"b"),
        make_vote(wire.VOTE_TYPE_COMMIT, b"b"),
        make_vote(wire.VOTE_TYPE_ROUND_CHANGE, b""),
        make_vote(wire.VOTE_TYPE_ROUND_CHANGE, b"b", 2),
    ]
    return {
        "pae": pae("text/plain", b"hello").hex(),
        "key": {
            "seed": key(100).seed.hex(),
            "public": key(100).public.hex(),
            "key_id": key(100).key_id.hex(),
            "passphrase": PASSPHRASE,
            "encrypted_file": key_file(PASSPHRASE),
            "plain_file": key_file(None),
        },
        "possession": possession(key(100), genesis.chain_id, "client-00", 1).hex(),
        "validator_possession": validator_possession(key(0), "validator-1", "operator 1").hex(),
        "genesis": {
            "file": genesis.raw.decode("ascii"),
            "chain_id": genesis.chain_id.hex(),
            "validators_hash": genesis.validators.hash.hex(),
            "admission_keys": [holder.public.hex() for holder in admission_keys],
        },
        "two_signers": two_signers.hex(),
        "statements": [
            {
                "payload_type": decode(envelope).payload_type,
                "payload": decode(envelope).payload.hex(),
                "transaction_id": decode(envelope).tx_id.hex(),
                "envelope": envelope.hex(),
                "envelope_hash": decode(envelope).envelope_hash.hex(),
            }
            for envelope in envelopes
        ],
        "votes": [
            {
                "message": vote.SerializeToString(deterministic=True).hex(),
                "preimage": preimage(
                    vote.type,
                    genesis.chain_id,
                    vote.validators_hash,
                    vote.height,
                    vote.round,
                    vote.block_id,
                    vote.prepared_round,
                ).hex(),
                "signature": vote.signature.hex(),
            }
            for vote in votes
        ],
        "header": {"bytes": header.encode().hex(), "id": header.id.hex()},
        "certificate": {"bytes": certificate.encode().hex(), "hash": certificate.hash.hex()},
        "receipt": {"bytes": receipt.hex(), "leaf_index": 4},
    }


def key_file(passphrase: str | None) -> str:
    """Write key 100's file with a salt and a nonce that count from 0."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("fedchain_proto.keys.secrets.token_bytes", lambda size: bytes(range(size))),
    ):
        path = Path(folder) / "a.key"
        save_key(path, key(100), passphrase, unencrypted=passphrase is None)
        return path.read_text()


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(FILE.read_text())
    return result


@pytest.fixture(scope="module")
def genesis(vectors: dict[str, Any]) -> Genesis:
    return Genesis.parse(vectors["genesis"]["file"].encode())


def sha(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def openssl_verifies(public: bytes, signature: bytes, message: bytes) -> None:
    """Raises unless OpenSSL agrees."""
    Ed25519PublicKey.from_public_bytes(public).verify(signature, message)


def test_formats_stand_still(vectors: dict[str, Any]) -> None:
    """Made anew, every format gives the bytes on file."""
    made = build()
    assert made.keys() == vectors.keys()
    for name, expected in vectors.items():
        assert made[name] == expected, name


def test_chain_id_is_a_hash_of_the_file(vectors: dict[str, Any], genesis: Genesis) -> None:
    """By hashlib alone; and the set's hash by its layout, written out."""
    expected = vectors["genesis"]
    assert genesis.chain_id.hex() == expected["chain_id"]
    assert sha(b"fedchain/genesis/v1\0", expected["file"].encode()) == expected["chain_id"]
    parts = [b"fedchain/validators/v1\0", (4).to_bytes(4, "little")]
    for entry in json.loads(expected["file"])["validators"]:
        labels = [entry["name"].encode(), entry["operator"].encode()]
        parts += [bytes.fromhex(entry["public_key"])]
        parts += [bytes([len(label)]) + label for label in labels]
        framed = b"".join(bytes([len(label)]) + label for label in labels)
        openssl_verifies(
            bytes.fromhex(entry["public_key"]),
            bytes.fromhex(entry["possession"]),
            b"fedchain/validator/v1\0" + framed,
        )
    assert sha(*parts) == expected["validators_hash"] == genesis.validators.hash.hex()


def test_possession_is_over_written_out_bytes(vectors: dict[str, Any], genesis: Genesis) -> None:
    """OpenSSL verifies it over chain, name and role laid out by hand."""
    signature = bytes.fromhex(vectors["possession"])
    message = b"fedchain/possession/v1\0" + genesis.chain_id + b"\x09client-00\x01"
    openssl_verifies(key(100).public, signature, message)
    verify_possession(key(100).public, genesis.chain_id, "client-00", 1, signature)
    with pytest.raises(EvidenceError):
        verify_possession(key(100).public, genesis.chain_id, "client-01", 1, signature)


def test_statements_are_read_and_hashed_as_on_file(vectors: dict[str, Any]) -> None:
    """Every stored envelope opens; ids by hashlib, signature by OpenSSL over DSSE by hand."""
    assert len(vectors["statements"]) == 8
    for vector in vectors["statements"]:
        raw, payload = bytes.fromhex(vector["envelope"]), bytes.fromhex(vector["payload"])
        signed = decode(raw)
        assert (signed.payload_type, signed.payload) == (vector["payload_type"], payload)
        parse(signed.payload_type, signed.payload)
        kind = vector["payload_type"]
        message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
        assert sha(b"fedchain/tx/v1\0", message) == vector["transaction_id"] == signed.tx_id.hex()
        assert sha(raw) == vector["envelope_hash"] == signed.envelope_hash.hex()
        [(key_id, signature)] = signed.signatures
        assert key_id.hex() == sha(key(100).public)
        openssl_verifies(key(100).public, signature, message)


def test_an_update_is_encoded_as_written_out(vectors: dict[str, Any], genesis: Genesis) -> None:
    """protobuf's bytes of one whole statement, laid out by hand: tags, lengths, varints."""
    digest = b"\x20"  # a length of 32
    expected = b"\x0a" + digest + genesis.chain_id + b"\x12" + digest + RUN + b"\x18\x01"
    expected += b"\x22\x09client-00" + b"\x2a" + digest + MODEL + b"\x32" + digest + INSTRUCTION
    expected += b"\x3a" + digest + TRAINED + b"\x40\xb4\x01"
    assert vectors["statements"][4]["payload"] == expected.hex()


def test_votes_are_signed_over_fixed_bytes(vectors: dict[str, Any], genesis: Genesis) -> None:
    """Each stored vote checks out, by us and by OpenSSL over the preimage on file."""
    assert len(vectors["votes"]) == 5
    for vector in vectors["votes"]:
        vote = decode_vote(bytes.fromhex(vector["message"]))
        check_vote(vote, genesis.chain_id, genesis.validators)
        signature, message = bytes.fromhex(vector["signature"]), bytes.fromhex(vector["preimage"])
        assert (len(message), vote.signature) == (130, signature)
        openssl_verifies(genesis.validators[1].public_key, signature, message)


def test_header_and_certificate_are_on_file(vectors: dict[str, Any], genesis: Genesis) -> None:
    """Stored bytes decode, re-encode and hash to what is on file, by hashlib too."""
    raw = bytes.fromhex(vectors["header"]["bytes"])
    assert Header.decode(raw).encode() == raw
    assert Header.decode(raw).id.hex() == vectors["header"]["id"]
    assert sha(b"fedchain/header/v1\0", raw) == vectors["header"]["id"]
    raw = bytes.fromhex(vectors["certificate"]["bytes"])
    certificate = Certificate.decode(raw)
    assert certificate.encode() == raw
    assert sha(b"fedchain/certificate/v1\0", raw) == vectors["certificate"]["hash"]
    certificate.verify(genesis.chain_id, genesis.validators)


def test_receipt_on_file_holds(vectors: dict[str, Any], genesis: Genesis) -> None:
    """The stored receipt proves the stored update under the stored genesis; altered, nothing."""
    raw = bytes.fromhex(vectors["receipt"]["bytes"])
    verified = verify_receipt(raw, genesis)
    assert verified.signed.raw.hex() == vectors["statements"][4]["envelope"]
    assert verified.leaf_index == vectors["receipt"]["leaf_index"]
    with pytest.raises(EvidenceError):
        verify_receipt(raw[:-1] + bytes([raw[-1] ^ 1]), genesis)


def test_key_files_on_file_open(vectors: dict[str, Any], tmp_path: Path) -> None:
    """Keys that owners keep today must open tomorrow; with another passphrase never."""
    for name in ("encrypted_file", "plain_file"):
        path = tmp_path / name
        path.write_text(vectors["key"][name])
        path.chmod(0o600)
        loaded = load_key(path, lambda: PASSPHRASE)
        assert loaded.seed.hex() == vectors["key"]["seed"]
        assert loaded.public.hex() == vectors["key"]["public"]
    with pytest.raises(UsageError, match="wrong passphrase"):
        load_key(tmp_path / "encrypted_file", lambda: PASSPHRASE + " ")


if __name__ == "__main__":
    print(json.dumps(build(), indent=1, sort_keys=True))
