"""One validator and four: submissions, restarts, laggards, failures, stops."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedchain_ledger.core import messages
from fedchain_ledger.core.effects import JournalEntry
from fedchain_ledger.service.node import MAX_SUBMISSION, Node, NodeState
from fedchain_ledger.service.reading import open_reader
from fedchain_ledger.service.store import NewBlock, Store
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import decode
from fedchain_proto.errors import (
    EvidenceError,
    FedchainError,
    RuleError,
    UnavailableError,
    UsageError,
)
from fedchain_proto.hashing import sha256
from fedchain_proto.receipts import verify_receipt
from fedchain_proto.votes import sign_vote
from tests.unit.chainkit import ALICE, BOB, CAROL
from tests.unit.nodekit import Cluster, play, until


def stored(cluster: Cluster, index: int) -> list[tuple[bytes, list[bytes], bytes]]:
    with open_reader(cluster.folder / f"validator-{index + 1}.db") as reader:
        return [reader.block(height) for height in range(1, reader.head_height() + 1)]


# ---------------------------------------------------------------- submitting


@pytest.mark.parametrize("validators", [1, 2, 4])
def test_submission_is_committed_and_proved(tmp_path: Path, validators: int) -> None:
    """What is submitted gets a receipt that the genesis alone verifies, in the order asked."""

    async def scene() -> None:
        async with Cluster(tmp_path, validators) as cluster:
            await cluster.start()
            consortium = cluster.consortium
            run = await cluster.open_round()
            updates = [consortium.seal(consortium.update(run, name)) for name in (BOB, ALICE)]
            receipts = await cluster.committed(updates)
            assert [receipt.signed.raw for receipt in receipts] == updates
            assert len({receipt.header.height for receipt in receipts}) == 1

    play(scene())


def test_validators_store_equal_blocks(tmp_path: Path) -> None:
    """Four validators end with the same bytes, but for the tip's certificate, which may differ."""

    async def scene() -> Cluster:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            run = await cluster.open_round(at=2)
            for at, name in enumerate((ALICE, BOB, CAROL)):
                update = cluster.consortium.seal(cluster.consortium.update(run, name))
                await cluster.committed([update], at=at)
            assert await cluster.level() == 5
            return cluster

    cluster = play(scene())
    chains = [stored(cluster, index) for index in range(4)]
    for chain in chains:
        assert [block[:2] for block in chain] == [block[:2] for block in chains[0]]
        assert chain[:-1] == chains[0][:-1]


def test_each_refusal_is_answered_in_its_place(tmp_path: Path) -> None:
    """One bad envelope in a batch costs itself only, with its own reason."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            consortium = cluster.consortium
            run = await cluster.open_round()
            good = consortium.seal(consortium.update(run, ALICE))
            forged = consortium.seal(consortium.update(run, BOB))
            outcomes = await cluster.nodes[1].submit(
                [
                    forged[:-1] + bytes([forged[-1] ^ 1]),
                    good,
                    b"rubbish",
                    consortium.seal(consortium.update(run, CAROL, number=9)),
                ],
                flush=True,
            )
            assert isinstance(outcomes[0], EvidenceError)
            assert isinstance(outcomes[1], bytes)
            assert isinstance(outcomes[2], EvidenceError)
            assert isinstance(outcomes[3], RuleError)
            assert verify_receipt(outcomes[1], consortium.genesis).signed.raw == good

    play(scene())


def test_equal_bytes_are_recorded_once(tmp_path: Path) -> None:
    """Submitted at once at every validator, and again later: one record, receipts for all."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            consortium = cluster.consortium
            run = await cluster.open_round()
            update = consortium.seal(consortium.update(run, ALICE))
            answers = await asyncio.gather(
                *(cluster.committed([update, update], at=at) for at in range(4))
            )
            again = await cluster.committed([update], at=3)
            places = {receipt.leaf_index for answer in answers for receipt in answer}
            assert places == {again[0].leaf_index}
            await cluster.level()
            assert cluster.nodes[0]._chain.state.log.size == 7

    play(scene())


