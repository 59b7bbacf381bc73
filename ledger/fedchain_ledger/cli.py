"""`fedchain ledger`: look at a run's history, show one thing of it whole, and audit it.

Everything here only reads, and works while the run goes on.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedchain_ledger import views
from fedchain_ledger.console import note_line, output, print_json, stderr_console
from fedchain_ledger.offline import audit_folder, load_genesis, open_best
from fedchain_ledger.render import show_history, show_tree
from fedchain_ledger.service.reading import ChainReader, StoredTransaction
from fedchain_proto.errors import UsageError

app = typer.Typer(
    name="ledger",
    help="Look at a ledger and audit it: nothing here writes, or needs the validators to run.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click itself names what was meant; both would say it twice
)


class Depth(StrEnum):
    """How much an audit looks at."""

    CHAIN = "chain"
    FULL = "full"


Directory = Annotated[
    Path, typer.Option("--dir", help="The run's folder, with genesis.json and ledger/.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
]


@app.command()
def history(directory: Directory, as_json: AsJson = False) -> None:
    """Tell runs and rounds, newest first: who contributed what, who was left out and why."""
    genesis = load_genesis(directory)
    with open_best(directory, note_line) as reader:
        document = views.history(reader, genesis)
    if as_json:
        print_json(document)
    else:
        show_history(output(), document, str(directory))


@app.command()
def show(
    directory: Directory,
    height: Annotated[int | None, typer.Option(help="A block, by its height.")] = None,
    tx: Annotated[
        str | None, typer.Option(help="A transaction, by its id (64 hex digits).")
    ] = None,
    round_name: Annotated[
        str | None,
        typer.Option(
            "--round", metavar="RUN/N", help="Round N of a run; RUN may be its first digits."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one thing whole, as it is stored, signatures and certificate included."""
    if sum(option is not None for option in (height, tx, round_name)) != 1:
        raise UsageError("name one thing to show: --height N, --tx ID or --round RUN/N")
    genesis = load_genesis(directory)
    with open_best(directory, note_line) as reader:
        if height is not None:
            document = views.block_view(reader, genesis, _height(reader, height))
        elif tx is not None:
            document = views.receipt_view(reader, genesis, _transaction(reader, tx))
        else:
            document = views.round_view(reader, genesis, *_round(reader, str(round_name)))
    if as_json:
        print_json(document)
    else:
        show_tree(output(), document)


@app.command()
def audit(
    directory: Directory,
    trust: Annotated[
        Path | None,
        typer.Option(help="Your own copy of the genesis; without it the folder's is believed."),
    ] = None,
    depth: Annotated[
        Depth,
        typer.Option(
            help="full recomputes every round's model from the kept updates (claim C6); chain "
            "needs the databases only."
        ),
    ] = Depth.FULL,
    as_json: AsJson = False,
) -> None:
    """Replay everything from the genesis, and give a verdict claim by claim.

    Exit status: 0 PASS, 1 FAIL, 2 wrong usage or could not look.
    """
    with _progress_bar() as progress:
        task = progress.add_task("audit", total=None)
        report = audit_folder(
            directory,
            depth=depth.value,
            trust=trust,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if trust is None:
        note_line(
            f"trusted {directory / 'genesis.json'}, which lies beside what it should judge: "
            "an auditor brings their own copy (--trust GENESIS)"
        )
    if as_json:
        print_json(report.to_json())
    else:
        output().print(str(report), soft_wrap=True)
    raise typer.Exit(report.exit_code)


def _progress_bar() -> Progress:
    """Make a bar on stderr that is gone when the audit is done, and is not there in a pipe."""
    console = stderr_console()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _height(reader: ChainReader, height: int) -> int:
    head = reader.head_height()
    if not 1 <= height <= head:
        raise UsageError(f"no block {height}: {reader.path} holds the blocks 1 to {head}")
    return height


def _transaction(reader: ChainReader, text: str) -> StoredTransaction:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise UsageError(f"a transaction id is 64 hex digits, not {text!r}")
    stored = reader.transaction(bytes.fromhex(text))
    if stored is None:
        raise UsageError(f"no transaction {text} is committed in {reader.path}")
    return stored


def _round(reader: ChainReader, name: str) -> tuple[bytes, list[StoredTransaction]]:
    match = re.fullmatch(r"([0-9a-fA-F]{1,64})/([0-9]{1,10})", name)
    if match is None or int(match[2]) < 1:
        raise UsageError(f"a round is RUN/N: a run's first hex digits and a number, not {name!r}")
    prefix, number = match[1].lower(), int(match[2])
    runs = [run for run in reader.runs() if run.hex().startswith(prefix)]
    if not runs:
        raise UsageError(f"no run begins with {prefix}; `fedchain ledger history` lists them")
    if len(runs) > 1:
        raise UsageError(f"{len(runs)} runs begin with {prefix}: give more digits")
    found = reader.round_transactions(runs[0], number)
    if not found:
        raise UsageError(f"run {runs[0].hex()[:12]} has no round {number}")
    return runs[0], found
