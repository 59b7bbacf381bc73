"""The `fedchain` command: the demo, and the ledger's own commands.

Exit status: 0 it holds, 1 it does not hold, 2 wrong usage or could not look.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedchain import __version__
from fedchain_ledger import cli as ledger
from fedchain_ledger.console import run_cli

app = typer.Typer(
    name="fedchain",
    help="Federated learning whose training history can be proved.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    suggest_commands=False,  # click itself names what was meant; both would say it twice
)
app.add_typer(ledger.app, name="ledger")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedchain {__version__}")
        raise typer.Exit


@app.callback()
def fedchain(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Federated learning whose training history can be proved."""


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Option("--dir", help="Where everything is kept; a new or empty folder.")
    ] = Path("fedchain-demo"),
    clients: Annotated[int, typer.Option(help="Number of data owners.")] = 10,
    rounds: Annotated[int, typer.Option(help="Number of rounds.")] = 10,
    validators: Annotated[int, typer.Option(help="Number of ledger validators.")] = 4,
    seed: Annotated[int, typer.Option(help="Drives data shares and training, never keys.")] = 0,
    device: Annotated[
        str, typer.Option(help="Where the average is computed: auto, cpu, cuda, cuda:N.")
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
    ] = False,
) -> None:
    """Train on real handwritten digits across data owners, then audit the history."""
    from fedchain.demo import run_demo  # Only the demo needs torch and flwr.

    holds = run_demo(
        directory,
        clients=clients,
        rounds=rounds,
        validators=validators,
        seed=seed,
        device=device,
        as_json=as_json,
    )
    raise typer.Exit(0 if holds else 1)


def main() -> None:
    """Run the command line and leave with its exit status."""
    status = run_cli(app)
    # All is closed; taking the interpreter down can still last a second. Who presses Ctrl-C then
    # ends it at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)
