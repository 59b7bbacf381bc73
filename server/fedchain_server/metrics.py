"""Clients' own figures, averaged for display. Nothing here is signed, and nothing here may fail
a run: a client whose metrics do not fit loses its metrics, never its update.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from flwr.app import MetricRecord, RecordDict

MAX_VALUES = 10_000  # of one client; more are not metrics but data
_LOG = logging.getLogger("fedchain.server")

Aggregate = Callable[[list[RecordDict], str], MetricRecord]
Shape = frozenset[tuple[str, int]]


def only_metrics(content: RecordDict) -> MetricRecord | None:
    """Take a reply's one MetricRecord; None if there is none, several, or too much in it."""
    records = list(content.metric_records.values())
    if len(records) != 1:
        return None
    size = sum(len(value) if isinstance(value, list) else 1 for value in records[0].values())
    return records[0] if size <= MAX_VALUES else None


def average(
    weighted: Iterable[tuple[int | float, MetricRecord | None]], key: str, aggregate: Aggregate
) -> MetricRecord | None:
    """Average the metrics of those clients whose metrics have the most common form.

    Args:
        weighted: (weight, metrics) in canonical order; the weight replaces entry `key`.
        key: Flower's ``weighted_by_key``.
        aggregate: The strategy's aggregation function.

    Returns:
        The means; None if nobody sent metrics or `aggregate` failed (which is logged).
    """
    usable: list[tuple[Shape, MetricRecord]] = []
    for weight, metrics in weighted:
        if metrics is not None:
            own = MetricRecord({**metrics, key: weight})
            usable.append((_shape(own), own))
    if not usable:
        return None
    # Counter keeps insertion order among equals: the first in canonical order decides a tie.
    common = Counter(shape for shape, _ in usable).most_common(1)[0][0]
    records = [RecordDict({"metrics": own}) for shape, own in usable if shape == common]
    try:
        return aggregate(records, key)
    except Exception:  # noqa: BLE001 - the caller's own function, over strangers' figures
        _LOG.warning("the metrics of this round could not be aggregated", exc_info=True)
        return None


def claimed_weight(metrics: MetricRecord | None, key: str, cap: int) -> int | float | None:
    """Read the weight that a client claims for an evaluation; None if it is not one."""
    value = metrics.get(key) if metrics is not None else None
    if isinstance(value, list) or value is None or not math.isfinite(value):
        return None
    return value if 0 < value <= cap else None


def scalars(prefix: str, metrics: MetricRecord | None) -> dict[str, float]:
    """Pick the single numbers out of a record, each name after `prefix`."""
    if metrics is None:
        return {}
    return {
        f"{prefix}{name}": float(value)
        for name, value in metrics.items()
        if not isinstance(value, list)
    }


def _shape(metrics: MetricRecord) -> Shape:
    """Tell which records can be averaged together: (name, length or -1 for one number)."""
    return frozenset(
        (name, len(value) if isinstance(value, Sequence) else -1) for name, value in metrics.items()
    )