def test_the_later_of_two_conflicting_updates_loses_by_name(tmp_path: Path) -> None:
    """Two different updates of one owner at two validators: one receipt, one RuleError."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            consortium = cluster.consortium
            run = await cluster.open_round()
            first, second = (
                consortium.seal(consortium.update(run, ALICE, digest=sha256(text)))
                for text in (b"one", b"two")
            )
            answers = await asyncio.gather(
                cluster.nodes[0].submit([first], flush=True),
                cluster.nodes[1].submit([second], flush=True),
            )
            assert sorted(isinstance(outcome, RuleError) for [outcome] in answers) == [False, True]
            assert sorted(isinstance(outcome, bytes) for [outcome] in answers) == [False, True]

    play(scene())


def test_quiet_time_gathers_what_no_flush_hurries(tmp_path: Path) -> None:
    """Submissions without a flush share a block, even from different validators."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            consortium = cluster.consortium
            run = await cluster.open_round()
            answers = await asyncio.gather(
                *(
                    cluster.committed(
                        [consortium.seal(consortium.update(run, name))], at=at, flush=False
                    )
                    for at, name in enumerate((ALICE, BOB, CAROL))
                )
            )
            assert len({receipt.header.height for [receipt] in answers}) == 1

    play(scene())


def test_large_batch_is_committed_whole(tmp_path: Path) -> None:
    """Hundreds of envelopes, verified ahead in threads, keep their order; junk is found."""

    async def scene() -> None:
        async with Cluster(tmp_path, label="large") as cluster:
            await cluster.start()
            consortium = cluster.consortium
            batch = [consortium.seal(consortium.admitted(f"owner-{i:03d}")) for i in range(200)]
            broken = bytearray(batch[77])
            broken[-5] ^= 1
            batch[77] = bytes(broken)
            outcomes = await cluster.nodes[0].submit(batch, flush=True)
            refused = [at for at, outcome in enumerate(outcomes) if not isinstance(outcome, bytes)]
            assert refused == [77]
            with pytest.raises(UsageError, match="at once"):
                await cluster.nodes[0].submit([b""] * (MAX_SUBMISSION + 1), flush=True)

    play(scene())


def test_reads_find_what_is_committed_only(tmp_path: Path) -> None:
    """Receipts, a round's updates and the head, from disk; nothing for what is not there."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            node, consortium = cluster.nodes[0], cluster.consortium
            assert await node.head() is None
            run = await cluster.open_round()
            updates = [consortium.seal(consortium.update(run, name)) for name in (CAROL, ALICE)]
            await cluster.committed(updates)
            found = [
                verify_receipt(raw, consortium.genesis) for raw in await node.round_updates(run, 1)
            ]
            assert [receipt.signed.raw for receipt in found] == updates
            assert await node.round_updates(run, 2) == []
            members = [
                verify_receipt(raw, consortium.genesis).signed.raw for raw in await node.members()
            ]
            assert members == consortium.admissions()
            raw = await node.receipt(decode(updates[0]).tx_id)
            assert raw is not None
            assert verify_receipt(raw, consortium.genesis).signed.raw == updates[0]
            assert await node.receipt(bytes(32)) is None
            head = await node.head()
            assert head is not None
            assert head[0] == stored(cluster, 0)[-1][0]

    play(scene())


# ---------------------------------------------------------------- restart and catch-up


@pytest.mark.parametrize("validators", [1, 4])
def test_restart_resumes_from_disk(tmp_path: Path, validators: int) -> None:
    """After a stop the chain goes on where it was, and old receipts are still to be had."""

    async def before() -> tuple[bytes, bytes]:
        async with Cluster(tmp_path, validators) as cluster:
            await cluster.start()
            run = await cluster.open_round()
            update = cluster.consortium.seal(cluster.consortium.update(run, ALICE))
            await cluster.committed([update])
            await cluster.level()
            return run, update

    async def after(run: bytes, update: bytes) -> None:
        async with Cluster(tmp_path, validators) as cluster:
            await cluster.start()
            assert [node.tip_height for node in cluster.nodes.values()] == [3] * validators
            [old] = await cluster.committed([update])
            assert old.header.height == 3
            bob = cluster.consortium.seal(cluster.consortium.update(run, BOB))
            [new] = await cluster.committed([bob], at=validators - 1)
            assert new.header.height == 4

    play(after(*play(before())))


def test_laggard_catches_up_verifying(tmp_path: Path) -> None:
    """A validator that was away gets the missed blocks from its peers and takes part again."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start(0, 1, 2)
            run = await cluster.open_round()
            for name in (ALICE, BOB):
                update = cluster.consortium.seal(cluster.consortium.update(run, name))
                await cluster.committed([update])
            await cluster.start(3)
            await until(lambda: cluster.nodes[3].tip_height == 4, "the laggard's catch-up")
            await cluster.stop(1)
            update = cluster.consortium.seal(cluster.consortium.update(run, CAROL))
            await cluster.committed([update], at=3)
            await cluster.level()

    play(scene())


