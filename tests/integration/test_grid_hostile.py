"""A bad client costs only itself: what it may do, what it is called, and that others go on."""

import ctypes
import faulthandler
import os
import random
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401  # once, here, rather than in every zygote
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Error,
    Message,
)

from fedchain.grid import FAILED, MALFORMED, OVERRAN
from fedchain_proto.errors import FedchainError
from tests.gridkit import (
    ENOUGH_S,
    VICTIM,
    Act,
    app_of,
    echo,
    grid_of,
    instructions,
    metric,
    play,
    sleep,
    wait_until,
)


def close_everything(message: Message, context: Context) -> None:
    os.closerange(3, 256)
    time.sleep(3600)


def my_sockets() -> Iterator[socket.socket]:
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                yield socket.socket(fileno=os.dup(int(fd)))
        except OSError:
            continue


def write_on_sockets(junk: bytes) -> Act:
    def act(message: Message, context: Context) -> Message:
        for sock in my_sockets():
            sock.sendall(junk)
        return echo(message, context)

    return act


def raising(error: BaseException) -> Act:
    def act(message: Message, context: Context) -> Message:
        raise error

    return act


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError


def allocate(message: Message, context: Context) -> Message:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (1 << 28)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # spares the machine the rest
    hoard = []
    while True:
        hoard.append(bytearray(1 << 26))


def crash(message: Message, context: Context) -> None:
    faulthandler.disable()  # pytest's would fill the log
    ctypes.string_at(0)


def rubbish_content(message: Message, context: Context) -> Message:
    reply = echo(message, context)
    reply.content.array_records["arrays"]["w"].data = "text"  # type: ignore[assignment]
    return reply


def rubbish_array(message: Message, context: Context) -> Message:
    content = echo(message, context).content
    fake = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b"serialized_data...")
    content["arrays"] = ArrayRecord({"w": fake})
    return Message(content, reply_to=message)


def forever(message: Message, context: Context) -> Message:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


def stop_myself(message: Message, context: Context) -> Message:
    os.kill(os.getpid(), signal.SIGSTOP)
    return echo(message, context)


