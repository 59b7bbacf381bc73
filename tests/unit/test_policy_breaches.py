"""The contract, rule by rule: what each refuses, under which code and claim.

The table breaks every rule of every kind of statement once, and nothing before it; a rule that
nobody breaks here fails the suite.
"""

import pytest

from fedchain_ledger.core import policy
from fedchain_ledger.core.policy import CONTRACT, GRACE_MS, ViolationError
from fedchain_ledger.core.state import ChainState
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import decode
from tests.unit.chainkit import (
    ALICE,
    BOB,
    CAROL,
    MODEL_0,
    MODEL_1,
    MODEL_2,
    SERVER,
    START_MS,
    Consortium,
    key,
    tx_id,
)
from tests.unit.policykit import (
    DEADLINE_MS,
    DOUBLE_VOTE,
    ERIN,
    FROM_ALICE,
    FROM_BOB,
    LIAR,
    PAST,
    RUN,
    RUN_SAID,
    SECOND_SERVER,
    WHO,
    Breach,
    admitted,
    after,
    close,
    closed,
    ended,
    excluding,
    round_open,
    running,
    trained,
    with_fields,
)

OTHER_CHAIN = Consortium(label="other-chain")
ADMISSION_KEY = WHO.admission_keys[2].public
ADMISSION_1 = (WHO.admission_keys[0],)
ADMISSION_2 = tuple(WHO.admission_keys[:2])

