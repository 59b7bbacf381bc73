"""The aggregator: takes updates in, averages them exactly, and anchors every round.

Names are loaded when they are first used, so that `fedchain_server.fedavg` runs on a machine that
has torch and numpy only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedchain_server.rounds import ExclusionRecord, RoundRecord, UpdateRecord
    from fedchain_server.strategy import LedgerFedAvg

__all__ = ["ExclusionRecord", "LedgerFedAvg", "RoundRecord", "UpdateRecord"]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "strategy" if name == "LedgerFedAvg" else "rounds"
    value = getattr(import_module(f"fedchain_server.{home}"), name)
    globals()[name] = value
    return value