def test_chain_goes_on_without_its_leader(tmp_path: Path) -> None:
    """With the leader gone the others change rounds and commit; with two gone nobody does."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            run = await cluster.open_round()
            await cluster.stop(0)
            update = cluster.consortium.seal(cluster.consortium.update(run, ALICE))
            await cluster.committed([update], at=2)
            await cluster.stop(1)
            update = cluster.consortium.seal(cluster.consortium.update(run, BOB))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await cluster.nodes[2].submit([update], flush=True)
            await cluster.start(1)
            await cluster.committed([update], at=2)

    play(scene())


def test_lost_gossip_is_repeated(tmp_path: Path) -> None:
    """A submission whose gossip nobody heard still reaches the leader, and a receipt."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            run = await cluster.open_round()
            node = cluster.nodes[3]
            transport = node._running_transport()
            lost: list[bytes] = []

            class Deaf:
                def send(self, to: int, message: bytes) -> None:
                    transport.send(to, message)

                def broadcast(self, message: bytes) -> None:
                    if message[0] == 0x32 and not lost:
                        lost.append(message)
                    else:
                        transport.broadcast(message)

            node._transport = Deaf()
            update = cluster.consortium.seal(cluster.consortium.update(run, ALICE))
            await cluster.committed([update], at=3)
            assert len(lost) == 1

    play(scene())


# ---------------------------------------------------------------- what goes wrong


def test_failed_disk_halts_the_validator_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that cannot be stored halts its validator, by name; the others go on without it."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            run = await cluster.open_round()
            await cluster.level()
            append = Store.append

            def fail(store: Store, block: NewBlock) -> None:
                if store.name == "validator-2":
                    raise FedchainError("the disk is full")
                append(store, block)

            monkeypatch.setattr(Store, "append", fail)
            update = cluster.consortium.seal(cluster.consortium.update(run, ALICE))
            await cluster.committed([update])
            halted = cluster.nodes[1]
            await until(lambda: halted.state is NodeState.HALTED, "the halt")
            assert halted.reason == "the disk is full"
            with pytest.raises(UnavailableError, match="halted: the disk is full"):
                await halted.submit([update], flush=True)
            assert "validator-2 has halted: the disk is full" in caplog.text
            monkeypatch.undo()
            await cluster.stop(1)
            await cluster.start(1)
            await cluster.level()

    play(scene())


