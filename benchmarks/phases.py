"""Where a round's work goes: time spent in named functions, in the server and in every worker.

The functions are wrapped before the workers are forked; each call appends one line to a file that
all processes share (a short append is atomic). Times are seconds of the clock inside a call, so
phases that run in several threads or processes at once add up to more than the round.
"""

import functools
import os
import pkgutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from rich.console import Console
from rich.table import Table

# (where a caller finds the function, its name there, what it is to a reader)
PHASES = (
    ("fedchain_clients.attest", "verify_receipt", "owner: verify receipts"),
    ("fedchain_clients.attest", "model_digest", "owner: digest base and update"),
    ("fedchain_clients.attest", "_sign", "owner: digest, sign and journal"),
    ("fedchain_server.intake", "model_digest", "server: digest an update"),
    ("fedchain_server.intake", "check_update", "server: check structure and finite values"),
    ("fedchain_proto.artifact", "write_artifact", "server: write an artifact, with fsync"),
    ("fedchain_server.strategy", "_anchor_updates", "server: commit of the updates"),
    ("fedchain_server.strategy", "weighted_mean", "server: exact average"),
    ("fedchain_server.settlement", "model_digest", "server: digest the new model"),
    ("fedchain_server.anchoring.RunAnchor", "next_round", "server: close and open"),
)


def _timed(function: Callable[..., object], label: str, log: int) -> Callable[..., object]:
    @functools.wraps(function)
    def call(*args: object, **options: object) -> object:
        started = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            os.write(log, f"{time.perf_counter() - started:.6f} {label}\n".encode())

    return call


@contextmanager
def watch(log: Path) -> Iterator[None]:
    """Time every phase while inside; enter it before the Grid forks its workers."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        with ExitStack() as patches:
            for place, name, label in PHASES:
                owner = pkgutil.resolve_name(place)
                wrapped = _timed(getattr(owner, name), label, handle)
                patches.enter_context(mock.patch.object(owner, name, wrapped))
            yield
    finally:
        os.close(handle)


def show(log: Path, case: str, rounds: int) -> None:
    """Print what `watch` collected."""
    spent: dict[str, list[float]] = defaultdict(list)
    for line in log.read_text().splitlines():
        seconds, label = line.split(" ", 1)
        spent[label].append(float(seconds))
    table = Table(title=f"{case}: where a round's time goes, all processes")
    for heading in ("phase", "calls", "ms each", "ms a round"):
        table.add_column(heading, justify="left" if heading == "phase" else "right", no_wrap=True)
    for _, _, label in PHASES:
        calls = spent[label]
        if calls:
            table.add_row(
                label,
                f"{len(calls) / rounds:.1f}",
                f"{1000 * sum(calls) / len(calls):.2f}",
                f"{1000 * sum(calls) / rounds:.1f}",
            )
    Console().print(table)
