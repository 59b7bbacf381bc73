"""A finished run: its model, its rounds, and the way to check them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedchain_ledger.core.report import Report
from fedchain_ledger.offline import audit_folder

if TYPE_CHECKING:
    from flwr.app import ArrayRecord

    from fedchain_server import RoundRecord


@dataclass(frozen=True)
class Run:
    """What `fedchain.launch` returns.

    Attributes:
        run_id: 64 hex digits: the transaction id of the statement that opened the run.
        arrays: The final model, names, shapes and dtypes as in the initial arrays.
        rounds: One record a closed round, ascending.
        dir: The work folder, which holds all that an audit needs.
    """

    run_id: str
    arrays: "ArrayRecord"
    rounds: tuple["RoundRecord", ...]
    dir: Path

    def audit(self, *, depth: str = "full") -> Report:
        """Replay the folder's history from its genesis, as ``fedchain ledger audit`` does.

        Args:
            depth: "chain", or "full" to recompute every round's model bit for bit too.

        Raises:
            UsageError: Nothing to audit there, or an unknown depth.
        """
        return audit_folder(self.dir, depth=depth)
