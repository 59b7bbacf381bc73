"""The chain: what makes a block valid, what it refuses, and what it halts at."""

from dataclasses import replace
from typing import Any

import pytest

from fedchain_ledger.core.application import Application
from fedchain_ledger.core.blockrules import CLOCK_MS, BodyError, IrreproducibleError
from fedchain_ledger.core.chain import Chain
from fedchain_ledger.core.verification import ForgeryError
from fedchain_proto import merkle
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate, Header
from fedchain_proto.envelope import seal
from fedchain_proto.errors import EvidenceError, FedchainError, RuleError, UsageError
from fedchain_proto.hashing import sha256
from tests.unit.chainkit import (
    ALICE,
    BOB,
    MODEL_1,
    SHARED,
    START_MS,
    Consortium,
    Scribe,
    Stored,
    begun,
    key,
    trained,
    tx_id,
)

WHO = Consortium()


def block_of(stored: Stored, parent: bytes = b"") -> wire.Block:
    return wire.Block(header=stored.header, envelopes=stored.envelopes, parent_certificate=parent)


def restored(scribe: Scribe) -> Chain:
    """Read a written chain into a new one, as a node does at its start."""
    chain = Chain(scribe.consortium.genesis, cache=SHARED)
    parent = b""
    for stored in scribe.blocks:
        chain.restore(block_of(stored, parent), Certificate.decode(stored.certificate))
        parent = stored.certificate
    return chain


def test_chain_is_an_application_of_the_consensus_core() -> None:
    """The core orders this chain: the type checker holds the two together."""
    application: Application = Chain(WHO.genesis)
    assert (application.tip_height, application.tip_proposer) == (0, 0)
    assert application.validators == WHO.genesis.validators
    assert not application.has_work()
    assert application.propose(START_MS, 0) is None


def test_restored_chain_equals_the_written_one() -> None:
    """State and tip follow from genesis and blocks alone."""
    scribe, _ = trained(rounds=2)
    chain = restored(scribe)
    assert chain.state.root() == scribe.chain.state.root()
    assert chain.state.head_id == scribe.chain.state.head_id
    assert chain.certificate == scribe.chain.certificate
    assert chain.state.log == scribe.chain.state.log


def test_block_is_valid_by_its_bytes_whatever_waits() -> None:
    """A validator with an empty pool accepts what another one proposed from its own."""
    scribe, run = begun()
    other = restored(scribe)
    scribe.chain.admit(WHO.seal(WHO.round_opened(run)), now_ms=scribe.now_ms)
    block = scribe.chain.propose(scribe.now_ms + 5, 2)
    assert block is not None
    block_id = other.validate(block, proposer=2, now_ms=scribe.now_ms + 5)
    assert block_id == Header.decode(block.header).id
    assert other.validate(block, proposer=None, now_ms=None) == block_id


def test_committed_block_carries_what_a_store_needs() -> None:
    """The log's finished subtrees of all blocks together are those of the whole log."""
    scribe = Scribe(WHO)
    committed = [scribe.write(one) for one in WHO.admissions()]
    nodes = {(level, at): node for one in committed for level, at, node in one.valid.log_nodes}
    leaves = [merkle.leaf_hash(raw) for raw in WHO.admissions()]
    assert nodes[(2, 0)] == merkle.root(leaves)
    assert [nodes[(0, at)] for at in range(4)] == leaves
    assert committed[-1].certificate == scribe.chain.certificate


def test_block_names_one_of_several_certificates_of_its_parent() -> None:
    """A validator that holds another valid certificate of the tip takes the one that is named."""
    scribe = Scribe(WHO)
    scribe.write(*WHO.admissions())
    other = Chain(WHO.genesis, cache=SHARED)
    header = Header.decode(scribe.blocks[0].header)
    other.restore(block_of(scribe.blocks[0]), WHO.certificate(header, [1, 2, 3]))
    scribe.write(WHO.run_opened())
    block = block_of(scribe.blocks[1], scribe.blocks[0].certificate)
    committed = other.restore(block, Certificate.decode(scribe.blocks[1].certificate))
    assert committed.valid.block.parent_certificate == scribe.blocks[0].certificate


