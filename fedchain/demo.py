"""`fedchain demo`: a whole federated run on real data, shown as it happens, then audited."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.table import Table

from fedchain.naming import MAX_ROUNDS, check_count, participant_names, validator_names
from fedchain.workdir import check_free
from fedchain_proto.errors import UsageError

if TYPE_CHECKING:
    from fedchain.run import Run
    from fedchain_ledger.core.report import Report
    from fedchain_server import RoundRecord

ALPHA = 0.5
VISIBLE_ROUNDS = 12  # Bars kept on the screen; older ones give way.


def run_demo(
    directory: Path,
    *,
    clients: int,
    rounds: int,
    validators: int,
    seed: int,
    device: str,
    as_json: bool,
) -> bool:
    """Run, show, audit.

    Returns:
        Whether the audit's verdict is PASS.

    Raises:
        UsageError: A number out of range, a folder in use, or a package that is missing.
    """
    # What can be refused at once is refused before anything slow is imported.
    participant_names(clients)
    validator_names(validators)
    check_count("rounds", rounds, MAX_ROUNDS)
    check_free(directory.absolute())
    try:
        from fedchain import digits
        from fedchain.launching import launch
        from fedchain.plot import save_learning_curve
    except ModuleNotFoundError as missing:
        raise UsageError(f"the demo needs {missing.name}: pip install 'fedchain[demo]'") from None

    started = time.monotonic()
    # With --json the bars go to stderr: stdout carries the document and nothing else.
    console = Console(stderr=as_json)
    if not as_json:
        console.print(
            f"{clients} data owners, {validators} validators, {rounds} rounds "
            f"of handwritten digits -> {directory}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    with _bars(console, clients) as bars:
        run = launch(
            digits.make_app(clients=clients, alpha=ALPHA, seed=seed),
            digits.initial_arrays(seed),
            clients=clients,
            rounds=rounds,
            workdir=directory,
            validators=validators,
            device=device,
            server_evaluate=digits.server_evaluate,
            on_round=bars.closed,
            on_reply=bars.replied,
            seed=seed,
        )
    save_learning_curve(
        run.dir / "learning-curve.png", [_accuracy(r) for r in run.rounds], run_id=run.run_id
    )
    report = run.audit()
    seconds = time.monotonic() - started
    if as_json:
        json.dump(_document(run, report, seconds), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _show(console, run, report, seconds)
    return report.verdict == "PASS"


class _Bars:
    """One live bar a round: how many owners have answered."""

    def __init__(self, progress: Progress, clients: int) -> None:
        self._progress = progress
        self._clients = clients
        self._tasks: dict[int, TaskID] = {}

    def replied(self, number: int, participant: str) -> None:
        """Count one owner's answer."""
        self._progress.advance(self._task(number))

    def closed(self, record: "RoundRecord") -> None:
        """Finish a round's bar with what came out."""
        self._progress.update(
            self._task(record.number),
            completed=self._clients,
            outcome=f"accuracy {_accuracy(record):.4f}  block {record.height}",
        )

    def _task(self, number: int) -> TaskID:
        if number not in self._tasks:
            gone = self._tasks.get(number - VISIBLE_ROUNDS)
            if gone is not None:
                self._progress.update(gone, visible=False)
            self._tasks[number] = self._progress.add_task(
                f"round {number:>2}", total=self._clients, outcome=""
            )
        return self._tasks[number]


@contextmanager
def _bars(console: Console, clients: int) -> Iterator[_Bars]:
    """Live bars that leave the last state on the screen."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        Elapsed(),
        TextColumn("{task.fields[outcome]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress, clients)


def _accuracy(record: "RoundRecord") -> float:
    """The held-out accuracy of one round's model, 0 to 1."""
    return float(record.metrics["accuracy"])


def _document(run: "Run", report: "Report", seconds: float) -> dict[str, Any]:
    """The demo's JSON."""
    return {
        "run": run.run_id,
        "dir": str(run.dir),
        "seconds": round(seconds, 3),
        "rounds": [
            {
                "number": record.number,
                "height": record.height,
                "model": record.model,
                "updates": len(record.updates),
                "exclusions": [
                    {"participant": excluded.participant, "reason": excluded.reason}
                    for excluded in record.exclusions
                ],
                "accuracy": _accuracy(record),
            }
            for record in run.rounds
        ],
        "verdict": report.verdict,
    }


def _show(console: Console, run: "Run", report: "Report", seconds: float) -> None:
    """Print the rounds, the verdict, and where to look next."""
    table = Table(title=f"Run {run.run_id[:12]}", title_justify="left")
    for heading in ("Round", "Updates", "Exclusions", "Test accuracy"):
        table.add_column(heading, justify="right")
    table.add_column("Model digest")
    table.add_column("Block", justify="right")
    for record in run.rounds:
        table.add_row(
            str(record.number),
            str(len(record.updates)),
            str(len(record.exclusions)),
            f"{_accuracy(record):.4f}",
            record.model[:19],
            str(record.height),
        )
    console.print(table)
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"\n{seconds:.1f} s, audit included. Everything lies in {run.dir}\n"
        f"  learning curve  {run.dir / 'learning-curve.png'}\n"
        f"  look            fedchain ledger history --dir {run.dir}\n"
        f"  check it again  fedchain ledger audit --dir {run.dir} --trust GENESIS",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
