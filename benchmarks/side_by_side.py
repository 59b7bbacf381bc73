"""What fedchain adds to a round: the same app on the same grid, stock FedAvg and fedchain.

Both arms run the same ClientApp in the same in-process Grid with the same number of workers, one
torch thread in each; the server process averages with the threads that each arm uses by default.
Arms alternate, so that a slow minute of the machine hits both. Printed as a table and written as
JSON: medians and the spread (lowest to highest) over the repetitions.

    python -m benchmarks.side_by_side [--repeat 5] [--rounds 5] [--out FILE] [--profile]

A round is the time from one training instruction to the next (or to the end); "turnaround" is from
the last client's reply to the next instruction: what clients wait for the server.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table

import fedchain
from benchmarks import phases
from fedchain import digits
from fedchain._flower import silence
from fedchain.grid import InProcessGrid, NodeSpec
from fedchain.naming import participant_names

LARGE = 10_000_000


@dataclass(frozen=True)
class Case:
    """One workload: an app and the model it starts from."""

    name: str
    app: Callable[[int], ClientApp]
    arrays: Callable[[], ArrayRecord]


@dataclass(frozen=True)
class Sample:
    """One repetition of one arm; milliseconds, medians over the rounds after the first."""

    round_ms: float
    turnaround_ms: float


class WatchedGrid(InProcessGrid):
    """The Grid, noting when instructions leave and replies arrive."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.sent: list[float] = []
        self.last_reply: list[float] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Pass everything on; a message without arrays is no training instruction."""
        batch = list(messages)
        training = bool(batch) and "arrays" in batch[0].content
        if training:
            self.sent.append(time.perf_counter())
        for reply in super().send_and_receive(batch, timeout=timeout):
            arrived = time.perf_counter()
            yield reply
            if training:
                if len(self.last_reply) < len(self.sent):
                    self.last_reply.append(arrived)
                self.last_reply[-1] = arrived


def echo_app(clients: int) -> ClientApp:
    """Ten million parameters, no training: what is left is transport and aggregation."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        # Each owner's arrays are its own: equal ones would share one artifact.
        scale = np.float32(0.99 - 0.001 * int(context.node_config["partition-id"]))
        arrays = {
            name: Array(array.numpy() * scale) for name, array in message.content["arrays"].items()
        }
        content = RecordDict(
            {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 100})}
        )
        return Message(content, reply_to=message)

    return app


def large_arrays() -> ArrayRecord:
    """Four float32 tensors, 10 million parameters together."""
    random = np.random.default_rng(0)
    shape = (LARGE // 4000, 1000)
    return ArrayRecord(
        {f"layer-{i}": Array(random.standard_normal(shape, dtype=np.float32)) for i in range(4)}
    )


CASES = (
    Case(
        "digits",
        lambda n: digits.make_app(clients=n, alpha=0.5, seed=0),
        lambda: digits.initial_arrays(0),
    ),
    Case("10M parameters", echo_app, large_arrays),
)


def run_arm(case: Case, arm: str, clients: int, rounds: int, workers: int, folder: Path) -> Sample:
    """Run one repetition; the first round (imports, warm-up) is left out of the medians."""
    federation = fedchain.Federation(folder, clients=clients, validators=4)
    nodes = [
        NodeSpec(node_id, name, federation.node_config(name))
        for node_id, name in enumerate(participant_names(clients), start=1)
    ]
    mods = [fedchain.attest] if arm == "fedchain" else []
    grid = WatchedGrid(
        case.app(clients), nodes=nodes, workers=workers, seed=0, timeout_s=600.0, mods=mods
    )
    least = {"min_train_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}
    with grid:
        if arm == "stock":
            FedAvg(**least).start(grid, case.arrays(), num_rounds=rounds)  # type: ignore[arg-type]
        else:
            with federation:
                strategy = federation.strategy(
                    policy=fedchain.Policy(), min_evaluate_nodes=0, **least
                )
                strategy.start(grid, case.arrays(), num_rounds=rounds)
        ended = time.perf_counter()
    starts = [*grid.sent, ended]
    spans = [1000 * (b - a) for a, b in itertools.pairwise(starts[1:])]
    waits = [1000 * (b - a) for a, b in zip(grid.last_reply[1:], starts[2:], strict=False)]
    return Sample(statistics.median(spans), statistics.median(waits))


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest, highest; milliseconds."""
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run every case, the arms in turn."""
    results = []
    for case in CASES:
        samples: dict[str, list[Sample]] = {"stock": [], "fedchain": []}
        for _ in range(options.repeat):
            for arm in samples:
                with tempfile.TemporaryDirectory() as scratch:
                    samples[arm].append(
                        run_arm(
                            case,
                            arm,
                            options.clients,
                            options.rounds,
                            options.workers,
                            Path(scratch) / "run",
                        )
                    )
        row: dict[str, object] = {"case": case.name}
        for arm, taken in samples.items():
            row[arm] = {
                key: spread([asdict(sample)[key] for sample in taken])
                for key in ("round_ms", "turnaround_ms")
            }
        stock, ours = (
            statistics.median(s.round_ms for s in samples[arm]) for arm in ("stock", "fedchain")
        )
        row["added_ms_a_round"] = round(ours - stock, 2)
        row["ratio"] = round(ours / stock, 3)
        results.append(row)
    return {
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine()},
        "options": {k: str(v) for k, v in vars(options).items()},
        "results": results,
    }


def show(report: dict[str, object]) -> None:
    """Print the table."""
    table = Table(title="Median (lowest-highest), ms; wait: last reply to next instruction")
    for heading in ("case", "arm", "round", "wait", "added", "ratio"):
        side = "left" if heading in ("case", "arm") else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    for row in report["results"]:  # type: ignore[attr-defined]
        for arm in ("stock", "fedchain"):
            cells = [
                f"{m['median']:.0f} ({m['min']:.0f}-{m['max']:.0f})" for m in row[arm].values()
            ]
            last = arm == "fedchain"
            table.add_row(
                "" if last else row["case"],
                arm,
                *cells,
                f"{row['added_ms_a_round']:+.1f}" if last else "",
                f"{row['ratio']:.2f}" if last else "",
            )
    Console().print(table)


def profile(options: argparse.Namespace) -> None:
    """Show where fedchain's time goes, in the server and in the workers."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            with phases.watch(folder / "phases"):
                run_arm(
                    case,
                    "fedchain",
                    options.clients,
                    options.rounds,
                    options.workers,
                    folder / "run",
                )
            phases.show(folder / "phases", case.name, options.rounds)


def main() -> None:
    """Parse the options, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/side_by_side.json"))
    parser.add_argument("--profile", action="store_true", help="profile instead of measuring")
    options = parser.parse_args()
    silence()
    if options.profile:
        profile(options)
        return
    report = measure(options)
    show(report)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
