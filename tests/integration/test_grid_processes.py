"""The grid's processes: they come from a clean fork, keep off stdout, and all die with us."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch  # noqa: F401  # once, here, rather than in every zygote

from fedchain_proto.errors import UnavailableError, UsageError
from tests.gridkit import (
    app_of,
    echo,
    grid_of,
    instructions,
    metric,
    play,
    wait_until,
)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().split()[3])


def test_closing_leaves_no_process() -> None:
    """Workers, zygote and all die at close, soon, even while clients hang."""
    with grid_of(app_of(echo), workers=2) as grid:
        pids = {metric(r, "pid") for r in play(grid).values()}
        zygotes = {parent_of(pid) for pid in pids}
        assert len(zygotes) == 1
        grid.push_messages(instructions(grid, 2))
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert not [pid for pid in pids | zygotes if Path(f"/proc/{pid}").exists()]
    with pytest.raises(UsageError, match="not running"):
        play(grid)
    grid.close()  # A second time does nothing.


SCRIPT = """
    import os, pathlib, sys, time
    sys.modules["torch"] = None  # as where it is not installed; saves seconds
    from flwr.app import *
    from flwr.clientapp import ClientApp
    from fedchain.grid import InProcessGrid, NodeSpec

    app = ClientApp()

    @app.train()
    def train(message, context):
        print("from a client")
        os.write(1, b"from a client")
        pathlib.Path(sys.argv[1], f"{os.getpid()}.{os.getppid()}").touch()
        if sys.argv[2] == "hang":
            while True:
                time.sleep(3600)
        return Message(RecordDict(), reply_to=message)

    nodes = [NodeSpec(1, "a"), NodeSpec(2, "b")]
    with InProcessGrid(app, nodes=nodes, workers=2, seed=0, timeout_s=60) as grid:
        messages = [Message(RecordDict(), n, "train") for n in (1, 2)]
        print("from the server", len(list(grid.send_and_receive(messages))))
"""


@contextmanager
def program(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), *arguments]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children(folder: Path) -> list[int]:
    return [int(pid) for entry in folder.iterdir() for pid in entry.name.split(".")]


def test_clients_cannot_write_on_our_stdout(tmp_path: Path) -> None:
    """stdout carries the program's own output and nothing else: there may be JSON on it."""
    with program(tmp_path, "answer") as process:
        out, err = process.communicate(timeout=120)
    assert out == "from the server 2\n"
    assert err.count("from a client") == 4


@pytest.mark.parametrize("how", ["killed", "interrupted", "terminated"])
def test_workers_die_with_the_program(tmp_path: Path, how: str) -> None:
    """Killed, or stopped with Ctrl-C while clients hang: no process stays behind."""
    with program(tmp_path, "hang") as process:
        assert wait_until(lambda: len(children(tmp_path)) == 4)
        if how == "interrupted":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            assert process.wait(timeout=30) not in (0, None)
        else:
            process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
            process.wait(timeout=30)
    pids = children(tmp_path)
    assert len(pids) == 4
    assert wait_until(lambda: not [p for p in pids if Path(f"/proc/{p}").exists()])


def test_forking_is_refused_where_it_is_unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system, or with CUDA in use: threads if we may choose, an error if not."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with grid_of(app_of()) as grid:
        assert {metric(r, "pid") for r in play(grid).values()} == {os.getpid()}
    with pytest.raises(UsageError, match="darwin"), grid_of(app_of(), mode="process"):
        pass
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with pytest.raises(UsageError, match="CUDA"), grid_of(app_of(), mode="process"):
        pass


def test_a_grid_whose_zygote_is_gone_says_so() -> None:
    """Without it no worker can be started: the run ends with a reason, and without leftovers."""
    with grid_of(app_of(), workers=2) as grid:
        pids = {metric(r, "pid") for r in play(grid).values()}
        zygote = parent_of(pids.pop())
        os.kill(zygote, signal.SIGKILL)
        with pytest.raises(UnavailableError, match="starts workers is gone"):
            wait_until(lambda: not play(grid, 2))  # It may take a moment to be noticed.
        assert wait_until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])
