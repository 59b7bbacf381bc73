"""Federated learning whose training history can be proved.

`launch` runs federated rounds whose every step is signed, agreed on and kept; `Run.audit` and
``fedchain ledger audit`` check that history against nothing but a genesis file.

Names are loaded when they are first used: an auditor's machine needs neither torch nor flwr.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedchain.federation import Federation
    from fedchain.launching import launch
    from fedchain.run import Run
    from fedchain_clients import attest
    from fedchain_ledger.core.report import Report
    from fedchain_proto.errors import (
        EvidenceError,
        FedchainError,
        RuleError,
        UnavailableError,
        UsageError,
    )
    from fedchain_proto.statements import Policy
    from fedchain_server import ExclusionRecord, LedgerFedAvg, RoundRecord, UpdateRecord

__version__ = "0.1.0"

__all__ = [
    "EvidenceError",
    "ExclusionRecord",
    "FedchainError",
    "Federation",
    "LedgerFedAvg",
    "Policy",
    "Report",
    "RoundRecord",
    "RuleError",
    "Run",
    "UnavailableError",
    "UpdateRecord",
    "UsageError",
    "attest",
    "launch",
]

_HOMES = {
    "EvidenceError": "fedchain_proto.errors",
    "ExclusionRecord": "fedchain_server",
    "FedchainError": "fedchain_proto.errors",
    "Federation": "fedchain.federation",
    "LedgerFedAvg": "fedchain_server",
    "Policy": "fedchain_proto.statements",
    "Report": "fedchain_ledger.core.report",
    "RoundRecord": "fedchain_server",
    "RuleError": "fedchain_proto.errors",
    "Run": "fedchain.run",
    "UnavailableError": "fedchain_proto.errors",
    "UpdateRecord": "fedchain_server",
    "UsageError": "fedchain_proto.errors",
    "attest": "fedchain_clients",
    "launch": "fedchain.launching",
}
_TRAINING = {
    "ExclusionRecord",
    "Federation",
    "LedgerFedAvg",
    "RoundRecord",
    "UpdateRecord",
    "attest",
    "launch",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the room that defines it."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(home), name)
    except ModuleNotFoundError as missing:
        if name in _TRAINING and missing.name in {"flwr", "torch"}:
            raise ImportError(
                f"fedchain.{name} needs {missing.name}: pip install 'fedchain[train]'"
            ) from missing
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name what is public, loaded or not."""
    return sorted([*globals(), *__all__])
