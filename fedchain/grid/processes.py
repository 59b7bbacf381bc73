"""The engine that runs calls in worker processes, so that a bad client costs only itself.

One thread feeds the workers and reads what they send, all of it through sockets that never make
it wait; whoever takes outcomes may be slow without making any client late. A worker that hangs
up, overruns or sends junk is killed and replaced, and its call's outcome is handed out once the
process is known to be dead: nothing that it was doing can happen afterwards.
"""

import json
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from fedchain.grid.codec import Packed, unpack
from fedchain.grid.engine import Batch, Call
from fedchain.grid.frames import Frame, FrameReader, FrameWriter
from fedchain.grid.outcome import FAILED, MALFORMED, OVERRAN, REFUSED, Outcome, clean
from fedchain.grid.worker import NOTHING, READY, Clients, request_frame, serve
from fedchain.grid.zygote import NOT_STARTED, Zygote
from fedchain_proto.errors import EvidenceError, FedchainError, UnavailableError

# A reply weighs about as much as its instruction; what goes far beyond is refused unread.
_REPLY_FACTOR = 8
_REPLY_SLACK_BYTES = 1 << 28
_UNKILLABLE_S = 5.0  # a process in an uninterruptible wait is given up, its outcome handed out
_MAX_STILLBORN = 20  # workers in a row that end before any call: something is wrong with all


@dataclass
class _Task:
    """A call on a worker."""

    batch: Batch
    call: Call
    writer: FrameWriter
    reader: FrameReader
    deadline: float  # monotonic seconds
    sent: bool = False
    doom: Outcome | None = None  # why its worker is being killed; handed out once it is dead


@dataclass
class _Worker:
    token: int
    sock: socket.socket
    ready: bool = False  # it has been forked and has said so
    ending: bool = False
    task: _Task | None = None


