"""The zygote: one small, single-threaded process from which all workers are forked.

It is forked itself before this program has threads, databases or a GPU context, so that a
replacement forked an hour later starts as cleanly as the first worker did. It alone signals and
reaps workers: a process id that it still has to reap cannot be reused, so nobody innocent is
ever killed. Workers, and whatever processes they started, die with it, and it dies when the
server's process closes its socket or ends in any way. Linux only.
"""

import ctypes
import gc
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from fedchain_proto.errors import UnavailableError

_REQUEST = struct.Struct("<BI")  # operation, token
_ENDED = struct.Struct("<IBi")  # token, how, exit status (negative: the signal)
_SPAWN, _END, _KILL = 1, 2, 3
BY_ITSELF, KILLED, NOT_STARTED = 0, 1, 2

_GRACE_S = 0.2  # how long a worker that hung up may take to die, so that its status is its own
_POLL_S = 0.005
_LAST_WORDS_S = 1.0
_CLOSE_S = 5.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_DEFAULT_SIGNALS = ("SIGTERM", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGVTALRM")


@dataclass(frozen=True)
class Ended:
    """How a worker's process ended.

    Attributes:
        token: The number it was spawned under.
        how: `BY_ITSELF`, `KILLED` (by the zygote) or `NOT_STARTED` (no memory or processes).
        status: Exit status; negative the signal that ended it.
    """

    token: int
    how: int
    status: int

    def __str__(self) -> str:
        if self.how == KILLED:
            return "it closed its connection"
        if self.status < 0:
            names = {signal.SIGSEGV: "segmentation fault", signal.SIGKILL: "killed"}
            number = -self.status
            try:
                name = signal.Signals(number).name
            except ValueError:
                name = f"signal {number}"
            return f"its process died of {name}" + (
                f" ({names[signal.Signals(number)]})" if number in names else ""
            )
        return f"its process ended with exit status {self.status}"


class Zygote:
    """The server's handle on the zygote; requests never wait, `Ended` reports come back."""

    def __init__(self, serve: Callable[[socket.socket], NoReturn]) -> None:
        """Fork the zygote.

        Args:
            serve: What a worker runs on its end of a socket pair.
        """
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # None where a daemon closed it
                stream.flush()  # else the child would hold a second copy of what is unwritten
        server = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self.sock.close()
                _run(theirs, serve, server)
            except BaseException:  # noqa: BLE001  # never return into the server's own stack
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()

    def spawn(self, token: int) -> socket.socket:
        """Fork a worker under a fresh `token`; returns our end of its socket, non-blocking.

        Raises:
            UnavailableError: The zygote is gone.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._send(_SPAWN, token, [theirs.fileno()])
        ours.setblocking(False)
        return ours

    def end(self, token: int, *, kill: bool) -> None:
        """Ask for a worker's end; an `Ended` will follow.

        Args:
            token: The worker's.
            kill: At once; otherwise it has hung up and may first die of its own cause.
        """
        self._send(_KILL if kill else _END, token, [])

    def _send(self, operation: int, token: int, fds: list[int]) -> None:
        try:
            socket.send_fds(self.sock, [_REQUEST.pack(operation, token)], fds)
        except OSError as error:
            raise UnavailableError("the process that starts workers is gone") from error

    def receive(self) -> list[Ended]:
        """Read the reports that have come.

        Raises:
            UnavailableError: The zygote is gone.
        """
        reports: list[Ended] = []
        while True:
            try:
                data = self.sock.recv(_ENDED.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return reports
            except OSError:
                data = b""
            if not data:
                raise UnavailableError("the process that starts workers is gone")
            reports.append(Ended(*_ENDED.unpack(data)))

    def close(self) -> None:
        """Have every worker killed, and see the zygote dead."""
        self.sock.close()
        deadline = time.monotonic() + _CLOSE_S
        try:
            while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(self._pid, signal.SIGKILL)  # Not reaped: the id is still its own.
                    os.waitpid(self._pid, 0)
                    return
                time.sleep(_POLL_S / 5)
        except ChildProcessError:
            pass  # Somebody in this program waits for any child and has reaped it already.


def _run(control: socket.socket, serve: Callable[[socket.socket], NoReturn], server: int) -> None:
    """Be the zygote: detach from the terminal, then serve requests until the server is gone."""
    os.setsid()  # Ctrl-C is the server's to decide on.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # A client that asks the user finds nobody.
    for name in _DEFAULT_SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # What a worker leaves behind becomes ours to kill.
    gc.collect()
    gc.freeze()  # The collector would touch, and so copy, every page shared with the workers.
    nursery = _Nursery(control, serve)
    try:
        while os.getppid() == server and nursery.step():
            pass
    finally:
        nursery.kill_all()
    os._exit(0)


@dataclass
class _Child:
    pid: int
    token: int
    kill_at: float | None = None  # monotonic seconds; None while it is wanted
    killed: bool = False


class _Nursery:
    """The zygote's own side: its children, by token."""

    def __init__(self, control: socket.socket, serve: Callable[[socket.socket], NoReturn]) -> None:
        self._control = control
        self._serve = serve
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def step(self) -> bool:
        """Handle one request, bury who is due; False once the server has hung up."""
        dying = any(child.kill_at is not None for child in self._children.values())
        if self._poll.poll((_POLL_S if dying else 1.0) * 1000) and not self._request():
            return False
        for child in [c for c in self._children.values() if c.kill_at is not None]:
            self._bury(child)
        return True

    def _request(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, _REQUEST.size, 1)
        if not data:
            return False
        operation, token = _REQUEST.unpack(data)
        if operation == _SPAWN:
            self._spawn(token, fds[0])
        elif token in self._children:
            wait_s = 0.0 if operation == _KILL else _GRACE_S
            self._children[token].kill_at = time.monotonic() + wait_s
        return True

    def _spawn(self, token: int, fd: int) -> None:
        zygote = os.getpid()
        with socket.socket(fileno=fd) as sock:
            try:
                pid = os.fork()
            except OSError as error:
                self._report(token, NOT_STARTED, error.errno or 0)
                return
            if pid == 0:
                try:
                    self._control.close()
                    _harden(zygote)
                    self._serve(sock)
                except BaseException:  # noqa: BLE001  # never return into the zygote's own stack
                    traceback.print_exc()
                finally:
                    os._exit(1)
        self._children[token] = _Child(pid, token)

    def _bury(self, child: _Child) -> None:
        """Reap a child that is dead; kill one whose time is up."""
        dead = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if dead is not None:
            _kill(child.pid)  # Its group may outlive it; until it is reaped, the id is its own.
            _, status = os.waitpid(child.pid, 0)
            del self._children[child.token]
            how = KILLED if child.killed else BY_ITSELF
            self._report(child.token, how, os.waitstatus_to_exitcode(status))
            self._sweep()
        elif not child.killed and child.kill_at is not None and time.monotonic() >= child.kill_at:
            _kill(child.pid)
            child.killed = True

    def _sweep(self) -> int:
        """Kill what dead workers left behind: it has become our child, and is no worker.

        Returns:
            How many are not dead yet; the next sweep reaps them.
        """
        ours = {child.pid for child in self._children.values()}
        left = 0
        for pid in _child_pids() - ours:
            _kill(pid)
            left += os.waitpid(pid, os.WNOHANG) == (0, 0)
        return left

    def _report(self, token: int, how: int, status: int) -> None:
        with suppress(OSError):  # The server may be gone; the next step sees it.
            self._control.send(_ENDED.pack(token, how, status))

    def kill_all(self) -> None:
        """Kill and reap every worker and all that they started."""
        for child in self._children.values():
            child.kill_at = 0.0
        deadline = time.monotonic() + _LAST_WORDS_S
        while (self._children or self._sweep()) and time.monotonic() < deadline:
            for child in list(self._children.values()):
                self._bury(child)
            time.sleep(_POLL_S / 5)


def _harden(zygote: int) -> None:
    """Make this new worker a process that can be killed whole and that takes nobody with it."""
    os.setsid()  # Its own group: one signal reaches all that it may start.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:
        os._exit(1)  # It died before the line above could take effect.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # A crash writes no gigabytes of core.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # When memory runs out, a client goes before the server does.


def _kill(pid: int) -> None:
    """Kill a child of ours and its process group, which a newborn may not have made yet."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _child_pids() -> set[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            return {int(pid) for pid in children.read().split()}
    except OSError:  # a kernel without this file: process groups are killed all the same
        return set()


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
