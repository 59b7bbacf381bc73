"""Which participant answers behind which Flower node.

Flower's node ids are random and its node keys sign a time-stamp only. So each node is asked to
sign a fresh nonce with its participant's ledger key; what it cannot prove, it is not.
"""

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedchain_proto import flowkeys
from fedchain_proto.errors import EvidenceError, FedchainError
from fedchain_proto.flowrecords import NONCE_SIZE, hello_preimage
from fedchain_proto.keys import verify
from fedchain_proto.names import is_name, printable

HELLO_TIMEOUT_S = 60.0
ATTEMPTS = 3  # of one node; a node that keeps failing must not cost every round a time-out
_LOG = logging.getLogger("fedchain.server")


class Identities:
    """Proven names of nodes.

    Args:
        grid: Reaches the nodes.
        chain_id: Of the ledger, 32 bytes.
        key_of: Public key of an admitted participant by name, None if there is none.

    Attributes:
        names: Node id to participant, for every node that has proved one.
        failures: Node id to what went wrong, in printable words, for those that have not.
    """

    def __init__(self, grid: Grid, chain_id: bytes, key_of: Callable[[str], bytes | None]) -> None:
        self._grid = grid
        self._chain_id = chain_id
        self._key_of = key_of
        self._attempts: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self.failures: dict[int, str] = {}

    def discover(self, nodes: Iterable[int], message_type: str, timeout_s: float) -> None:
        """Ask those nodes that have not proved a name yet.

        Args:
            nodes: Node ids.
            message_type: Of the instruction to come: an app may know no other.
            timeout_s: Seconds to wait for answers, at most 60.
        """
        nonces: dict[int, bytes] = {}
        for node in nodes:
            if node not in self.names and self._attempts.get(node, 0) < ATTEMPTS:
                self._attempts[node] = self._attempts.get(node, 0) + 1
                self.failures[node] = "it did not answer"
                nonces[node] = secrets.token_bytes(NONCE_SIZE)
        if not nonces:
            return
        questions = [_hello(node, nonce, message_type) for node, nonce in nonces.items()]
        timeout = min(timeout_s, HELLO_TIMEOUT_S)
        for reply in self._grid.send_and_receive(questions, timeout=timeout):
            node = reply.metadata.src_node_id
            if node not in nonces:
                continue
            try:
                self.names[node] = self._proved(reply, nonces[node])
                self.failures.pop(node, None)
            except FedchainError as error:
                self.failures[node] = printable(str(error), 200)
                _LOG.warning("node %d proved no name: %s", node, self.failures[node])

    def _proved(self, reply: Message, nonce: bytes) -> str:
        """Return the name that a reply proves.

        Raises:
            EvidenceError: It proves none.
        """
        if reply.has_error():
            raise EvidenceError(reply.error.reason or "its client failed")
        record = reply.content.get(flowkeys.RECORD) if reply.has_content() else None
        answer: Mapping[str, object] = record if isinstance(record, ConfigRecord) else {}
        name, signature = answer.get(flowkeys.NAME), answer.get(flowkeys.SIGNATURE)
        if not isinstance(name, str) or not is_name(name) or not isinstance(signature, bytes):
            raise EvidenceError("its client did not say who it is")
        public = self._key_of(name)
        if public is None:
            raise EvidenceError(f"{name} is not an admitted participant")
        verify(public, signature, hello_preimage(self._chain_id, nonce, name))
        return name


def _hello(node: int, nonce: bytes, message_type: str) -> Message:
    content = RecordDict({flowkeys.RECORD: ConfigRecord({flowkeys.HELLO: nonce})})
    return Message(content=content, dst_node_id=node, message_type=message_type)
