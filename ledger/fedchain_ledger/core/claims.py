"""The claims that an audit judges, those that it cannot, and what no ledger proves.

Source: the project's claims.md; ids and titles are its.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a history is said to have.

    Attributes:
        id: "C1" to "C17".
        title: In plain words.
        unchecked: Why this version cannot check it, None if it can.
    """

    id: str
    title: str
    unchecked: str | None = None


CLAIMS: Final = (
    Claim("C1", "encoding: what is hashed and signed is the bytes that travelled"),
    Claim("C2", "chain: heights, links and Merkle roots hold from the pinned genesis"),
    Claim("C3", "finality: a quorum of the validators in force certified every block"),
    Claim("C4", "authorship: who speaks was admitted, not revoked, and signed it"),
    Claim("C5", "lineage: every round starts from the model that the round before put out"),
    Claim("C6", "aggregation: every round's model is recomputed, bit for bit"),
    Claim("C7", "weights: positive, under the run's cap, counted as they were signed"),
    Claim("C8", "no silent drop: every recorded update is in the result or excluded by name"),
    Claim(
        "C9",
        "cohort: drawn by the rule over all admitted members",
        "this version records no sampling rule: the server chooses whom it asks",
    ),
    Claim("C10", "policy: admission, order, quorums and deadlines obey the rules in force"),
    Claim("C11", "one voice: one update per participant and round, one close per round"),
    Claim(
        "C12",
        "one history: others hold the same head",
        "no heads that clients, witnesses or an earlier audit hold were given; a tail that all of "
        "these databases lack cannot be missed here",
    ),
    Claim("C13", "time: the head was anchored outside", "this version anchors nothing outside"),
    Claim(
        "C14",
        "privacy budget: recomputed from the recorded noise",
        "this version records no noise parameters",
    ),
    Claim(
        "C15",
        "evaluation: metrics are bound to model, test set and evaluator",
        "this version records no metrics",
    ),
    Claim(
        "C16",
        "release: the released model is a recorded round's output",
        "this version records no releases",
    ),
    Claim(
        "C17",
        "inference: a prediction names a released model",
        "this version records no predictions",
    ),
)

# Judged, at each depth, by replaying statements: a replay that stopped early leaves them open.
# Encodings are read past that point, but not those of artifacts.
_BY_STATE = frozenset({"C2", "C4", "C5", "C6", "C7", "C8", "C10", "C11"})
REPLAYED: Final = {"chain": _BY_STATE, "full": _BY_STATE | {"C1"}}

# Why a claim that this version checks had nothing to look at.
NOTHING: Final = {
    "C4": "no statement is recorded",
    "C5": "no round was opened",
    "C6": "no round was averaged",
    "C7": "no update is recorded",
    "C8": "no round was closed",
    "C11": "no update is recorded",
}

LIMITS: Final = (
    "that participants are distinct parties (admission is its keys' word), or that their data is "
    "true, owned or unpoisoned;",
    "that local training happened, or that noise was really added;",
    "anything, once a third or more of the validators collude; and validators that one party "
    "runs are one party;",
    "that an update existed which the server withheld before it was recorded, unless its owner "
    "submitted it to a validator himself;",
    "that the server averaged, until somebody audits at depth full: a wrong average is found "
    "afterwards, not prevented;",
    "anything to somebody who holds the genesis only, once a quorum of old validator keys is "
    "stolen: keep a recent head, ask a witness, destroy retired keys;",
    "the average under secure aggregation, where single updates are masked.",
)
