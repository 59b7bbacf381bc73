"""Flower's private parts, and the only file that touches them.

Everything else builds on `flwr.app`, `flwr.clientapp` and `flwr.serverapp`. Three needs have no
public door in flwr 1.41 and 1.42: telling Flower who this process is before a strategy may write
`Message(...)`, a message whose metadata we choose, and the `Run` that a Grid must show. A test
names the versions that were tried.
"""

import logging

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.supercore.run import Run  # noqa: TID251  # Grid's abstract methods are typed with it
from flwr.supercore.task_identity import TaskIdentity  # noqa: TID251  # Message() reads it

__all__ = ["TESTED_VERSIONS", "Run", "empty_run", "make_message", "set_identity", "silence"]

TESTED_VERSIONS = ("1.41", "1.42")


def set_identity(run_id: int, node_id: int) -> None:
    """Say who this process is; without it `Message(content, dst_node_id, type)` raises.

    Args:
        run_id: The Flower run that new messages belong to.
        node_id: Who sends them.
    """
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = node_id


def make_message(metadata: Metadata, body: RecordDict | Error) -> Message:
    """Build a message with exactly this metadata, so that ids need no poking into it."""
    if isinstance(body, Error):
        return Message(error=body, metadata=metadata)  # type: ignore[call-overload, no-any-return]
    return Message(content=body, metadata=metadata)  # type: ignore[call-overload, no-any-return]


def empty_run(run_id: int) -> Run:
    """Describe a run that no SuperLink knows."""
    return Run.create_empty(run_id)


def silence() -> None:
    """Keep Flower's progress lines out of our output; call after flwr was imported.

    Importing flwr sets its logger up anew, so that silencing it earlier has no effect.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
