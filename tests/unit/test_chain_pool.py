"""What waits for a block: who is let in, in which order, how much, and who is told no."""

import pytest

from fedchain_ledger.core.chain import Chain
from fedchain_ledger.core.pool import PoolLimits
from fedchain_ledger.core.rules.case import GRACE_MS
from fedchain_ledger.core.verification import ForgeryError, VerificationCache, verify
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import MAX_BLOCK_TRANSACTIONS, Certificate, Header
from fedchain_proto.errors import EvidenceError, FedchainError, RuleError, UnavailableError
from tests.unit.chainkit import (
    ALICE,
    BOB,
    CAROL,
    SHARED,
    START_MS,
    Consortium,
    Scribe,
    begun,
    key,
    tx_id,
)

WHO = Consortium()


def in_round(**policy: int) -> tuple[Scribe, bytes]:
    scribe, run = begun(None, **policy)
    scribe.write(WHO.round_opened(run))
    return scribe, run


def follower(scribe: Scribe, height: int, limits: PoolLimits | None = None) -> Chain:
    """Another validator's chain, which has decided blocks up to `height`."""
    chain = Chain(scribe.consortium.genesis, cache=SHARED, limits=limits)
    for at in range(height):
        follow(chain, scribe, at)
    return chain


def follow(chain: Chain, scribe: Scribe, at: int) -> None:
    stored = scribe.blocks[at]
    parent = scribe.blocks[at - 1].certificate if at else b""
    block = wire.Block(header=stored.header, envelopes=stored.envelopes, parent_certificate=parent)
    chain.restore(block, Certificate.decode(stored.certificate))


def decide(chain: Chain, now_ms: int) -> list[bytes]:
    """Decide what the chain proposes; the transaction ids."""
    block = chain.propose(now_ms, 0)
    assert block is not None
    block_id = chain.validate(block, proposer=0, now_ms=now_ms)
    certificate = WHO.certificate(Header.decode(block.header))
    committed = chain.commit(block_id, certificate)
    return [verified.signed.tx_id for verified in committed.valid.transactions]


def test_first_come_first_served() -> None:
    """Transactions are proposed in the order in which they came."""
    scribe, run = in_round()
    names = [CAROL, ALICE, BOB]
    for name in names:
        scribe.chain.admit(WHO.seal(WHO.update(run, name)), now_ms=scribe.now_ms)
    decided = decide(scribe.chain, scribe.now_ms)
    assert decided == [tx_id(WHO.update(run, name)) for name in names]
    assert not scribe.chain.has_work()


def test_admitting_again_waits_once() -> None:
    """A retry of equal bytes is recorded once, and then is known to be recorded."""
    scribe, run = in_round()
    raw = WHO.seal(WHO.update(run, ALICE))
    first = scribe.chain.admit(raw, now_ms=scribe.now_ms)
    assert scribe.chain.admit(raw, now_ms=scribe.now_ms) is first
    assert decide(scribe.chain, scribe.now_ms) == [first.signed.tx_id]
    with pytest.raises(RuleError) as caught:
        scribe.chain.admit(raw, now_ms=scribe.now_ms)
    assert caught.value.code == "duplicate"


def test_one_waits_per_natural_key() -> None:
    """Of two updates of one member and round the second is refused while the first waits."""
    scribe, run = in_round()
    scribe.chain.admit(WHO.seal(WHO.update(run, ALICE)), now_ms=scribe.now_ms)
    with pytest.raises(RuleError) as caught:
        scribe.chain.admit(WHO.seal(WHO.update(run, ALICE, examples=11)), now_ms=scribe.now_ms)
    assert caught.value.code == "second-update"


def test_forged_bytes_do_not_wait() -> None:
    """Junk, strangers and garbage signatures are refused as forged, with a claim."""
    scribe, run = in_round()
    good = WHO.seal(WHO.update(run, ALICE))
    for raw, claim in (
        (b"junk", "C1"),
        (good + b"\0", "C1"),
        (bytes(1 << 21), "C1"),
        (WHO.seal(WHO.update(run, ALICE), key("stranger")), "C4"),
        (good[:-1] + bytes([good[-1] ^ 1]), "C4"),
    ):
        with pytest.raises(ForgeryError) as caught:
            scribe.chain.admit(raw, now_ms=scribe.now_ms)
        assert caught.value.claim == claim
    assert not scribe.chain.has_work()


def test_loser_of_a_race_is_refused_by_name() -> None:
    """Of two conflicting updates at two validators, who waits for the loser hears why."""
    scribe, run = in_round()
    other = follower(scribe, 3)
    loser = WHO.update(run, ALICE, examples=11)
    other.admit(WHO.seal(loser), now_ms=scribe.now_ms)
    scribe.write(WHO.update(run, ALICE))
    follow(other, scribe, 3)
    assert not other.has_work()
    [(lost, error)] = other.take_refused()
    assert (lost, error.code) == (tx_id(loser), "second-update")
    assert other.take_refused() == []


