"""Evidence convicts who said two things, and nobody else."""

import pytest

from fedchain_ledger.core import policy
from fedchain_ledger.core.policy import ViolationError
from fedchain_ledger.core.state import ChainState
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import Signed, decode, seal
from fedchain_proto.keys import SigningKey
from fedchain_proto.statements import Statement, payload_type
from tests.unit.chainkit import (
    ALICE,
    BOB,
    CAROL,
    MODEL_0,
    MODEL_1,
    MODEL_2,
    SERVER,
    START_MS,
    key,
    tx_id,
)
from tests.unit.policykit import (
    BLOCK_A,
    BLOCK_B,
    CHANGE,
    COMMIT,
    FROM_ALICE,
    FROM_BOB,
    LIAR,
    PAST,
    PREPARE,
    RUN,
    SECOND_SERVER,
    WHO,
    Breach,
    admitted,
    after,
    close,
    closed,
    evidence,
    votes,
    with_fields,
)

UNPROVEN = {
    "two equal votes": votes((PREPARE, 0, BLOCK_A, 0), (PREPARE, 0, BLOCK_A, 0)),
    "votes of two rounds": votes((PREPARE, 0, BLOCK_A, 0), (PREPARE, 1, BLOCK_B, 0)),
    "votes of two types": votes((PREPARE, 0, BLOCK_A, 0), (COMMIT, 0, BLOCK_B, 0)),
    "not votes": [b"\xff\xff", b"\xff\xfe"],
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_votes_that_do_not_conflict_convict_nobody(name: str) -> None:
    """A double vote is two things under one journal key, and no less."""
    parts = UNPROVEN[name]
    said = evidence(wire.OFFENCE_DOUBLE_VOTE, LIAR, parts)
    with pytest.raises(ViolationError) as caught:
        policy.check(
            admitted(),
            _sealed_unchecked(said),
            said,
            height=9,
            time_ms=START_MS,
        )
    assert caught.value.code == "unproven-offence"


def _sealed_unchecked(said: wire.Evidence) -> Signed:
    """Seal evidence whose two parts may be one: statements.py would refuse to."""
    return decode(seal(payload_type(said), said.SerializeToString(), [key(ALICE)]))


NO_AMNESIA = {
    "claims the committed round": votes((COMMIT, 1, BLOCK_A, 0), (CHANGE, 2, BLOCK_A, 2)),
    "changes to the same round": votes((COMMIT, 2, BLOCK_A, 0), (CHANGE, 2, BLOCK_B, 1)),
    "two commits": votes((COMMIT, 1, BLOCK_A, 0), (COMMIT, 2, BLOCK_A, 0)),
}


@pytest.mark.parametrize("name", NO_AMNESIA)
def test_who_remembers_his_lock_is_not_convicted(name: str) -> None:
    """Amnesia is a later ROUND_CHANGE that claims less than the COMMIT; nothing else is."""
    said = evidence(wire.OFFENCE_AMNESIA, LIAR, NO_AMNESIA[name])
    with pytest.raises(ViolationError) as caught:
        Breach("", "", admitted, said, (key(BOB),)).judge()
    assert caught.value.code == "unproven-offence"


def _pair(first: Statement, second: Statement, signer: SigningKey) -> list[bytes]:
    return [WHO.seal(first, signer), WHO.seal(second, signer)]


def _twice(update: wire.UpdateSubmitted) -> list[bytes]:
    """Two updates of Alice that differ in meaning."""
    return _pair(update, with_fields(update, num_examples=1), key(ALICE))


OTHER_SAID = WHO.run_opened(nonce=b"another run's no")
OTHER_RUN = tx_id(OTHER_SAID)


def two_runs() -> ChainState:
    """Round 2 of the run is open, and round 1 of another run."""
    openings = WHO.round_opened(RUN, 2, MODEL_1), OTHER_SAID, WHO.round_opened(OTHER_RUN)
    return after(closed(), *openings, after_ms=PAST)


NOT_TWO_UPDATES = {
    "of two rounds": _pair(FROM_ALICE, WHO.update(RUN, ALICE, 2), key(ALICE)),
    "of two runs": _pair(FROM_ALICE, WHO.update(OTHER_RUN, ALICE), key(ALICE)),
    "of no run": _twice(WHO.update(bytes(32), ALICE)),
    "of a round that was never opened": _twice(WHO.update(RUN, ALICE, 3)),
    "in another's name": _pair(FROM_BOB, with_fields(FROM_BOB, num_examples=1), key(ALICE)),
    "signed by another": _pair(FROM_ALICE, with_fields(FROM_ALICE, num_examples=1), key(BOB)),
    "of other statements": _pair(close(), close(model=MODEL_2), key(ALICE)),
    "for another chain": _pair(
        with_fields(FROM_ALICE, chain_id=bytes(32)),
        with_fields(FROM_ALICE, chain_id=bytes(32), num_examples=1),
        key(ALICE),
    ),
}


@pytest.mark.parametrize("name", NOT_TWO_UPDATES)
def test_updates_that_do_not_conflict_convict_nobody(name: str) -> None:
    """Two updates convict only who speaks for himself, twice, about one round of this chain."""
    said = evidence(wire.OFFENCE_TWO_UPDATES, key(ALICE), NOT_TWO_UPDATES[name])
    with pytest.raises(ViolationError) as caught:
        Breach("", "", two_runs, said, (key(SERVER),)).judge()
    assert caught.value.code == "unproven-offence"


@pytest.mark.parametrize("number", [1, 2])
def test_two_updates_of_any_round_that_was_opened_convict(number: int) -> None:
    """A round that has closed, and the one that is open, are both remembered."""
    said = evidence(wire.OFFENCE_TWO_UPDATES, key(ALICE), _twice(WHO.update(RUN, ALICE, number)))
    Breach("", "", two_runs, said, (key(SERVER),)).judge()


def test_closes_of_a_stranger_convict_nobody() -> None:
    """Only the run's own aggregator can close twice; others' words are no close at all."""
    parts = _pair(close(), close(model=MODEL_2), key(SECOND_SERVER))
    said = evidence(wire.OFFENCE_TWO_CLOSES, key(SECOND_SERVER), parts)
    with pytest.raises(ViolationError) as caught:
        Breach("", "", closed, said, (key(ALICE),)).judge()
    assert caught.value.code == "unproven-offence"


FROM_CAROL = WHO.update(RUN, CAROL)


def _out(name: str, update: wire.UpdateSubmitted, reason: wire.Reason.ValueType) -> wire.Exclusion:
    return wire.Exclusion(participant=name, transaction=tx_id(update), reason=reason)


def test_close_that_was_refused_and_mended_convicts_nobody() -> None:
    """An honest server names anew whom it leaves out when an update came in while it closed."""
    refused = close()
    mended = close(excluded=[_out(CAROL, FROM_CAROL, wire.REASON_ARRAYS_MISSING)])
    said = evidence(wire.OFFENCE_TWO_CLOSES, key(SERVER), _pair(refused, mended, key(SERVER)))
    with pytest.raises(ViolationError) as caught:
        Breach("", "", closed, said, (key(ALICE),)).judge()
    assert caught.value.code == "unproven-offence"
    assert "publish one result" in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        close(model=MODEL_2),
        close(outcome=wire.OUTCOME_ABANDONED, model=MODEL_0),
        WHO.closed(RUN, [FROM_ALICE, FROM_BOB, FROM_CAROL]),
    ],
    ids=["another model", "abandoned", "another update included"],
)
def test_two_results_of_one_round_convict(other: wire.RoundClosed) -> None:
    """Whatever else they say: a round has one model, of one set of updates."""
    said = evidence(wire.OFFENCE_TWO_CLOSES, key(SERVER), _pair(close(), other, key(SERVER)))
    Breach("", "", closed, said, (key(ALICE),)).judge()
