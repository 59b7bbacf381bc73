"""What every command of fedchain does alike: exit status, one-line errors, safe output.

Exit status: 0 it holds, 1 it does not hold, 2 wrong usage or could not look, 130 interrupted.
"""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click
import typer
from rich.console import Console
from rich.text import Text

from fedchain_proto.errors import EvidenceError, FedchainError, RuleError
from fedchain_proto.names import printable

HOLDS = 0
DOES_NOT_HOLD = 1
COULD_NOT_LOOK = 2
INTERRUPTED = 130

MAX_ERROR_CHARACTERS = 2_000


def run_cli(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; errors are one line on stderr.

    Args:
        app: The commands.
        arguments: Without the program's name; those of this process by default.
    """
    try:
        status = app(args=arguments, standalone_mode=False)
        # What is still buffered may find that nobody reads any more.
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError:
        return COULD_NOT_LOOK  # the help has been printed
    except click.ClickException as error:
        hint = "" if "--help" in error.format_message() else " (--help shows the usage)"
        return _fail(error.format_message() + hint, COULD_NOT_LOOK)
    except (RuleError, EvidenceError) as error:
        return _fail(str(error), DOES_NOT_HOLD)
    except FedchainError as error:
        return _fail(str(error), COULD_NOT_LOOK)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED)
    except SystemExit as leaving:  # typer's own answer to a closed pipe
        return leaving.code if isinstance(leaving.code, int) else COULD_NOT_LOOK
    except BrokenPipeError:
        return _closed_pipe()
    except OSError as error:
        return _fail(str(error), COULD_NOT_LOOK)
    except Exception:  # noqa: BLE001  # a bug of ours: shown whole, and never taken for a verdict
        traceback.print_exc()
        return COULD_NOT_LOOK
    if status == INTERRUPTED:  # typer took the Ctrl-C itself
        return _fail("interrupted", INTERRUPTED)
    return status if isinstance(status, int) else HOLDS


def error_line(message: str) -> None:
    """Print one line of an error to stderr."""
    print("error: " + _one_line(message), file=sys.stderr)


def note_line(message: str) -> None:
    """Print one line of a remark to stderr."""
    print("note: " + _one_line(message), file=sys.stderr)


def print_json(document: Any) -> None:
    """Print the one JSON document of a command to stdout; ASCII, so that no terminal obeys it."""
    print(json.dumps(document, indent=2))


def output() -> Console:
    """Return where people read: stdout, without markup, so that no name can paint."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        # Nobody's window: lines are as long as they are, for grep.
        console = Console(markup=False, highlight=False, emoji=False, width=10_000)
    return console


def stderr_console() -> Console:
    """Return where progress is shown: stderr, without markup."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def safe(text: object, limit: int = 300) -> Text:
    """Make a table cell of a string from outside: control characters escaped, no markup."""
    return Text(printable(str(text), limit))


def _one_line(message: str) -> str:
    return printable(" ".join(message.split()), MAX_ERROR_CHARACTERS)


def _fail(message: str, status: int) -> int:
    try:
        error_line(message)
    except BrokenPipeError:
        return _closed_pipe()
    return status


def _closed_pipe() -> int:
    # The interpreter flushes stdout once more when it ends: let that go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return COULD_NOT_LOOK