def test_late_update_is_dropped_when_its_time_is_up() -> None:
    """What waited past its deadline is not proposed, and does not count as work for ever."""
    scribe, run = in_round(deadline_ms=1_000)
    chain = scribe.chain
    said = WHO.update(run, ALICE)
    chain.admit(WHO.seal(said), now_ms=scribe.now_ms)
    deadline_ms = scribe.now_ms + 1_000 + GRACE_MS
    chain.expire(deadline_ms)
    assert chain.has_work()
    chain.expire(deadline_ms + 1)
    assert not chain.has_work()
    assert [error.code for _, error in chain.take_refused()] == ["late"]
    assert chain.propose(deadline_ms + 1, 0) is None


def test_full_pool_says_try_later() -> None:
    """A full pool is no verdict on a transaction: the answer is to retry."""
    scribe, run = in_round()
    chain = follower(scribe, 3, PoolLimits(transactions=2))
    chain.admit(WHO.seal(WHO.update(run, ALICE)), now_ms=scribe.now_ms)
    chain.admit(WHO.seal(WHO.update(run, BOB)), now_ms=scribe.now_ms)
    third = WHO.seal(WHO.update(run, CAROL))
    with pytest.raises(UnavailableError):
        chain.admit(third, now_ms=scribe.now_ms)
    assert len(decide(chain, scribe.now_ms)) == 2
    chain.admit(third, now_ms=scribe.now_ms)


def test_pool_is_bounded_in_bytes() -> None:
    """Large envelopes fill the pool as many small ones do."""
    scribe, run = in_round()
    raw = WHO.seal(WHO.update(run, ALICE))
    chain = follower(scribe, 3, PoolLimits(bytes=len(raw)))
    chain.admit(raw, now_ms=scribe.now_ms)
    with pytest.raises(UnavailableError):
        chain.admit(WHO.seal(WHO.update(run, BOB)), now_ms=scribe.now_ms)


@pytest.mark.parametrize(
    "limits", [PoolLimits(signer_transactions=2), PoolLimits(signer_bytes=650)]
)
def test_flooding_member_meets_its_quota(limits: PoolLimits) -> None:
    """One signer cannot fill the pool: others still get in, and so does it, later."""
    scribe, run = in_round()
    chain = follower(scribe, 3, limits)
    opened = [WHO.seal(WHO.run_opened(nonce=bytes([i]) * 16)) for i in range(1, 4)]
    chain.admit(opened[0], now_ms=scribe.now_ms)
    chain.admit(opened[1], now_ms=scribe.now_ms)
    with pytest.raises(UnavailableError):
        chain.admit(opened[2], now_ms=scribe.now_ms)
    chain.admit(WHO.seal(WHO.update(run, ALICE)), now_ms=scribe.now_ms)
    decide(chain, scribe.now_ms)
    chain.admit(opened[2], now_ms=scribe.now_ms)


def test_admission_keys_may_let_many_in_at_once() -> None:
    """The quota of one signer does not slow the start of a consortium with many members."""
    many = Consortium(participants=tuple(f"client-{i:03d}" for i in range(70)))
    chain = Chain(many.genesis, limits=PoolLimits(signer_transactions=2))
    for raw in many.admissions():
        chain.admit(raw, now_ms=START_MS)
    assert len(decide_of(many, chain)) == 71


def decide_of(who: Consortium, chain: Chain) -> list[bytes]:
    block = chain.propose(START_MS, 0)
    assert block is not None
    block_id = chain.validate(block, proposer=0, now_ms=None)
    committed = chain.commit(block_id, who.certificate(Header.decode(block.header)))
    return [verified.signed.tx_id for verified in committed.valid.transactions]


def test_block_is_bounded_and_the_rest_waits() -> None:
    """A block takes 1,000 transactions; what is left stands first in the next one."""
    scribe, _ = begun()
    chain = follower(scribe, 2, PoolLimits(signer_transactions=2_000))
    said = [WHO.run_opened(nonce=i.to_bytes(16, "big")) for i in range(1, 1_004)]
    for one in said:
        chain.admit(WHO.seal(one), now_ms=scribe.now_ms)
    first, second = decide(chain, scribe.now_ms), decide(chain, scribe.now_ms)
    assert len(first) == MAX_BLOCK_TRANSACTIONS
    assert first + second == [tx_id(one) for one in said]