HOSTILE: dict[str, tuple[Act, int, str]] = {
    "raises": (
        raising(ValueError("bad lr")),
        FAILED,
        r"ValueError: bad lr \(test_grid_hostile.py, line",
    ),
    "raises what has no text": (raising(MuteError()), FAILED, "MuteError"),
    "raises escapes": (raising(ValueError("\x1b[2J\n" * 999)), FAILED, "ValueError"),
    "interrupts": (raising(KeyboardInterrupt()), FAILED, "KeyboardInterrupt"),
    "exits": (lambda m, c: sys.exit(3), FAILED, "SystemExit: 3"),
    "asks the user": (lambda m, c: int(os.read(0, 9)), FAILED, "ValueError.*b''"),
    "leaves at once": (lambda m, c: os._exit(7), FAILED, "exit status 7"),
    "crashes": (crash, FAILED, "SIGSEGV .segmentation fault"),
    "is killed": (lambda m, c: os.kill(os.getpid(), signal.SIGKILL), FAILED, "SIGKILL"),
    "allocates": (allocate, FAILED, "MemoryError"),
    "hangs up": (close_everything, FAILED, "closed its connection"),
    "answers with an error": (
        lambda m, c: Message(Error(9, "no data"), reply_to=m),
        FAILED,
        "error 9: no data",
    ),
    "spins": (forever, OVERRAN, "did not answer within 3 s"),
    "sleeps": (sleep, OVERRAN, "did not answer within 3 s"),
    "stops": (stop_myself, OVERRAN, "did not answer within 3 s"),
    "returns None": (lambda m, c: None, MALFORMED, "returned NoneType"),
    "returns text": (lambda m, c: "done", MALFORMED, "returned str"),
    "returns rubbish": (rubbish_content, MALFORMED, "cannot be encoded"),
    "returns a fake array": (rubbish_array, MALFORMED, "no .npy"),
    "writes junk": (write_on_sockets(b"junk" * 100), MALFORMED, "is no reply"),
    "announces too much": (
        write_on_sockets(b"FCG1" + bytes(8) + b"\1" + bytes(11) + b"\xff" * 7 + b"\0"),
        MALFORMED,
        "larger than",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_client_costs_its_own_reply_only(name: str) -> None:
    """By name and with a reason; the others answer, and in the next round it may be good."""
    act, code, reason = HOSTILE[name]
    timeout_s = 3.0 if code == OVERRAN else ENOUGH_S
    with grid_of(app_of(act, only=VICTIM), workers=2, timeout_s=timeout_s) as grid:
        replies = play(grid)
        assert sorted(replies) == [1, 2, 3, 4]
        assert [n for n, r in replies.items() if r.has_error()] == [VICTIM]
        error = replies[VICTIM].error
        assert error.code == code
        assert error.reason is not None
        assert error.reason.startswith("client-2: ")
        assert re.search(reason, error.reason), error.reason
        assert error.reason.isprintable()
        again = play(grid, 2)
        assert not [r for r in again.values() if r.has_error()]
        assert metric(again[VICTIM], "calls") == 1  # a call without a reply left no state
        assert metric(again[1], "calls") == 2


def test_every_client_may_be_bad_at_once() -> None:
    """Each costs itself; nobody waits for a worker that is gone."""
    with grid_of(app_of(HOSTILE["leaves at once"][0]), nodes=12) as grid:
        replies = play(grid)
        assert {r.error.code for r in replies.values()} == {FAILED}
        assert len(replies) == 12
        assert not [r for r in play(grid, 2).values() if r.has_error()]


def test_a_slow_client_does_not_make_those_behind_it_late() -> None:
    """The time-out counts from when a client starts, not from when the round did."""
    act = app_of(sleep, only=1)
    with grid_of(act, workers=1, nodes=3, timeout_s=3.0) as grid:
        replies = play(grid)
    assert [n for n, r in replies.items() if r.has_error()] == [1]


def test_a_client_cannot_touch_the_servers_arrays() -> None:
    """What a client does to its message stays in its process, or in its copy."""

    def act(message: Message, context: Context) -> Message:
        message.content.array_records["arrays"]["w"].data = b""
        del message.content["arrays"]
        return echo(message, context)

    for mode in ("process", "thread"):
        with grid_of(app_of(act), mode=mode) as grid:
            messages = instructions(grid)
            assert len(list(grid.send_and_receive(messages))) == 4
        assert np.array_equal(
            messages[0].content.array_records["arrays"]["w"].numpy(), np.arange(8)
        )


def test_what_a_client_leaves_behind_does_not_disturb_the_next() -> None:
    """A worker whose client left a thread or a process is retired with all that it left."""
    orphan = os.pipe()

    def act(message: Message, context: Context) -> Message:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        if os.fork() == 0:
            os.setsid()  # escapes its group, but not the zygote
            if os.fork() == 0:
                time.sleep(3600)
            os._exit(0)
        return echo(message, context)

    with grid_of(app_of(act, only=1), workers=1, nodes=2) as grid:
        os.close(orphan[1])  # now only workers, and what they start, hold the writing end
        replies = play(grid)
        assert metric(replies[1], "pid") != metric(replies[2], "pid")
        assert metric(replies[2], "pid") == metric(play(grid, 2)[1], "pid")
    os.set_blocking(orphan[0], False)
    assert wait_until(lambda: os.read(orphan[0], 1) == b"", BlockingIOError)
    os.close(orphan[0])


def test_in_threads_a_hung_client_ends_the_run_by_name() -> None:
    """A thread cannot be stopped, so the run is: with the culprit's name."""
    release = threading.Event()

    def act(message: Message, context: Context) -> Message:
        release.wait(60)
        return echo(message, context)

    with grid_of(app_of(act, only=VICTIM), mode="thread", timeout_s=1.0) as grid:
        replies = grid.send_and_receive(instructions(grid))
        assert not next(replies).has_error()
        with pytest.raises(FedchainError, match="client-2 did not answer within 1 s"):
            next(replies)
        with pytest.raises(FedchainError, match="client-2"):
            play(grid, 2)
    release.set()


def test_in_threads_other_bad_clients_still_cost_themselves_only() -> None:
    """What can be contained without a process is; the server's own randomness is not touched."""
    with grid_of(app_of(HOSTILE["raises"][0], only=VICTIM), mode="thread") as grid:
        random.seed(1)
        expected = random.Random(1).random()
        replies = play(grid)
        assert random.random() == expected
    assert [n for n, r in replies.items() if r.has_error()] == [VICTIM]
    assert replies[VICTIM].error.code == FAILED
