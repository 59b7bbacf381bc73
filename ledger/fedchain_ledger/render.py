"""Views as people read them in a terminal. Takes the plain data of views.py, decides nothing."""

from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from fedchain_ledger.console import safe
from fedchain_ledger.views import View

_SHORT = 12


def show_history(console: Console, document: View, folder: str) -> None:
    """Print a chain's runs and rounds, newest first."""
    chain, head = document["chain"], document["head"]
    _line(
        console,
        f"Chain {chain['name']} {_short(chain['id'])}, {chain['validators']} validators of "
        f"{_count(chain['operators'], 'operator')}, head at height {head['height']}, as "
        f"{document['database']} stores it.",
    )
    _line(console, f"What holds of it: fedchain ledger audit --dir {folder}")
    for run in document["runs"]:
        _show_run(console, run)
    if not document["runs"]:
        _line(console, "No run has been opened.")


def _show_run(console: Console, run: View) -> None:
    console.print()
    opened = f" at {_time(run['opened_unix_ms'])}" if "opened_unix_ms" in run else ""
    _line(
        console,
        f"Run {_short(run['run'])}, {run['outcome']}, opened by {run['aggregator']}{opened}: "
        f"{_count(len(run['rounds']), 'round')}",
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("round", "height", "outcome", "model", "contributed", "left out"):
        right = heading in ("round", "height")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for one in run["rounds"]:
        contributed = ", ".join(f"{u['participant']} {u['examples']}" for u in one["updates"])
        left_out = "; ".join(
            f"{e['participant']}: {e['reason']}" + ("" if e["proven"] else " (claimed)")
            for e in one["exclusions"]
        )
        table.add_row(
            str(one["number"]),
            "" if one["height"] is None else str(one["height"]),
            one["outcome"],
            _short(one["model"]),
            safe(contributed or "nobody", limit=100_000),
            safe(left_out or "nobody", limit=100_000),
        )
    if run["rounds"]:
        console.print(table)


def show_tree(console: Console, value: View, indent: int = 0) -> None:
    """Print nested data, a line a value, two spaces a level."""
    pad = "  " * indent
    for key, item in value.items():
        if isinstance(item, dict):
            _line(console, f"{pad}{key}:")
            show_tree(console, item, indent + 1)
        elif isinstance(item, list):
            _line(console, f"{pad}{key}:" + ("" if item else " none"))
            _items(console, item, indent + 1)
        else:
            _line(console, f"{pad}{key}: {_scalar(item)}")


def _items(console: Console, items: list[Any], indent: int) -> None:
    pad = "  " * indent
    for number, item in enumerate(items, 1):
        if isinstance(item, dict):
            _line(console, f"{pad}{number}.")
            show_tree(console, item, indent + 1)
        else:
            _line(console, f"{pad}{_scalar(item)}")


def _scalar(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def _line(console: Console, text: str) -> None:
    # An envelope is at most 1 MiB, which is 2 Mi hex digits.
    console.print(safe(text, limit=1 << 22), soft_wrap=True)


def _short(digest: str | None) -> str:
    return "-" if digest is None else digest.removeprefix("sha256:")[:_SHORT]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _time(unix_ms: int) -> str:
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{unix_ms} ms"
