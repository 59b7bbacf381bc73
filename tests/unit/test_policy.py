"""The contract: what it lets by, that nothing counts twice, and what each statement leads to."""

from collections import Counter

import pytest

from fedchain_ledger.core import policy
from fedchain_ledger.core.policy import CONTRACT, GRACE_MS, ViolationError
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import decode
from tests.unit.chainkit import (
    ALICE,
    BOB,
    CAROL,
    INSTRUCTION,
    MODEL_0,
    MODEL_1,
    SERVER,
    START_MS,
    key,
    tx_id,
)
from tests.unit.policykit import (
    AMNESIA,
    BLOCK_A,
    CHANGE,
    COMMIT,
    DEADLINE_MS,
    DOUBLE_VOTE,
    ERIN,
    FROM_ALICE,
    LIAR,
    PAST,
    RUN,
    RUN_SAID,
    TWO_CLOSES,
    TWO_UPDATES,
    WHO,
    Breach,
    admitted,
    after,
    close,
    closed,
    evidence,
    excluding,
    round_open,
    running,
    trained,
    votes,
)

GOOD = {
    "a member": Breach("", "", admitted, ERIN),
    "a revocation": Breach("", "", admitted, WHO.revoked(ALICE)),
    "a run": Breach("", "", admitted, RUN_SAID),
    "a second run": Breach("", "", running, WHO.run_opened(nonce=bytes(range(16)))),
    "round 1": Breach("", "", running, WHO.round_opened(RUN)),
    "a round without Carol": Breach("", "", running, WHO.round_opened(RUN, cohort=[ALICE, BOB])),
    "round 2": Breach("", "", closed, WHO.round_opened(RUN, 2, MODEL_1)),
    "an update": Breach("", "", trained, WHO.update(RUN, CAROL)),
    "an update with the largest weight": Breach(
        "", "", trained, WHO.update(RUN, CAROL, examples=1000)
    ),
    "an update in the grace": Breach(
        "", "", trained, WHO.update(RUN, CAROL), after_ms=DEADLINE_MS + GRACE_MS
    ),
    "a close after the deadline": Breach("", "", trained, close(), after_ms=PAST),
    "a close before it": Breach(
        "", "", trained, excluding((CAROL, b"", wire.REASON_CLIENT_FAILED))
    ),
    "a close without Alice's arrays": Breach(
        "",
        "",
        trained,
        excluding(
            (ALICE, tx_id(FROM_ALICE), wire.REASON_ARRAYS_MISSING),
            (CAROL, b"", wire.REASON_NOT_ASKED),
        ),
    ),
    "a close without Alice's NaN": Breach(
        "",
        "",
        trained,
        excluding(
            (ALICE, tx_id(FROM_ALICE), wire.REASON_NOT_FINITE),
            (CAROL, b"", wire.REASON_LATE),
        ),
    ),
    "the run's end": Breach("", "", closed, WHO.run_closed(RUN)),
    "an abort between rounds": Breach("", "", closed, WHO.run_closed(RUN, aborted=True)),
    "an abort in a round": Breach("", "", trained, WHO.run_closed(RUN, 0, MODEL_0, aborted=True)),
    "a double vote": Breach("", "", admitted, DOUBLE_VOTE, (key(ALICE),)),
    "a double vote, by a validator": Breach(
        "", "", admitted, DOUBLE_VOTE, (WHO.validator_keys[0],)
    ),
    "amnesia": Breach("", "", admitted, AMNESIA, (key(BOB),)),
    "amnesia without any lock": Breach(
        "",
        "",
        admitted,
        evidence(wire.OFFENCE_AMNESIA, LIAR, votes((COMMIT, 1, BLOCK_A, 0), (CHANGE, 5, b"", 0))),
        (key(BOB),),
    ),
    "two updates": Breach("", "", trained, TWO_UPDATES, (key(SERVER),)),
    "two closes": Breach("", "", closed, TWO_CLOSES, (key(BOB),)),
}


@pytest.mark.parametrize("name", GOOD)
def test_contract_lets_by_what_follows_it(name: str) -> None:
    """The positive twin of every rule: each kind of statement passes all rules of its kind."""
    GOOD[name].judge()


def test_every_kind_of_statement_has_rules_and_a_positive_test() -> None:
    """A new kind of statement cannot slip past the contract."""
    assert {type(good.said) for good in GOOD.values()} == set(CONTRACT)


@pytest.mark.parametrize("name", GOOD)
def test_nothing_counts_twice(name: str) -> None:
    """No statement of any kind can be applied again, with a later block's height and time too."""
    good = GOOD[name]
    state = good.state().fork()
    time_ms = START_MS + good.after_ms
    policy.apply(state, good.signed(), good.said, height=9, time_ms=time_ms)
    root = state.root()
    with pytest.raises(ViolationError):
        policy.apply(state, good.signed(), good.said, height=10, time_ms=time_ms + 1)
    assert state.root() == root


def test_tally_counts_a_statement_once_per_claim() -> None:
    """What was checked is counted by statement and claim, so that a report's numbers mean it."""
    tally: Counter[str] = Counter()
    GOOD["an update"].judge(tally)
    GOOD["an update"].judge(tally)
    assert tally == {"C4": 2, "C5": 2, "C7": 2, "C10": 2, "C11": 2}


def test_round_takes_its_deadline_from_the_block_that_opens_it() -> None:
    """The deadline is header time plus the run's round time, whatever any clock says."""
    state = running().fork()
    said = WHO.round_opened(RUN)
    policy.apply(state, decode(WHO.seal(said)), said, height=5, time_ms=START_MS + 77)
    current = state.runs[RUN].open_round
    assert current is not None
    assert (current.opened_height, current.deadline_ms) == (5, START_MS + 77 + DEADLINE_MS)
    assert current.instruction == INSTRUCTION


def test_abandoned_round_uses_its_number_up() -> None:
    """After an abandoned round the next number starts from the same model."""
    entries = (
        (ALICE, tx_id(FROM_ALICE), wire.REASON_NOT_FINITE),
        (CAROL, b"", wire.REASON_LATE),
    )
    state = after(trained(), excluding(*entries))
    assert (state.runs[RUN].closed_rounds, state.runs[RUN].model) == (1, MODEL_0)
    after(state, WHO.round_opened(RUN, 2, MODEL_0))


def test_revoked_update_stays_and_next_is_refused() -> None:
    """A revocation holds from the next statement on; what stood in the log before still counts."""
    state = after(trained(), WHO.revoked(ALICE))
    after(state, close(), after_ms=PAST)
    breach = Breach("", "", lambda: after(round_open(), WHO.revoked(ALICE)), FROM_ALICE)
    with pytest.raises(ViolationError) as caught:
        breach.judge()
    assert caught.value.code == "revoked"
