"""A Flower Grid that calls clients one after the other in this process: for tests of strategies."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from fedchain._flower import Run, empty_run, make_message, set_identity
from fedchain_proto import flowkeys
from fedchain_proto.errors import FedchainError

Client = Callable[[Message, Context], Message]


class FakeGrid(Grid):
    """Nodes 1 to n, in the order given.

    Args:
        clients: What each node runs, and its ``node_config``.

    Attributes:
        sent: Every message that was sent, in order.
        silent: Nodes that never answer.
    """

    def __init__(self, clients: Iterable[tuple[Client, Mapping[str, Any]]]) -> None:
        set_identity(1, 0)
        self.sent: list[Message] = []
        self.silent: set[int] = set()
        self._nodes = {
            node: (client, Context(1, node, dict(config), RecordDict(), {}))
            for node, (client, config) in enumerate(clients, start=1)
        }

    def set_run(self, run: Run) -> None:
        """Take no notice."""

    @property
    def run(self) -> Run:
        """A run that nobody knows."""
        return empty_run(1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As Flower's."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All nodes."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Not needed here."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Not needed here."""
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Call each client as its reply is asked for."""
        for message in messages:
            self.sent.append(message)
            node = message.metadata.dst_node_id
            if node not in self.silent:
                yield self._answer(node, message)

    def _answer(self, node: int, message: Message) -> Message:
        client, context = self._nodes[node]
        asked = message.metadata
        # As over a wire: what the client does to its message is its own affair.
        arrived = make_message(_metadata(asked, 0, node), RecordDict(dict(message.content)))
        body: RecordDict | Error
        try:
            body = client(arrived, context).content
        except FedchainError as error:
            body = Error(flowkeys.ERROR_REFUSED, str(error))
        except Exception as error:  # noqa: BLE001 - whatever a client does is its own failure
            body = Error(flowkeys.ERROR_FAILED, f"{type(error).__name__}: {error}")
        return make_message(_metadata(asked, node, 0), body)


def _metadata(asked: Metadata, source: int, destination: int) -> Metadata:
    return Metadata(1, "1", source, destination, "", "", 0.0, 3600.0, asked.message_type)
