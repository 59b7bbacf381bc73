"""What the exact average costs: milliseconds per update, beside the least that memory allows.

K memory-mapped updates of float32 are averaged by the numpy rule and by torch on 1 and 2 Python
threads, and on CUDA where there is a device. The floor is measured in the same run: reading the
same bytes once, slice by slice, into a buffer that stays in the cache (on CUDA: copying them there
from pinned memory). Arms take turns, so that a slow minute of the machine hits all of them; every
arm's result is compared bit for bit. Needs torch and numpy; without protobuf the rule is left out.

    PYTHONPATH=proto:server python benchmarks/bench_fedavg.py [--repeat 15] [--out FILE]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedchain_server import fedavg

try:
    from fedchain_proto import average as rule
except ImportError:
    rule = None  # type: ignore[assignment]

Array = np.ndarray[Any, np.dtype[Any]]
Arm = Callable[[], Array | None]


class MappedUpdate:
    """One update of one float32 tensor in a file: what an opened artifact is to the average."""

    names = ("w",)

    def __init__(self, path: Path) -> None:
        self._array: Array = np.asarray(np.memmap(path, dtype=np.float32, mode="r"))
        self.structure = (("w", "F32", self.shape("w")),)

    def flat(self, name: str) -> Array:
        """All elements, read-only."""
        return self._array

    def shape(self, name: str) -> tuple[int, ...]:
        """(number of parameters,)."""
        return (self._array.size,)


Updates = Sequence[tuple[int, MappedUpdate]]


def make_updates(folder: Path, parameters: int, clients: int) -> Updates:
    """Write normal random weights and map them; the pages are warm, as after their arrival."""
    rng = np.random.default_rng(0)
    updates = []
    for client in range(clients):
        path = folder / f"{client}.f32"
        rng.standard_normal(parameters, np.float32).tofile(path)
        updates.append((client + 100, MappedUpdate(path)))
    return updates


def read_once(updates: Updates, threads: int) -> None:
    """Read every byte of every update once and write nothing that leaves the cache."""
    size = fedavg.CPU_SLICE

    def work(part: int) -> None:
        buffer = np.empty(size, np.float32)
        for at in range(part * size, updates[0][1].flat("w").size, threads * size):
            for _, update in updates:
                x = update.flat("w")[at : at + size]
                np.copyto(buffer[: x.size], x)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def copy_to_cuda(pinned: torch.Tensor, there: torch.Tensor, clients: int) -> None:
    """Copy as many bytes as the updates have from pinned memory to the device."""
    for _ in range(clients):
        there.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize()


def arms_of(updates: Updates, cuda: bool) -> dict[str, Arm]:
    """Name everything that is timed; an average returns its result, a floor nothing."""

    def averaged(device: str, threads: int) -> Arm:
        return lambda: fedavg.weighted_mean(updates, device, threads)["w"]

    arms: dict[str, Arm] = {
        "floor: read, 1 thread": lambda: read_once(updates, 1),
        "floor: read, 2 threads": lambda: read_once(updates, 2),
    }
    if rule is not None:
        arms["numpy rule"] = lambda: rule.weighted_mean(updates)["w"]
    arms["torch, 1 thread"] = averaged("cpu", 1)
    arms["torch, 2 threads"] = averaged("cpu", 2)
    if cuda:
        pinned = torch.empty(updates[0][1].shape("w"), pin_memory=True)
        there = torch.empty_like(pinned, device="cuda")
        arms["floor: copy to CUDA"] = lambda: copy_to_cuda(pinned, there, len(updates))
        for threads in (1, 2, 4, 8):
            arms[f"CUDA, {threads} threads"] = averaged("cuda", threads)
    return arms


def measure(arms: dict[str, Arm], repeat: int) -> dict[str, list[float]]:
    """Time all arms in turn, `repeat` times after one warm-up; seconds.

    Raises:
        SystemExit: Two arms computed different bits: a time would mean nothing.
    """
    results = {name: arm() for name, arm in arms.items()}
    bits = {name: r.tobytes() for name, r in results.items() if r is not None}
    if len(set(bits.values())) != 1:
        raise SystemExit("the averages differ: " + ", ".join(bits))
    del results, bits
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeat):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]], parameters: int, clients: int) -> dict[str, Any]:
    """Milliseconds per update: median, lowest and highest over the repetitions."""
    rows = []
    for name, seconds in times.items():
        each = sorted(1e3 * s / clients for s in seconds)
        median = statistics.median(each)
        rows.append(
            {
                "arm": name,
                "ms_per_update": round(median, 3),
                "lowest": round(each[0], 3),
                "highest": round(each[-1], 3),
                "gb_per_s": round(4 * parameters / median / 1e6, 2),
            }
        )
    return {
        "parameters": parameters,
        "clients": clients,
        "repeat": len(next(iter(times.values()))),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "arms": rows,
    }


def table(document: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"{document['clients']} updates of {document['parameters']:,} float32, "
        f"{document['repeat']} repetitions, ms per update",
        f"{'arm':<24}{'median':>9}{'lowest':>9}{'highest':>9}{'GB/s':>8}",
    ]
    lines += [
        f"{row['arm']:<24}{row['ms_per_update']:>9.2f}{row['lowest']:>9.2f}"
        f"{row['highest']:>9.2f}{row['gb_per_s']:>8.1f}"
        for row in document["arms"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the JSON document here")
    options = parser.parse_args()
    if min(options.parameters, options.clients, options.repeat) < 1:
        parser.error("--parameters, --clients and --repeat are at least 1")
    with tempfile.TemporaryDirectory(prefix="fedchain-bench-") as folder:
        updates = make_updates(Path(folder), options.parameters, options.clients)
        times = measure(arms_of(updates, torch.cuda.is_available()), options.repeat)
    document = report(times, options.parameters, options.clients)
    sys.stderr.write(table(document) + "\n")
    text = json.dumps(document, indent=2) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