# ---------------------------------------------------------------- what a block may not be


def proposal(scribe: Scribe, run: bytes) -> wire.Block:
    scribe.chain.admit(WHO.seal(WHO.round_opened(run)), now_ms=scribe.now_ms)
    block = scribe.chain.propose(scribe.now_ms + 10, 1)
    assert block is not None
    return block


CHANGES: dict[str, dict[str, Any]] = {
    "another chain": {"chain_id": sha256(b"chain")},
    "a height too high": {"height": 9},
    "another parent": {"parent_id": sha256(b"parent")},
    "its parent's time": {"time_ms": 0},
    "a proposer beyond the set": {"proposer": 4},
    "a wrong log size": {"log_size": 99},
    "a wrong log root": {"log_root": sha256(b"log")},
    "another validator set": {"validators_hash": sha256(b"set")},
    "a change of the set": {"next_validators_hash": sha256(b"set")},
    "a wrong state root": {"state_root": sha256(b"state")},
    "a wrong tx root": {"tx_root": sha256(b"txs")},
    "a wrong certificate": {"last_commit_hash": sha256(b"certificate")},
}


@pytest.mark.parametrize("name", CHANGES)
def test_no_header_field_may_lie(name: str) -> None:
    """Every field of a header is checked, also in a block that a quorum is said to have seen."""
    scribe, run = begun()
    block = proposal(scribe, run)
    header = replace(Header.decode(block.header), **CHANGES[name])
    forged = wire.Block(
        header=header.encode(),
        envelopes=block.envelopes,
        parent_certificate=block.parent_certificate,
    )
    with pytest.raises(EvidenceError):
        restored(scribe).validate(forged, proposer=None, now_ms=None)


def test_body_that_is_not_the_headers_is_the_senders_lie() -> None:
    """Exchanged, missing, added or reordered transactions convict the sender, not the block."""
    scribe, run = begun()
    block = proposal(scribe, run)
    stranger = WHO.seal(WHO.revoked(ALICE))
    bodies = [[], [stranger], [*block.envelopes, stranger], [*block.envelopes, *block.envelopes]]
    for envelopes in bodies:
        forged = wire.Block(
            header=block.header,
            envelopes=envelopes,
            parent_certificate=block.parent_certificate,
        )
        with pytest.raises(BodyError):
            restored(scribe).validate(forged, proposer=None, now_ms=None)


def test_parents_certificate_must_be_the_named_one() -> None:
    """Without, with another, or with a damaged certificate of its parent a block is refused."""
    scribe, run = begun()
    block = proposal(scribe, run)
    header = Header.decode(scribe.blocks[-1].header)
    other = WHO.certificate(header, [1, 2, 3]).encode()
    for certificate in (b"", other, block.parent_certificate[:-1], b"junk"):
        forged = wire.Block(
            header=block.header, envelopes=block.envelopes, parent_certificate=certificate
        )
        with pytest.raises(BodyError):
            restored(scribe).validate(forged, proposer=None, now_ms=None)


def test_named_certificate_must_hold() -> None:
    """A header that hashes a certificate without a quorum is refused, though the hash is right."""
    scribe, run = begun()
    block = proposal(scribe, run)
    parent = Header.decode(scribe.blocks[-1].header)
    weak = WHO.certificate(parent, [0, 1])
    header = replace(Header.decode(block.header), last_commit_hash=weak.hash)
    forged = wire.Block(
        header=header.encode(), envelopes=block.envelopes, parent_certificate=weak.encode()
    )
    with pytest.raises(ForgeryError) as caught:
        restored(scribe).validate(forged, proposer=None, now_ms=None)
    assert caught.value.claim == "C3"


def test_first_block_has_no_certificate_to_carry() -> None:
    """The genesis is decided by being pinned; a certificate for it is a lie."""
    scribe = Scribe(WHO)
    scribe.write(*WHO.admissions())
    block = block_of(scribe.blocks[0], scribe.blocks[0].certificate)
    with pytest.raises(BodyError):
        Chain(WHO.genesis).validate(block, proposer=None, now_ms=None)


