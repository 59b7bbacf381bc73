"""Evidence convicts who said two things, and nobody else."""

import pytest
from fedchain_ledger.core import policy
from fedchain_ledger.core.policy import ViolationError
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import Signed, decode, seal
from fedchain_proto.keys import SigningKey
from fedchain_proto.statements import Statement, payload_type

from tests.unit.chainkit import (
    ALICE,
    BOB,
    MODEL_2,
    SERVER,
    START_MS,
    key,
)
from tests.unit.policykit import (
    BLOCK_A,
    BLOCK_B,
    CHANGE,
    COMMIT,
    FROM_ALICE,
    FROM_BOB,
    LIAR,
    PREPARE,
    RUN,
    SECOND_SERVER,
    WHO,
    Breach,
    admitted,
    close,
    closed,
    evidence,
    trained,
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


NOT_TWO_UPDATES = {
    "of two rounds": _pair(FROM_ALICE, WHO.update(RUN, ALICE, 2), key(ALICE)),
    "of two runs": _pair(FROM_ALICE, WHO.update(bytes(32), ALICE), key(ALICE)),
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
        Breach("", "", trained, said, (key(SERVER),)).judge()
    assert caught.value.code == "unproven-offence"


def test_closes_of_a_stranger_convict_nobody() -> None:
    """Only the run's own aggregator can close twice; others' words are no close at all."""
    parts = _pair(close(), close(model=MODEL_2), key(SECOND_SERVER))
    said = evidence(wire.OFFENCE_TWO_CLOSES, key(SECOND_SERVER), parts)
    with pytest.raises(ViolationError) as caught:
        Breach("", "", closed, said, (key(ALICE),)).judge()
    assert caught.value.code == "unproven-offence"