BREACHES = [
    # MemberAdmitted
    Breach("wrong-chain", "C4", admitted, with_fields(ERIN, chain_id=bytes(32))),
    Breach("wrong-signer", "C10", admitted, ERIN, ADMISSION_1),
    Breach("wrong-signer", "C10", admitted, ERIN, (*ADMISSION_2, key(SERVER))),
    Breach("wrong-signer", "C10", admitted, ERIN, (key("erin"),)),
    Breach("name-taken", "C10", admitted, with_fields(ERIN, name=ALICE)),
    Breach("name-taken", "C10", admitted, WHO.admitted("dan")),
    Breach("key-taken", "C10", admitted, with_fields(ERIN, public_key=key(BOB).public)),
    Breach("key-taken", "C10", admitted, with_fields(ERIN, public_key=LIAR.public)),
    Breach("key-taken", "C10", admitted, with_fields(ERIN, public_key=ADMISSION_KEY)),
    Breach("no-possession", "C10", admitted, with_fields(ERIN, role=wire.ROLE_AGGREGATOR)),
    Breach("no-possession", "C10", admitted, with_fields(ERIN, name="erika")),
    Breach(
        "no-possession",
        "C10",
        admitted,
        with_fields(OTHER_CHAIN.admitted("erin"), chain_id=WHO.genesis.chain_id),
    ),
    # MemberRevoked
    Breach("wrong-chain", "C4", admitted, with_fields(WHO.revoked(ALICE), chain_id=bytes(32))),
    Breach("wrong-signer", "C10", admitted, WHO.revoked(ALICE), ADMISSION_1),
    Breach("wrong-signer", "C10", admitted, WHO.revoked(ALICE), (key(ALICE),)),
    Breach("unknown-member", "C10", admitted, WHO.revoked("erin")),
    Breach("already-revoked", "C10", admitted, WHO.revoked("dan")),
    # RunOpened
    Breach("wrong-chain", "C4", admitted, with_fields(RUN_SAID, chain_id=bytes(32))),
    Breach("unknown-member", "C4", admitted, with_fields(RUN_SAID, aggregator="erin")),
    Breach("wrong-role", "C4", admitted, with_fields(RUN_SAID, aggregator=ALICE), (key(ALICE),)),
    Breach("revoked", "C4", admitted, with_fields(RUN_SAID, aggregator="old-server")),
    Breach("wrong-signer", "C4", admitted, RUN_SAID, (key(SECOND_SERVER),)),
    Breach("wrong-signer", "C4", admitted, RUN_SAID, (key(SERVER), key(ALICE))),
    Breach("run-exists", "C10", running, RUN_SAID),
    Breach("run-exists", "C10", ended, RUN_SAID),
    Breach("unknown-rule", "C10", admitted, WHO.run_opened(rule="median/v1")),
    # RoundOpened
    Breach("wrong-chain", "C4", running, with_fields(WHO.round_opened(RUN), chain_id=bytes(32))),
    Breach("unknown-run", "C10", running, WHO.round_opened(bytes(32))),
    Breach(
        "revoked",
        "C4",
        lambda: after(running(), WHO.revoked(SERVER)),
        WHO.round_opened(RUN),
    ),
    Breach("wrong-signer", "C4", running, WHO.round_opened(RUN), (key(SECOND_SERVER),)),
    Breach("run-closed", "C10", ended, WHO.round_opened(RUN, 2, MODEL_1)),
    Breach("round-open", "C10", round_open, WHO.round_opened(RUN, 2)),
    Breach("round-open", "C10", round_open, WHO.round_opened(RUN)),
    Breach("round-order", "C5", running, WHO.round_opened(RUN, 2)),
    Breach("round-order", "C5", closed, WHO.round_opened(RUN, 1, MODEL_1)),
    Breach("round-order", "C5", closed, WHO.round_opened(RUN, 3, MODEL_1)),
    Breach("wrong-base-model", "C5", running, WHO.round_opened(RUN, 1, MODEL_1)),
    Breach("wrong-base-model", "C5", closed, WHO.round_opened(RUN, 2, MODEL_0)),
    Breach(
        "cohort-not-admitted", "C10", running, WHO.round_opened(RUN, cohort=[ALICE, BOB, "dan"])
    ),
    Breach(
        "cohort-not-admitted", "C10", running, WHO.round_opened(RUN, cohort=[ALICE, BOB, SERVER])
    ),
    Breach(
        "cohort-not-admitted", "C10", running, WHO.round_opened(RUN, cohort=[ALICE, BOB, "erin"])
    ),
    Breach("cohort-too-small", "C10", running, WHO.round_opened(RUN, cohort=[ALICE])),
    # UpdateSubmitted
    Breach("wrong-chain", "C4", round_open, with_fields(FROM_ALICE, chain_id=bytes(32))),
    Breach("unknown-member", "C4", round_open, WHO.update(RUN, "erin")),
    Breach("wrong-role", "C4", round_open, WHO.update(RUN, SERVER)),
    Breach("revoked", "C4", round_open, WHO.update(RUN, "dan")),
    Breach("wrong-signer", "C4", round_open, FROM_ALICE, (key(BOB),)),
    Breach("wrong-signer", "C4", round_open, FROM_ALICE, (key(ALICE), key(BOB))),
    Breach("unknown-run", "C10", round_open, WHO.update(bytes(32), ALICE)),
    Breach("run-closed", "C10", ended, WHO.update(RUN, ALICE, 2, MODEL_1)),
    Breach("round-not-open", "C10", running, FROM_ALICE),
    Breach("round-not-open", "C10", round_open, WHO.update(RUN, ALICE, 2)),
    Breach("late", "C10", closed, WHO.update(RUN, CAROL)),
    Breach(
        "not-in-cohort",
        "C10",
        lambda: after(running(), WHO.round_opened(RUN, cohort=[ALICE, BOB])),
        WHO.update(RUN, CAROL),
    ),
    Breach("wrong-base-model", "C5", round_open, WHO.update(RUN, ALICE, 1, MODEL_1)),
    Breach("wrong-instruction", "C5", round_open, with_fields(FROM_ALICE, instruction=MODEL_1)),
    Breach("second-update", "C11", trained, with_fields(FROM_ALICE, num_examples=11)),
    Breach("second-update", "C11", trained, FROM_ALICE),
    Breach("weight-not-positive", "C7", round_open, WHO.update(RUN, ALICE, examples=0)),
    Breach("weight-over-cap", "C7", round_open, WHO.update(RUN, ALICE, examples=1001)),
    Breach(
        "late", "C10", round_open, WHO.update(RUN, ALICE), after_ms=DEADLINE_MS + GRACE_MS + 1
    ),
    # RoundClosed
    Breach("wrong-chain", "C4", trained, close(chain_id=bytes(32)), after_ms=PAST),
    Breach("unknown-run", "C10", trained, close(run=bytes(32)), after_ms=PAST),
    Breach("revoked", "C4", lambda: after(trained(), WHO.revoked(SERVER)), close()),
    Breach("wrong-signer", "C4", trained, close(), (key(SECOND_SERVER),), PAST),
    Breach("second-close", "C11", closed, close(model=MODEL_2), after_ms=PAST),
    Breach("second-close", "C11", closed, close(), after_ms=PAST),
    Breach("run-closed", "C10", ended, close(round=2), after_ms=PAST),
    Breach("round-not-open", "C10", trained, close(round=2), after_ms=PAST),
    Breach("round-not-open", "C10", running, close(), after_ms=PAST),
    Breach("wrong-base-model", "C5", trained, close(base_model=MODEL_2), after_ms=PAST),
    Breach("wrong-rule", "C10", trained, close(rule="fedavg/v2"), after_ms=PAST),
    Breach("cohort-not-covered", "C8", trained, close(excluded=[]), after_ms=PAST),
    Breach(
        "cohort-not-covered",
        "C8",
        trained,
        excluding((CAROL, b"", wire.REASON_SILENT), ("erin", b"", wire.REASON_SILENT)),
        after_ms=PAST,
    ),
    Breach(
        "dropped-update",
        "C8",
        trained,
        excluding((ALICE, b"", wire.REASON_CLIENT_FAILED), (CAROL, b"", wire.REASON_SILENT)),
        after_ms=PAST,
    ),
    Breach(
        "dropped-update",
        "C8",
        trained,
        excluding(
            (ALICE, tx_id(FROM_BOB), wire.REASON_NOT_FINITE), (CAROL, b"", wire.REASON_SILENT)
        ),
        after_ms=PAST,
    ),
    Breach(
        "invented-update",
        "C8",
        trained,
        WHO.closed(RUN, [FROM_ALICE, FROM_BOB, WHO.update(RUN, CAROL)]),
    ),
    Breach(
        "invented-update",
        "C8",
        trained,
        WHO.closed(
            RUN,
            [with_fields(FROM_ALICE, num_examples=11), FROM_BOB],
            excluded=[(CAROL, b"", wire.REASON_SILENT)],
        ),
    ),
    Breach(
        "invented-update",
        "C8",
        trained,
        excluding((CAROL, bytes(range(32)), wire.REASON_NOT_FINITE)),
    ),
    Breach(
        "wrong-weight",
        "C7",
        trained,
        close(
            included=[
                wire.Included(
                    participant=ALICE, transaction=tx_id(FROM_ALICE), num_examples=1000
                ),
                close().included[1],
            ]
        ),
        after_ms=PAST,
    ),
    Breach("wrong-total", "C7", trained, close(total_weight=41), after_ms=PAST),
    Breach(
        "unfounded-reason",
        "C8",
        trained,
        excluding(
            (ALICE, tx_id(FROM_ALICE), wire.REASON_SILENT), (CAROL, b"", wire.REASON_SILENT)
        ),
        after_ms=PAST,
    ),
    Breach(
        "unfounded-reason",
        "C8",
        trained,
        excluding(
            (ALICE, tx_id(FROM_ALICE), wire.REASON_BAD_SIGNATURE), (CAROL, b"", wire.REASON_LATE)
        ),
    ),
    Breach(
        "unfounded-reason", "C8", trained, excluding((CAROL, b"", wire.REASON_NOT_FINITE))
    ),
    Breach("silent-early", "C10", trained, close()),
    Breach("silent-early", "C10", trained, close(), after_ms=DEADLINE_MS + GRACE_MS),
    Breach(
        "too-few-updates",
        "C10",
        trained,
        with_fields(
            excluding(
                (ALICE, tx_id(FROM_ALICE), wire.REASON_NOT_FINITE),
                (CAROL, b"", wire.REASON_LATE),
            ),
            outcome=wire.OUTCOME_AVERAGED,
        ),
    ),
    Breach(
        "enough-updates",
        "C10",
        trained,
        close(outcome=wire.OUTCOME_ABANDONED, model=MODEL_0),
        after_ms=PAST,
    ),
    Breach(
        "abandoned-model",
        "C5",
        trained,
        with_fields(
            excluding(
                (ALICE, tx_id(FROM_ALICE), wire.REASON_NOT_FINITE),
                (CAROL, b"", wire.REASON_LATE),
            ),
            model=MODEL_1,
        ),
    ),
    # RunClosed
    Breach("wrong-chain", "C4", closed, with_fields(WHO.run_closed(RUN), chain_id=bytes(32))),
    Breach("unknown-run", "C10", closed, WHO.run_closed(bytes(32))),
    Breach("revoked", "C4", lambda: after(closed(), WHO.revoked(SERVER)), WHO.run_closed(RUN)),
    Breach("wrong-signer", "C4", closed, WHO.run_closed(RUN), (key(ALICE),)),
    Breach("run-closed", "C10", ended, WHO.run_closed(RUN)),
    Breach("round-open", "C10", round_open, WHO.run_closed(RUN, 0, MODEL_0)),
    Breach("wrong-rounds", "C10", closed, WHO.run_closed(RUN, 2)),
    Breach("wrong-model", "C5", closed, WHO.run_closed(RUN, 1, MODEL_2)),
    # Evidence
    Breach(
        "wrong-chain", "C4", admitted, with_fields(DOUBLE_VOTE, chain_id=bytes(32)), (key(ALICE),)
    ),
    Breach("wrong-signer", "C4", admitted, DOUBLE_VOTE, (key("stranger"),)),
    Breach("wrong-signer", "C4", admitted, DOUBLE_VOTE, (key("dan"),)),
    Breach("wrong-signer", "C4", admitted, DOUBLE_VOTE, (key(ALICE), key(BOB))),
    Breach(
        "unproven-offence",
        "C11",
        admitted,
        with_fields(DOUBLE_VOTE, accused=WHO.validator_keys[0].key_id),
        (key(ALICE),),
    ),
    Breach("evidence-kept", "C11", lambda: _kept(DOUBLE_VOTE), DOUBLE_VOTE, (key(BOB),)),
]  # fmt: skip


