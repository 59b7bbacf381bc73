"""Who takes part: the fixed facts about each node of an in-process grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import UserConfigValue

from fedchain_proto.errors import UsageError

SERVER_NODE_ID = 0


@dataclass(frozen=True)
class NodeSpec:
    """One data owner's place in the grid.

    Attributes:
        node_id: Flower's number for the node, positive and distinct.
        participant: The owner's name: it seeds the owner's work and appears in every reason.
        node_config: What the ClientApp finds in ``context.node_config``. The grid adds
            ``partition-id`` and ``num-partitions`` where they are missing.
    """

    node_id: int
    participant: str
    node_config: Mapping[str, UserConfigValue] = field(default_factory=dict)


def index_nodes(nodes: Sequence[NodeSpec]) -> dict[int, NodeSpec]:
    """Number the partitions in the order given and key the nodes by id.

    Raises:
        UsageError: No nodes, an id that is not a positive integer, or an id or name given twice.
    """
    if not nodes:
        raise UsageError("a grid needs at least one node")
    indexed: dict[int, NodeSpec] = {}
    for position, node in enumerate(nodes):
        if node.node_id <= SERVER_NODE_ID:
            raise UsageError(f"node id {node.node_id} of {node.participant!r} is not positive")
        config = {"partition-id": position, "num-partitions": len(nodes), **node.node_config}
        indexed[node.node_id] = NodeSpec(node.node_id, node.participant, config)
    if len(indexed) < len(nodes) or len({n.participant for n in nodes}) < len(nodes):
        raise UsageError("node ids and participant names must be distinct")
    return indexed