def test_empty_and_oversized_blocks_are_refused() -> None:
    """A block holds at least one transaction and at most 1,000."""
    scribe = Scribe(WHO)
    junk = [bytes([i & 255, i >> 8]) for i in range(1001)]
    scribe.forge(*junk)
    scribe.forge()
    for stored in scribe.blocks:
        with pytest.raises(BodyError):
            Chain(WHO.genesis).validate(block_of(stored), proposer=None, now_ms=None)


def test_new_block_must_come_from_the_leader_and_now() -> None:
    """A new block's proposer and clock are checked; of one proposed again neither is."""
    scribe, run = begun()
    block = proposal(scribe, run)
    now_ms = Header.decode(block.header).time_ms
    chain = restored(scribe)
    chain.validate(block, proposer=1, now_ms=now_ms + CLOCK_MS)
    chain.validate(block, proposer=1, now_ms=now_ms - CLOCK_MS)
    for leader, clock in ((2, now_ms), (1, now_ms + CLOCK_MS + 1), (1, now_ms - CLOCK_MS - 1)):
        with pytest.raises(EvidenceError):
            chain.validate(block, proposer=leader, now_ms=clock)
    chain.validate(block, proposer=None, now_ms=None)


def test_time_moves_on_when_the_parent_is_ahead_of_all_clocks() -> None:
    """After a block from a fast clock the next one is a millisecond later, and is accepted."""
    scribe = Scribe(WHO)
    scribe.write(*WHO.admissions(), after_ms=60_000)
    slow_ms = START_MS
    scribe.chain.admit(WHO.seal(WHO.run_opened()), now_ms=slow_ms)
    block = scribe.chain.propose(slow_ms, 0)
    assert block is not None
    assert Header.decode(block.header).time_ms == START_MS + 60_001
    restored(scribe).validate(block, proposer=0, now_ms=slow_ms)


def test_transaction_that_the_rules_refuse_makes_the_block_invalid() -> None:
    """One refused transaction is enough; the refusal carries its claim."""
    scribe, run = begun()
    scribe.write(WHO.round_opened(run))
    scribe.forge(WHO.update(run, ALICE), WHO.update(run, BOB, examples=5_000))
    block = block_of(scribe.blocks[-1], scribe.blocks[-2].certificate)
    with pytest.raises(RuleError) as caught:
        scribe.chain.validate(block, proposer=None, now_ms=None)
    assert (caught.value.code, caught.value.claim) == ("weight-over-cap", "C7")


def test_no_transaction_is_in_a_block_twice_or_in_two_blocks() -> None:
    """Replaying a transaction within a block, or from an earlier one, is refused."""
    scribe, run = begun()
    scribe.write(WHO.round_opened(run))
    update = WHO.seal(WHO.update(run, ALICE))
    scribe.forge(update, update)
    scribe.forge(WHO.round_opened(run))
    scribe.forge(*WHO.admissions()[:1])
    for stored in scribe.blocks[-3:]:
        block = block_of(stored, scribe.blocks[-4].certificate)
        with pytest.raises(RuleError):
            scribe.chain.validate(block, proposer=None, now_ms=None)


def test_warm_cache_does_not_let_a_garbage_signature_by() -> None:
    """A known payload under another signature is verified anew: the cache knows whole envelopes."""
    scribe, run = begun()
    said = WHO.round_opened(run)
    scribe.chain.admit(WHO.seal(said), now_ms=scribe.now_ms)
    good = WHO.seal(said)
    garbage = good[:-64] + bytes(64)
    scribe.forge(garbage)
    block = block_of(scribe.blocks[-1], scribe.blocks[-2].certificate)
    with pytest.raises(ForgeryError) as caught:
        scribe.chain.validate(block, proposer=None, now_ms=None)
    assert caught.value.claim == "C4"