def _kept(said: wire.Evidence) -> ChainState:
    state = admitted().fork()
    signed = decode(WHO.seal(said, key(ALICE)))
    policy.apply(state, signed, said, height=state.height + 1, time_ms=START_MS)
    return state


@pytest.mark.parametrize("breach", BREACHES, ids=lambda b: f"{type(b.said).__name__}-{b.code}")
def test_contract_refuses_under_code_and_claim(breach: Breach) -> None:
    """A broken rule refuses, names itself, and files the violation under its claim."""
    with pytest.raises(ViolationError) as caught:
        breach.judge()
    assert (caught.value.code, caught.value.claim) == (breach.code, breach.claim)


def test_every_rule_of_the_contract_is_broken_above() -> None:
    """No rule stands in the contract that nothing tests."""
    broken = {(type(breach.said), breach.first_broken()) for breach in BREACHES}
    rules = {(kind, at) for kind, rules in CONTRACT.items() for at in range(len(rules))}
    assert rules - broken == set()


@pytest.mark.parametrize("breach", BREACHES, ids=lambda b: f"{type(b.said).__name__}-{b.code}")
def test_refused_statement_leaves_the_state_as_it_was(breach: Breach) -> None:
    """A refusal writes nothing down: the state's root is the same as before."""
    state = breach.state().fork()
    before = state.root()
    with pytest.raises(ViolationError):
        policy.apply(
            state,
            breach.signed(),
            breach.said,
            height=state.height + 1,
            time_ms=START_MS + breach.after_ms,
        )
    assert state.root() == before


def test_violation_names_the_participant_it_is_about() -> None:
    """Who is dropped is named, although the server signed the statement."""
    dropped = next(breach for breach in BREACHES if breach.code == "dropped-update")
    with pytest.raises(ViolationError) as caught:
        dropped.judge()
    assert caught.value.participant == ALICE
