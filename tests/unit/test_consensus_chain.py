"""The core over the real chain: blocks of statements, and evidence that the chain accepts."""

from collections import deque

from fedchain_ledger.core import messages
from fedchain_ledger.core.chain import Chain
from fedchain_ledger.core.consensus import Core
from fedchain_ledger.core.effects import Accuse, Decide, Effect, MessageReceived, Send, WorkArrived
from fedchain_ledger.core.votebook import PREPARE
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.statements import seal_statement
from fedchain_proto.votes import sign_vote
from tests.unit.chainkit import SHARED, START_MS, Consortium


class Four:
    """Four cores over four chains, and a network that loses nothing."""

    def __init__(self) -> None:
        self.who = Consortium()
        self.chains = [Chain(self.who.genesis, cache=SHARED) for _ in range(4)]
        self.now = START_MS + 1_000
        self.wires: deque[tuple[int, int, bytes]] = deque()
        self.decided: list[tuple[int, int, bytes]] = []
        self.accused: list[Accuse] = []
        self.cores = [
            Core(chain_id=self.who.genesis.chain_id, key=key, app=chain)
            for key, chain in zip(self.who.validator_keys, self.chains, strict=True)
        ]
        for index, core in enumerate(self.cores):
            self.run(index, core.start(self.now))

    def run(self, index: int, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                others = [i for i in range(4) if i != index and effect.to in (None, i)]
                self.wires += [(index, i, effect.message) for i in others]
            elif isinstance(effect, Decide):
                self.decided.append((index, effect.height, effect.block_id))
            elif isinstance(effect, Accuse):
                self.accused.append(effect)

    def submit(self, *envelopes: bytes) -> None:
        self.now += 50
        for index, chain in enumerate(self.chains):
            for raw in envelopes:
                chain.admit(raw, now_ms=self.now)
            self.run(index, self.cores[index].handle(WorkArrived(flush=True), self.now))
        while self.wires:
            sender, to, raw = self.wires.popleft()
            self.run(to, self.cores[to].handle(MessageReceived(sender, raw), self.now))


def admitted(four: Four, name: str) -> bytes:
    return seal_statement(four.who.admitted(name), four.who.admission_keys[0])


def test_four_chains_grow_alike() -> None:
    """Each block of real statements has one id and one state everywhere; the parent's
    certificate in each block is one that all accept, though they hold different ones.
    """
    four = Four()
    for name in ("alice", "bob", "carol"):
        four.submit(admitted(four, name))
    assert [chain.tip_height for chain in four.chains] == [3] * 4
    assert len({chain.state.root() for chain in four.chains}) == 1
    assert len({(height, block_id) for _, height, block_id in four.decided}) == 3


def test_what_the_core_accuses_of_the_chain_takes_for_proven() -> None:
    """Evidence from votes, sealed by a validator, is recorded; once."""
    four = Four()
    genesis = four.who.genesis
    for content in (b"\1", b"\2"):
        vote = sign_vote(
            four.who.validator_keys[3],
            genesis.chain_id,
            genesis.validators.hash,
            PREPARE,
            1,
            0,
            content * 32,
            0,
            3,
        )
        raw = messages.encode_vote(vote)
        four.run(1, four.cores[1].handle(MessageReceived(3, raw), four.now))
    (accusation,) = four.accused
    evidence = wire.Evidence(
        chain_id=genesis.chain_id,
        offence=accusation.offence,
        accused=accusation.accused,
        first=accusation.first,
        second=accusation.second,
    )
    four.submit(seal_statement(evidence, four.who.validator_keys[1]))
    assert [chain.tip_height for chain in four.chains] == [1] * 4
    assert accusation.accused == four.who.validator_keys[3].key_id