class ProcessEngine:
    """See the module; `Engine` says what each method does."""

    def __init__(self, clients: Clients, *, workers: int, timeout_s: float) -> None:
        """Fork zygote and workers, then start the thread.

        Args:
            clients: What the workers run.
            workers: How many there are.
            timeout_s: How long one call may take, from when it starts.
        """
        self._timeout_s = timeout_s
        self._zygote = Zygote(partial(serve, clients))
        self._workers: dict[int, _Worker] = {}
        self._states: dict[int, Packed] = {}
        self._next_token = 0
        self._stillborn = 0
        self._changed = threading.Condition()  # guards batches and the two flags below
        self._batches: list[Batch] = []
        self._stopping = False
        self._failure: FedchainError | None = None
        self._waker, self._wake_sock = socket.socketpair()
        self._waker.setblocking(False)
        self._wake_sock.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._listen(self._wake_sock, lambda _: self._drain_wakes())
        self._listen(self._zygote.sock, lambda _: self._read_reports())
        for _ in range(workers):
            self._spawn()
        self._thread = threading.Thread(target=self._run, name="fedchain-grid", daemon=True)
        self._thread.start()

    # What the grid calls, from any thread.

    def submit(self, calls: Iterable[Call], *, held: int | None) -> Batch:
        """See `Engine.submit`."""
        batch = Batch(deque(calls), held)
        with self._changed:
            self._check()
            self._batches.append(batch)
        self._wake()
        return batch

    def take(self, batch: Batch, until: float | None) -> tuple[Call, Outcome] | None:
        """See `Engine.take`."""
        with self._changed:
            while not batch.ready:
                self._check()
                if not batch.pending and not batch.running:
                    return None
                left_s = None if until is None else until - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return None
                self._changed.wait(left_s)
            taken = batch.ready.popleft()
        self._wake()  # There is room for another call.
        return taken

    def cancel(self, batch: Batch) -> list[Call]:
        """See `Engine.cancel`."""
        with self._changed:
            left = [call for call, _ in batch.ready] + batch.running + list(batch.pending)
            batch.cancelled = True
            batch.pending.clear()
            batch.ready.clear()
            if batch in self._batches:
                self._batches.remove(batch)
        self._wake()
        return left

    def close(self) -> None:
        """See `Engine.close`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._wake()
        self._thread.join()
        self._zygote.close()
        for sock in [w.sock for w in self._workers.values()] + [self._waker, self._wake_sock]:
            sock.close()
        self._selector.close()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._stopping:
            raise UnavailableError("the grid was closed")

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # It may not yet have seen the last one.
            self._waker.send(b"\0")

    # The thread: everything below runs in it, but for the first _spawn calls.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._start_calls()
                for key, _ in self._selector.select(self._wait_s()):
                    handle: Callable[[int], None] = key.data
                    handle(key.fd)
                self._end_overdue()
        except Exception as error:  # noqa: BLE001  # whoever waits for outcomes must hear of it
            failure = error if isinstance(error, FedchainError) else None
            with self._changed:
                self._failure = failure or FedchainError(f"the grid broke: {error!r}")
                self._failure.__cause__ = error
                self._changed.notify_all()

    def _listen(
        self, sock: socket.socket, handle: Callable[[int], None], *, write: bool = False
    ) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
        if sock in self._selector.get_map():
            self._selector.modify(sock, events, handle)
        else:
            self._selector.register(sock, events, handle)

    def _drain_wakes(self) -> None:
        with suppress(BlockingIOError):
            while self._wake_sock.recv(1024):
                pass

    def _spawn(self) -> None:
        token = self._next_token
        self._next_token += 1
        worker = _Worker(token, self._zygote.spawn(token))
        self._workers[token] = worker
        self._listen(worker.sock, lambda _: self._on_event(worker))

    def _wait_s(self) -> float | None:
        deadlines = [w.task.deadline for w in self._workers.values() if w.task]
        # epoll takes at most 24.8 days at once; a policy may allow more.
        return min(3600.0, max(0.0, min(deadlines) - time.monotonic())) if deadlines else None

    def _start_calls(self) -> None:
        """Give every idle worker a call, and stop the workers whose batch was cancelled."""
        with self._changed:
            for worker in list(self._workers.values()):
                if worker.task is None and worker.ready and not worker.ending:
                    self._start_call(worker)
                elif worker.task and worker.task.batch.cancelled and not worker.ending:
                    self._replace(worker, kill=True)

    def _start_call(self, worker: _Worker) -> None:
        # One call a node at a time: the next needs the state that this one returns.
        busy = {w.task.call.node.node_id for w in self._workers.values() if w.task}
        for batch in self._batches:
            for call in batch.pending if batch.has_room else ():
                if call.node.node_id not in busy:
                    batch.pending.remove(call)
                    batch.running.append(call)
                    self._begin(worker, batch, call)
                    return

    def _begin(self, worker: _Worker, batch: Batch, call: Call) -> None:
        state = self._states.get(call.node.node_id, NOTHING)
        request = request_frame(call.metadata, call.content, state)
        # The state is the client's own: it must not raise the limit of the next one.
        asked_bytes = request._replace(state=NOTHING).size_bytes
        limit = _REPLY_FACTOR * asked_bytes + _REPLY_SLACK_BYTES
        deadline = time.monotonic() + self._timeout_s
        worker.task = _Task(batch, call, FrameWriter(request), FrameReader(limit), deadline)
        self._listen(worker.sock, lambda _: self._on_event(worker), write=True)

    def _on_event(self, worker: _Worker) -> None:
        """Send and receive what the worker's socket allows."""
        task = worker.task
        if task is None:
            self._on_idle_event(worker)
            return
        try:
            if not task.sent and task.writer.write(worker.sock):
                task.sent = True
                self._listen(worker.sock, lambda _: self._on_event(worker))
            reply = task.reader.read(worker.sock)
        except EvidenceError as error:
            self._doom(worker, MALFORMED, f"it wrote on its socket what is no reply: {error}")
        except (EOFError, OSError):
            self._doom(worker, FAILED, "", kill=False)  # Its exit status will say more.
        else:
            if reply is not None:
                self._finish(worker, task, reply)

    def _on_idle_event(self, worker: _Worker) -> None:
        """Hear that a worker is there; else it died, or a client of its left a pest behind."""
        with suppress(OSError):
            if not worker.ready and worker.sock.recv(len(READY)) == READY:
                worker.ready = True
                return
        self._stillborn += 1
        if self._stillborn > _MAX_STILLBORN:
            raise UnavailableError("worker processes end before they are given any work")
        self._replace(worker, kill=True)

    def _finish(self, worker: _Worker, task: _Task, reply: Frame) -> None:
        """Judge a whole reply."""
        try:
            outcome, retire = read_reply(task.call, reply)
        except EvidenceError as error:
            outcome, retire = Outcome(None, MALFORMED, clean(str(error))), True
        if outcome.code not in (0, REFUSED):
            self._doom(worker, outcome.code, outcome.reason)
            return
        self._stillborn = 0
        if not outcome.code:
            self._states[task.call.node.node_id] = reply.state
        worker.task = None
        self._deliver(task, outcome)
        if retire or not task.sent:
            self._replace(worker, kill=True)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if worker.task is None or worker.task.deadline > now:
                continue
            if worker.ending:  # It cannot be killed: hand out its outcome, wait no longer.
                self._bury(worker, "its process cannot be killed")
            else:
                reason = f"it did not answer within {self._timeout_s:g} s"
                self._doom(worker, OVERRAN, reason)

    def _doom(self, worker: _Worker, code: int, reason: str, *, kill: bool = True) -> None:
        if worker.task is not None:
            worker.task.doom = Outcome(None, code, reason)
        self._replace(worker, kill=kill)

    def _replace(self, worker: _Worker, *, kill: bool) -> None:
        """Have a worker ended and fork another; its task stays until it is dead."""
        worker.ending = True
        self._selector.unregister(worker.sock)
        worker.sock.close()
        if worker.task is not None:
            worker.task.deadline = time.monotonic() + _UNKILLABLE_S
        self._zygote.end(worker.token, kill=kill)
        self._spawn()

    def _read_reports(self) -> None:
        for ended in self._zygote.receive():
            if ended.how == NOT_STARTED:
                raise UnavailableError(f"cannot start a worker process (errno {ended.status})")
            if ended.token in self._workers:
                self._bury(self._workers.pop(ended.token), str(ended))

    def _bury(self, worker: _Worker, how: str) -> None:
        """Hand out the outcome of a worker that is dead; `how` it died serves as reason."""
        task, worker.task = worker.task, None
        if task is not None and task.doom is not None:
            self._deliver(task, Outcome(None, task.doom.code, task.doom.reason or how))

    def _deliver(self, task: _Task, outcome: Outcome) -> None:
        with self._changed:
            if task.batch.cancelled:
                return
            task.batch.running.remove(task.call)
            task.batch.ready.append((task.call, outcome))
            if not task.batch.pending and not task.batch.running:
                self._batches.remove(task.batch)
            self._changed.notify_all()


def read_reply(call: Call, reply: Frame) -> tuple[Outcome, bool]:
    """Check a reply's meta and decode its content; also whether its worker should go.

    Raises:
        EvidenceError: It is not what `worker.answer` writes.
    """
    try:
        meta = json.loads(reply.meta)
    except (ValueError, RecursionError) as error:
        raise EvidenceError("the reply's meta is not JSON") from error
    if not isinstance(meta, dict) or meta.get("message_id") != call.metadata.message_id:
        raise EvidenceError("the reply is not to this instruction")
    code, reason = meta.get("code"), meta.get("reason")
    if not isinstance(reason, str) or code not in (0, FAILED, MALFORMED, REFUSED):
        raise EvidenceError("the reply does not say how the call ended")
    if code:
        return Outcome(None, code, clean(reason)), False
    return Outcome(unpack(reply.content)), meta.get("retire") is not False
