"""One call of a client's app, and the process that serves such calls until it is killed.

A worker holds the app, the mods and the node list because it was forked from a process that had
them: no code ever crosses a socket. It trusts what it reads (the server's process wrote it); the
server trusts nothing that a worker writes.
"""

import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import NoReturn

from flwr.app import Context, Message, Metadata
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

from fedchain._flower import make_message, set_identity
from fedchain.grid.codec import Packed, pack, unpack
from fedchain.grid.frames import Frame, FrameReader, FrameWriter
from fedchain.grid.nodes import NodeSpec
from fedchain.grid.outcome import FAILED, MALFORMED, REFUSED, clean
from fedchain.grid.seeding import call_seed, round_of, seed_everything
from fedchain_proto.errors import EvidenceError, RuleError

NOTHING = Packed(b"[]", ())
"""An empty record dictionary, packed."""
READY = b"R"
"""What a worker says once, before it takes calls: time-outs count from when a client can start."""
_ANY_SIZE = 1 << 40


@dataclass(frozen=True)
class Clients:
    """All that a worker needs to be any of the clients: what they run and who they are."""

    app: ClientApp
    mods: Sequence[Mod]
    nodes: Mapping[int, NodeSpec]
    seed: int

    @property
    def call(self) -> ClientAppCallable:
        """The app within its mods, the first of them outermost."""
        app: ClientAppCallable = self.app
        return reduce(lambda inner, mod: partial(_apply, mod, inner), reversed(self.mods), app)


def _apply(mod: Mod, inner: ClientAppCallable, message: Message, context: Context) -> Message:
    return mod(message, context, inner)


def request_frame(metadata: Metadata, content: Packed, state: Packed) -> Frame:
    """Write down a call; `answer` reads it."""
    meta = {
        "run_id": metadata.run_id,
        "message_id": metadata.message_id,
        "src_node_id": metadata.src_node_id,
        "dst_node_id": metadata.dst_node_id,
        "group_id": metadata.group_id,
        "created_at": metadata.created_at,
        "ttl": metadata.ttl,
        "message_type": metadata.message_type,
    }
    return Frame(json.dumps(meta).encode(), content, state)


def answer(clients: Clients, request: Frame) -> Frame:
    """Run one call, whatever the client's code does short of ending the process.

    Returns:
        A frame whose meta says how it ended: ``{"message_id", "code", "reason", "retire"}``;
        code 0 with content and state, or a code of `outcome`. ``retire`` asks for this worker's
        end, because the client left threads or processes behind.
    """
    meta = json.loads(request.meta)
    metadata = Metadata(reply_to_message_id="", **meta)
    node = clients.nodes[metadata.dst_node_id]
    before = set(threading.enumerate())
    content, state, code, reason = NOTHING, NOTHING, 0, ""
    try:
        message = make_message(metadata, unpack(request.content))
        context = Context(
            metadata.run_id, node.node_id, dict(node.node_config), unpack(request.state), {}
        )
        seed_everything(
            call_seed(clients.seed, metadata.message_type, round_of(message), node.participant)
        )
        reply: object = clients.call(message, context)
        content, code, reason = _judge(reply)
        state = pack(context.state) if not code else NOTHING
    except (RuleError, EvidenceError) as error:
        code, reason = REFUSED, f"{type(error).__name__}: {error}"
    except BaseException as error:  # noqa: BLE001  # a client may raise anything, SystemExit too
        code, reason = FAILED, _describe(error)
    result = {
        "message_id": metadata.message_id,
        "code": code,
        "reason": clean(reason),
        "retire": bool(_left_behind(before)),
    }
    return Frame(json.dumps(result).encode(), content, state)


def _judge(reply: object) -> tuple[Packed, int, str]:
    """Pack what the app returned, or say why it is no reply."""
    if not isinstance(reply, Message):
        return NOTHING, MALFORMED, f"it returned {type(reply).__name__}, not a Message"
    if reply.has_error():
        return NOTHING, FAILED, f"it answered with error {reply.error.code}: {reply.error.reason}"
    try:
        return pack(reply.content), 0, ""
    except Exception as error:  # noqa: BLE001  # rubbish within Flower's types fails in any way
        return NOTHING, MALFORMED, f"its reply cannot be encoded: {_describe(error)}"


def _describe(error: BaseException) -> str:
    """Say what was raised and where, in one line."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # __str__ of a client's exception is the client's code
        text = "(no text)"
    frames = traceback.extract_tb(error.__traceback__)
    where = (
        f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    )
    return f"{type(error).__name__}: {text}{where}"


def _left_behind(before: set[threading.Thread]) -> bool:
    """Whether threads or child processes of the call live on, and might harm the next client."""
    if any(thread.is_alive() for thread in set(threading.enumerate()) - before):
        return True
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/children") as children:
            return bool(children.read())
    except OSError:  # a kernel without this file: the process group is killed in the end anyway
        return False


def serve(clients: Clients, sock: socket.socket) -> NoReturn:
    """Answer requests from `sock` until the other side closes it; never returns."""
    os.dup2(2, 1)  # stdout belongs to the command's own output; clients may print to stderr.
    sys.stdout = sys.stderr
    sock.sendall(READY)
    while True:
        try:
            request = FrameReader(_ANY_SIZE).read(sock)
        except (EOFError, OSError):
            os._exit(0)
        assert request is not None  # noqa: S101  # the socket blocks: a frame or an exception
        meta = json.loads(request.meta)
        set_identity(meta["run_id"], meta["dst_node_id"])
        reply = answer(clients, request)
        del request
        try:
            FrameWriter(reply).write(sock)
        except OSError:
            os._exit(0)