def test_nothing_is_sent_that_is_not_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the journal cannot be written, no vote leaves; who waits is told that it is unknown."""

    async def scene() -> None:
        async with Cluster(tmp_path, 1) as cluster:
            await cluster.start()
            node = cluster.nodes[0]
            sent: list[bytes] = []

            class Recorder:
                def send(self, to: int, message: bytes) -> None:
                    sent.append(message)

                broadcast = sent.append

            node._transport = Recorder()

            def fail(store: Store, entries: Sequence[JournalEntry]) -> None:
                raise FedchainError("the disk is full")

            monkeypatch.setattr(Store, "save_journal", fail)
            with pytest.raises(UnavailableError, match="has halted: the disk is full"):
                await node.submit(cluster.consortium.admissions(), flush=True)
            kinds = {messages.parse(message).WhichOneof("body") for message in sent}
            assert kinds <= {"gossip", "tip"}

    play(scene())


@pytest.mark.parametrize("column", ["header", "certificate", "envelope"])
def test_damaged_store_halts_at_the_start(tmp_path: Path, column: str) -> None:
    """A validator whose stored chain does not replay refuses to start, naming file and height."""

    async def fill() -> None:
        async with Cluster(tmp_path, 1) as cluster:
            await cluster.start()
            await cluster.open_round()

    play(fill())
    path = tmp_path / "validator-1.db"
    table, where = ("transactions", "seq = 4") if column == "envelope" else ("blocks", "height = 2")
    with sqlite3.connect(path) as db:
        [data] = db.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()
        flipped = data[:-20] + bytes([data[-20] ^ 4]) + data[-19:]
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (flipped,))
    db.close()

    async def start() -> None:
        await Cluster(tmp_path, 1).start()

    with pytest.raises(FedchainError, match=r"validator-1\.db: block 2: .*damaged"):
        play(start())


def test_damaged_log_nodes_are_not_handed_out(tmp_path: Path) -> None:
    """A receipt that our own database cannot prove is an error here, not at whoever asked."""

    async def scene() -> None:
        async with Cluster(tmp_path, 1) as cluster:
            await cluster.start()
            await cluster.open_round()
            admission = decode(cluster.consortium.admissions()[0])
            with sqlite3.connect(tmp_path / "validator-1.db") as db:
                db.execute("UPDATE log_nodes SET hash = zeroblob(32) WHERE position = 1")
            db.close()
            with pytest.raises(FedchainError, match=r"block 1: .*database is damaged"):
                await cluster.nodes[0].receipt(admission.tx_id)

    play(scene())


def test_double_vote_becomes_evidence_on_the_chain(tmp_path: Path) -> None:
    """Two votes of one validator for one round: the others bring both before the chain."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start(0, 1, 2)
            await cluster.open_round()
            height = await cluster.level()
            genesis, liar = cluster.consortium.genesis, cluster.consortium.validator_keys[3]
            for text in (b"one", b"two"):
                vote = sign_vote(
                    liar,
                    genesis.chain_id,
                    genesis.validators.hash,
                    wire.VOTE_TYPE_PREPARE,
                    height + 1,
                    0,
                    sha256(text),
                    0,
                    3,
                )
                cluster.nodes[1].receive(3, messages.encode_vote(vote))
            chains = [node._chain for node in cluster.nodes.values()]
            await until(lambda: all(chain.state.evidence for chain in chains), "the evidence")
            [kept] = chains[0].state.evidence
            assert liar.key_id in kept

    play(scene())


def test_junk_from_peers_is_survived(tmp_path: Path) -> None:
    """Whatever bytes a peer sends, and whoever it says it is, the validator goes on."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start()
            junk = [b"", b"\x32", b"\x32\xff\xff", b"\xff" * 1000, b"\x32\x02\x0a\x00"]
            junk += [
                wire.ConsensusMessage(gossip=wire.Gossip(envelopes=[b"x"])).SerializeToString()
            ]
            # A tag byte of gossip, and a tip behind it: the core's business after all.
            junk += [junk[-1] + messages.encode_tip(2**63)]
            for message in junk:
                for sender in (-1, 0, 3, 4, 2**40):
                    cluster.nodes[1].receive(sender, message)
            await cluster.open_round(at=1)
            assert cluster.nodes[1].state is NodeState.RUNNING

    play(scene())


# ---------------------------------------------------------------- stopping


def test_stop_answers_those_who_wait(tmp_path: Path) -> None:
    """Whoever waits when a validator stops learns that the outcome is unknown; so do later ones."""

    async def scene() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.start(0, 1)  # no quorum: nothing is decided
            node = cluster.nodes[0]
            waiting = asyncio.create_task(node.submit(cluster.consortium.admissions(), flush=True))
            await asyncio.sleep(0.1)
            await node.stop()
            await node.stop()
            with pytest.raises(UnavailableError, match="validator-1 has stopped"):
                await waiting
            with pytest.raises(UnavailableError, match="validator-1 is stopped"):
                await node.submit([b""], flush=True)
            with pytest.raises(UnavailableError, match="stopped"):
                await node.receipt(bytes(32))

    play(scene())


def test_node_that_never_started_stops(tmp_path: Path) -> None:
    """A node may be stopped in any state, and started in the right one only."""

    async def scene() -> None:
        cluster = Cluster(tmp_path)
        fresh: Node = cluster.make(0)
        with pytest.raises(UsageError, match="open it first"):
            fresh.start(cluster.hub.attach(0, fresh.receive))
        await fresh.stop()
        opened = cluster.make(1)
        await opened.open()
        await opened.stop()
        assert opened.state is NodeState.STOPPED

    play(scene())
