"""A whole federation in one folder: genesis, keys, validators, data owners, one process.

This is the embedded default: nothing to operate. One operator stands behind all validators,
and every audit report says so. The keys lie unencrypted (mode 0600) beside each other, because
a passphrase would have to lie there too.
"""

import os
import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from fedchain.naming import participant_names, validator_names
from fedchain.workdir import Workdir, check_free
from fedchain_clients.home import OwnerHome
from fedchain_ledger.client import LedgerClient
from fedchain_ledger.service.embedded import EmbeddedLedger
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFolder
from fedchain_proto.errors import FedchainError, UsageError
from fedchain_proto.flowkeys import NODE_CONFIG_HOME
from fedchain_proto.keys import SigningKey, possession, save_key
from fedchain_proto.statements import seal_statement
from fedchain_proto.trust import Genesis, Validator, make_genesis, validator_possession
from fedchain_server import LedgerFedAvg

AGGREGATOR = "aggregator"
_LOOK_S = 5.0  # On the way out of an error nobody waits for long.
OPERATOR = "embedded"  # One party runs every validator here, under one operator's name.


class Federation:
    """An embedded federation. Making one writes nothing; entering it makes folder and ledger.

    Leaving it by an error before anything was recorded on the ledger, no run for instance, leaves
    nothing behind.

    ::

        federation = Federation("my-run", clients=10)
        grid = ...                       # may fork: no thread or database of ours exists yet
        with federation:
            federation.strategy(policy=Policy()).start(grid, arrays, num_rounds=5)

    Args:
        workdir: A folder that does not exist yet or is empty.
        clients: Number of data owners, 1 to 4096; named ``client-00`` and so on.
        validators: Number of validators, 1 to 100.

    Raises:
        UsageError: A number out of range, or a folder that is in use or not empty.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, clients: int, validators: int = 4
    ) -> None:
        self.participants = participant_names(clients)
        self._validators = validator_names(validators)
        self.path = Path(workdir).absolute()
        check_free(self.path)
        self._keys: dict[str, SigningKey] = {}
        self._ledger: EmbeddedLedger | None = None
        self._workdir: Workdir | None = None
        self._founded: tuple[int, bytes] | None = None  # the ledger's head when nothing has run

    @property
    def ledger(self) -> LedgerClient:
        """The way to the ledger; only between `start` and `close`."""
        if self._ledger is None:
            raise UsageError("the federation is not running; use it in a with statement")
        return self._ledger.client()

    @property
    def workdir(self) -> Workdir:
        """The folder; only while the federation is entered."""
        if self._workdir is None:
            raise UsageError("the federation is not running; use it in a with statement")
        return self._workdir

    def node_config(self, participant: str) -> dict[str, Any]:
        """What Flower's ``context.node_config`` holds for one data owner.

        ``partition-id`` and ``num-partitions`` as Flower sets them, and the folder in which
        `fedchain.attest` finds the owner's key.
        """
        return {
            "partition-id": self.participants.index(participant),
            "num-partitions": len(self.participants),
            NODE_CONFIG_HOME: str(self.path / "participants" / participant),
        }

    def strategy(self, **options: Any) -> LedgerFedAvg:
        """Make the strategy that records its rounds on this federation's ledger.

        Args:
            options: As for `LedgerFedAvg`, without ledger, key, name and store.
        """
        return LedgerFedAvg(
            self.ledger,
            key=self._keys[AGGREGATOR],
            name=AGGREGATOR,
            store=ArtifactFolder(self.workdir.artifacts),
            **options,
        )

    def __enter__(self) -> "Federation":
        self._workdir = Workdir(self.path)
        try:
            self._start(self._create(self._workdir))
            self._founded = self.ledger.head()
        except BaseException:
            self._leave(empty=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(empty=kind is not None and self._is_unused())

    def _is_unused(self) -> bool:
        """Whether the ledger holds its members' admissions and nothing else."""
        try:
            return self.ledger.head(timeout_s=_LOOK_S) == self._founded
        except FedchainError:  # no answer: better a folder too many than a history too few
            return False

    def _leave(self, *, empty: bool) -> None:
        """Stop the ledger and let go of the folder; `empty`: nobody needs what lies there."""
        if self._ledger is not None:
            self._ledger.stop()
            self._ledger = None
        if self._workdir is not None:
            if empty:
                self._workdir.discard()
            else:
                self._workdir.release()
            self._workdir = None

    def _create(self, folder: Workdir) -> Genesis:
        """Write keys, genesis and the owners' folders."""
        operators = ["admission", AGGREGATOR, *self._validators]
        self._keys = {name: SigningKey.generate() for name in (*operators, *self.participants)}
        raw = make_genesis(
            "fedchain-embedded",
            time.time_ns() // 1_000_000,
            secrets.token_bytes(16),
            [_founder(self._keys[name], name) for name in self._validators],
            [self._keys["admission"].public],
            1,
        )
        try:
            for path in ("keys", "ledger", "artifacts", "participants"):
                (folder.path / path).mkdir(mode=0o700)
            folder.genesis.write_bytes(raw)
        except OSError as error:
            raise UsageError(f"cannot write into {folder.path}: {error.strerror}") from error
        for name in operators:
            save_key(folder.key(name), self._keys[name], None, unencrypted=True)
        for name in self.participants:
            OwnerHome.create(
                folder.owner(name), name=name, genesis=raw, key=self._keys[name], passphrase=None
            )
        return Genesis.parse(raw)

    def _start(self, genesis: Genesis) -> None:
        """Start the validators, then admit the aggregator and every data owner."""
        self._ledger = EmbeddedLedger(
            genesis, {name: self._keys[name] for name in self._validators}, self.workdir.ledger
        )
        self._ledger.start()
        roles = {AGGREGATOR: wire.ROLE_AGGREGATOR}
        roles |= dict.fromkeys(self.participants, wire.ROLE_PARTICIPANT)
        admissions = [self._admission(genesis.chain_id, name, role) for name, role in roles.items()]
        for outcome in self.ledger.submit(admissions):
            if isinstance(outcome, FedchainError):
                raise outcome

    def _admission(self, chain_id: bytes, name: str, role: wire.Role.ValueType) -> bytes:
        key = self._keys[name]
        statement = wire.MemberAdmitted(
            chain_id=chain_id,
            name=name,
            role=role,
            public_key=key.public,
            possession=possession(key, chain_id, name, role),
        )
        return seal_statement(statement, self._keys["admission"])


def _founder(key: SigningKey, name: str) -> tuple[Validator, bytes]:
    """A validator's entry in the genesis, with the proof that it holds its key."""
    return Validator(name, OPERATOR, key.public), validator_possession(key, name, OPERATOR)