def test_overlooked_after_two_blocks_with_room() -> None:
    """A leader that leaves a valid transaction out twice, with room for it, is noticed."""
    scribe, run = in_round()
    victim = follower(scribe, 3)
    victim.admit(WHO.seal(WHO.update(run, ALICE)), now_ms=scribe.now_ms)
    scribe.write(WHO.update(run, BOB))
    follow(victim, scribe, 3)
    assert not victim.overlooked()
    scribe.write(WHO.update(run, CAROL))
    follow(victim, scribe, 4)
    assert victim.overlooked()
    decide(victim, scribe.now_ms)
    assert not victim.overlooked()


def test_nobody_is_overlooked_without_room() -> None:
    """A full block passes nobody over."""
    scribe, run = begun()
    chain = follower(scribe, 2, PoolLimits(signer_transactions=4_000))
    for i in range(1, 3_002):
        said = WHO.run_opened(nonce=i.to_bytes(16, "big"))
        chain.admit(WHO.seal(said), now_ms=scribe.now_ms)
    for _ in range(3):
        decide(chain, scribe.now_ms)
        assert not chain.overlooked()
    assert run in chain.state.runs


# ---------------------------------------------------------------- what comes too early


def test_gossip_that_overtakes_its_block_is_kept_for_it() -> None:
    """An update that another validator passes on before the round's block waits for that block."""
    scribe, run = in_round()
    behind = follower(scribe, 2)
    raw = WHO.seal(WHO.update(run, ALICE))
    with pytest.raises(RuleError) as caught:
        behind.admit(raw, now_ms=scribe.now_ms, hold=True)
    assert caught.value.code == "round-not-open"
    assert not behind.has_work()
    follow(behind, scribe, 2)
    assert behind.has_work()
    assert decide(behind, scribe.now_ms) == [tx_id(WHO.update(run, ALICE))]


def test_refused_submission_is_not_kept() -> None:
    """Who submits and is refused is refused: nothing of it comes up later."""
    scribe, run = in_round()
    behind = follower(scribe, 2)
    with pytest.raises(RuleError):
        behind.admit(WHO.seal(WHO.update(run, ALICE)), now_ms=scribe.now_ms)
    follow(behind, scribe, 2)
    assert not behind.has_work()


def test_forged_gossip_is_not_kept() -> None:
    """Nothing waits whose signature does not hold."""
    scribe, run = in_round()
    behind = follower(scribe, 2)
    raw = WHO.seal(WHO.update(run, ALICE))
    with pytest.raises(EvidenceError):
        behind.admit(raw[:-1] + b"\0", now_ms=scribe.now_ms, hold=True)
    follow(behind, scribe, 2)
    assert not behind.has_work()


def test_close_from_a_faster_clock_is_kept_until_the_deadline() -> None:
    """A validator with a slower clock does not lose the close that another one let in."""
    scribe, run = in_round(deadline_ms=1_000)
    updates = [WHO.update(run, ALICE), WHO.update(run, BOB)]
    scribe.write(*updates)
    early_ms = scribe.chain.state.time_ms + 500
    close = WHO.closed(run, updates, excluded=[(CAROL, b"", wire.REASON_SILENT)])
    with pytest.raises(RuleError) as caught:
        scribe.chain.admit(WHO.seal(close), now_ms=early_ms, hold=True)
    assert caught.value.code == "silent-early"
    scribe.chain.expire(early_ms + 1_000 + GRACE_MS)
    assert scribe.chain.has_work()


def test_what_is_early_for_ever_is_given_up() -> None:
    """Gossip that no block makes valid goes after a few blocks, and is bounded by signer."""
    scribe, run = in_round()
    chain = scribe.chain
    for number in range(2, 40):
        with pytest.raises(RuleError):
            chain.admit(WHO.seal(WHO.update(run, ALICE, number)), now_ms=scribe.now_ms, hold=True)
    assert len(chain._early) == 16
    for i in range(3):
        scribe.write(WHO.run_opened(nonce=bytes([9 + i]) * 16))
    assert len(chain._early) == 0


# ---------------------------------------------------------------- the cache


def test_cache_is_bounded_and_forgets_the_oldest() -> None:
    """Entries and bytes are bounded; what was used last stays."""
    said = [WHO.run_opened(nonce=bytes([i]) * 16) for i in range(4)]
    raws = [WHO.seal(one) for one in said]
    server = key("server")
    cache = VerificationCache(max_entries=2)
    verified = [verify(raw, lambda _: server.public, cache) for raw in raws[:2]]
    assert verify(raws[0], lambda _: None, cache) is verified[0]
    verify(raws[2], lambda _: server.public, cache)
    assert len(cache) == 2
    assert cache.get(verified[0].signed.envelope_hash) is verified[0]
    with pytest.raises(FedchainError):
        verify(raws[1], lambda _: None, cache)
    small = VerificationCache(max_bytes=len(raws[0]))
    for raw in raws:
        verify(raw, lambda _: server.public, small)
    assert len(small) == 1