@pytest.mark.parametrize("raw", [b"", b"\xff" * 40, seal("text/plain", b"hello", [key(ALICE)])])
def test_junk_in_a_block_is_refused_not_raised(raw: bytes) -> None:
    """Whatever bytes a quorum certified, the answer is one of our errors."""
    scribe, _ = begun()
    scribe.forge(raw)
    block = block_of(scribe.blocks[-1], scribe.blocks[-2].certificate)
    with pytest.raises(FedchainError):
        scribe.chain.validate(block, proposer=None, now_ms=None)


# ---------------------------------------------------------------- deciding


def test_only_a_validated_block_is_committed_with_its_own_certificate() -> None:
    """Neither an unknown block nor another block's certificate moves the tip."""
    scribe, run = begun()
    block = proposal(scribe, run)
    header = Header.decode(block.header)
    chain = restored(scribe)
    with pytest.raises(UsageError):
        chain.commit(header.id, WHO.certificate(header))
    chain.validate(block, proposer=None, now_ms=None)
    with pytest.raises(UsageError):
        chain.commit(header.id, WHO.certificate(Header.decode(scribe.blocks[0].header)))
    chain.commit(header.id, WHO.certificate(header))
    assert chain.tip_height == header.height


def test_certified_block_that_breaks_the_rules_halts() -> None:
    """To follow a quorum that broke the rules, or to ignore it, would fork the chain in silence."""
    scribe, run = begun()
    scribe.forge(WHO.update(run, ALICE))
    chain = restored_up_to(scribe, 2)
    stored = scribe.blocks[2]
    with pytest.raises(IrreproducibleError, match="round 1 is not open"):
        chain.restore(
            block_of(stored, scribe.blocks[1].certificate), Certificate.decode(stored.certificate)
        )
    assert chain.tip_height == 2


def test_certified_block_with_other_roots_halts() -> None:
    """The rules hold and the state does not: this program is not theirs."""
    scribe, run = begun()
    scribe.forge(WHO.round_opened(run))
    stored = scribe.blocks[2]
    with pytest.raises(IrreproducibleError, match="state_root"):
        restored_up_to(scribe, 2).restore(
            block_of(stored, scribe.blocks[1].certificate), Certificate.decode(stored.certificate)
        )


def test_peer_that_lies_about_a_certified_block_is_no_reason_to_halt() -> None:
    """A doctored body, or a certificate that does not hold, is the peer's fault alone."""
    scribe, run = begun()
    scribe.write(WHO.round_opened(run))
    stored, parent = scribe.blocks[2], scribe.blocks[1].certificate
    certificate = Certificate.decode(stored.certificate)
    doctored = wire.Block(
        header=stored.header, envelopes=[WHO.seal(WHO.revoked(ALICE))], parent_certificate=parent
    )
    weak = WHO.certificate(Header.decode(stored.header), [0, 1])
    other = Certificate.decode(scribe.blocks[0].certificate)
    chain = restored_up_to(scribe, 2)
    with pytest.raises(BodyError):
        chain.restore(doctored, certificate)
    for bad in (weak, other):
        with pytest.raises(EvidenceError):
            chain.restore(block_of(stored, parent), bad)
    assert chain.restore(block_of(stored, parent), certificate).valid.header.height == 3


def restored_up_to(scribe: Scribe, height: int) -> Chain:
    chain = Chain(scribe.consortium.genesis, cache=SHARED)
    parent = b""
    for stored in scribe.blocks[:height]:
        chain.restore(block_of(stored, parent), Certificate.decode(stored.certificate))
        parent = stored.certificate
    return chain


def test_run_and_its_first_round_share_a_block() -> None:
    """What builds on a transaction may stand behind it in the same block."""
    scribe = Scribe(WHO)
    said = WHO.run_opened()
    committed = scribe.write(*WHO.admissions(), said, WHO.round_opened(tx_id(said)))
    assert len(committed.valid.transactions) == 6
    run = scribe.chain.state.runs[tx_id(said)]
    assert run.open_round is not None
    assert run.model != MODEL_1
