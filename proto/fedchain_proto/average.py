"""The aggregation rule "fedavg/v1": exact weighted averaging, one value on every machine.

w = (sum over i of n_i * x_i) / (sum of n_i), McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629),
summed in canonical order (ascending participant name; the caller brings it). This numpy form is
the rule itself: the audit runs it, and the server's torch form is tested bit-equal to it. It reads
one slice of every update at a time, so memory does not grow with their number.

Why the bits are fixed: n < 2**29 and a float32's 24-bit significand make each product exact in
float64, so a fused and a separate multiply-add agree; the order of additions is fixed; division
and the casts at the end are correctly rounded. Never `stack().sum()`, `einsum`, `dot` here.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.digest import DTYPES, Array, Arrays, Structure, structure
from fedchain_proto.errors import FedchainError, RuleError

RULE = "fedavg/v1"
MAX_EXAMPLES = 2**29 - 1  # 24 + 29 bits of product fit into float64's 53
MAX_TOTAL_WEIGHT = 2**53 - 1
MAX_INTEGER_SUM = 2**62 - 1
SLICE = 65536  # elements; accumulator and product of a slice stay in the second-level cache
# sum(n) < 2**53, so that no weighted sum of smaller values can overflow float64.
MAX_FLOAT64 = 2.0**970

Float64Array = np.ndarray[Any, np.dtype[np.float64]]


class TensorSource(Protocol):
    """Where one update's tensors are read from: an ArtifactFile, or MemoryArrays."""

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted by their UTF-8 bytes."""

    @property
    def structure(self) -> Structure:
        """(name, dtype name, shape) of every tensor, sorted by name bytes."""

    def flat(self, name: str) -> Array:
        """Elements of one tensor in C order, shape (n,), little-endian."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""


class MemoryArrays:
    """Arrays in memory as a TensorSource; contiguous ones are not copied."""

    def __init__(self, arrays: Arrays) -> None:
        self._structure = structure(arrays)
        self._shapes = {name: shape for name, _, shape in self._structure}
        self._flat = {
            name: arrays[name].reshape(-1).astype(DTYPES[dtype], copy=False)
            for name, dtype, _ in self._structure
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted by their UTF-8 bytes."""
        return tuple(self._flat)

    @property
    def structure(self) -> Structure:
        """(name, dtype name, shape) of every tensor, sorted by name bytes."""
        return self._structure

    def flat(self, name: str) -> Array:
        """Elements of one tensor in C order, shape (n,)."""
        return self._flat[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._shapes[name]


def check_averageable(model: TensorSource) -> None:
    """Check that a run can average models of this structure.

    Raises:
        RuleError: A tensor is boolean (code "dtype"): its mean would be none.
    """
    for name, dtype, _ in model.structure:
        if dtype == "BOOL":
            raise RuleError(
                f"tensor {name!r} is boolean and has no average; send it as uint8 or leave it out",
                code="dtype",
                claim="C6",
            )


def check_update(update: TensorSource, base: TensorSource) -> "wire.Reason.ValueType | None":
    """Judge one update's arrays on their own; read slice by slice.

    Returns:
        None if it can be averaged; REASON_WRONG_STRUCTURE if names, dtypes or shapes differ from
        the base model's; REASON_NOT_FINITE if a value is NaN, infinite, or a float64 of 2**970
        or more, whose weighted sum may be infinite.
    """
    if update.structure != base.structure:
        return wire.REASON_WRONG_STRUCTURE
    for name, dtype, _ in update.structure:
        if dtype.startswith("F") and not _finite(update.flat(name)):
            return wire.REASON_NOT_FINITE
    return None


def check_weights(weights: Sequence[int], sources: Sequence[TensorSource]) -> None:
    """Check that this set of updates stays in the range where the average is exact.

    Args:
        weights: Example counts n_i, one per source.
        sources: Updates of one structure; only their integer tensors are read.

    Raises:
        RuleError: n_i is not in 1 .. 2**29 - 1 (code "weight"); sum n_i >= 2**53, or for an
            element of an integer tensor sum n_i * abs(v_i) >= 2**62 (code "weight-sum"); the
            structures differ (code "structure").
    """
    updates = list(zip(weights, sources, strict=True))
    _check_counts(updates)
    for name, dtype, _ in sources[0].structure:
        if DTYPES[dtype].kind in "iu":
            for parts in _slices(updates, name):
                _integer_sum(parts)


def weighted_mean(updates: Sequence[tuple[int, TensorSource]]) -> dict[str, Array]:
    """Average one round's updates, each weighted by its signed example count.

    Args:
        updates: (n_i, arrays) in canonical order, at least one; equal names, dtypes and shapes.
            n_i counts training examples, 0 < n_i < 2**29.

    Returns:
        Arrays of the same names, dtypes and shapes. Floats are rounded once to their dtype
        (float16 by way of float32); integers are rounded half up.

    Raises:
        RuleError: As `check_weights`; or a tensor is boolean (code "dtype"), or a sum is not
            finite (code "not-finite").
    """
    _check_counts(updates)
    first = updates[0][1]
    check_averageable(first)
    total = sum(n for n, _ in updates)
    flush_denormal_canary()
    result: dict[str, Array] = {}
    for name, dtype, shape in first.structure:
        flat = np.empty(first.flat(name).size, DTYPES[dtype])
        mean = _integer_mean if flat.dtype.kind in "iu" else _float_mean
        for start, parts in enumerate(_slices(updates, name)):
            flat[start * SLICE : (start + 1) * SLICE] = mean(parts, total, flat.dtype)
        result[name] = flat.reshape(shape)
    return result


def accumulate_f64(parts: Sequence[tuple[int, Array]], out: Float64Array) -> None:
    """Overwrite `out` with sum n_i * x_i in float64, in order, from +0.0.

    Args:
        parts: (n_i, x_i); x_i float16, float32 or float64 (k,).
        out: float64 (k,).
    """
    term = np.empty_like(out)
    out.fill(0.0)
    # A sum that leaves float64's range is found by the caller, as a value and not as a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        for n, x in parts:
            np.copyto(term, x)  # widened first: a float32 product would be rounded
            np.multiply(term, float(n), out=term)
            np.add(out, term, out=out)


def flush_denormal_canary() -> None:
    """Check that this thread keeps subnormal numbers; libraries switch that off per thread.

    Raises:
        FedchainError: It flushes them to zero: its sums would differ from everybody else's.
    """
    tiny = np.array([2.0**-1022, 2.0**-1074])
    if not np.all(tiny * np.array([0.5, 2.0**60])):
        raise FedchainError(
            "subnormal numbers are flushed to zero on this thread"
            " (torch.set_flush_denormal, or a library built with -ffast-math): the average would"
            " not be reproducible"
        )


def _check_counts(updates: Sequence[tuple[int, TensorSource]]) -> None:
    """Check all of `check_weights` but the integer sums."""
    if not updates:
        raise RuleError("nothing to average: no updates", code="weight", claim="C7")
    for n, _ in updates:
        if isinstance(n, bool) or not isinstance(n, int) or not 0 < n <= MAX_EXAMPLES:
            raise RuleError(
                f"example count {n!r} is not in 1 .. {MAX_EXAMPLES}", code="weight", claim="C7"
            )
    if sum(n for n, _ in updates) > MAX_TOTAL_WEIGHT:
        raise RuleError("the weights sum to 2**53 or more", code="weight-sum", claim="C7")
    if any(source.structure != updates[0][1].structure for _, source in updates):
        raise RuleError(
            "updates of different names, dtypes or shapes", code="structure", claim="C6"
        )


def _finite(flat: Array) -> bool:
    for start in range(0, flat.size, SLICE):
        part = flat[start : start + SLICE]
        if flat.dtype.itemsize == 8:
            # Written so that NaN, which compares false, is refused too.
            if not np.all(np.abs(part) < MAX_FLOAT64):
                return False
        elif not np.isfinite(part).all():
            return False
    return True


def _slices(
    updates: Sequence[tuple[int, TensorSource]], name: str
) -> Iterator[list[tuple[int, Array]]]:
    """Yield the (n_i, x_i[slice]) of all updates, one slice of a tensor after the other."""
    flats = [(n, source.flat(name)) for n, source in updates]
    for start in range(0, flats[0][1].size, SLICE):
        yield [(n, flat[start : start + SLICE]) for n, flat in flats]


def _float_mean(parts: Sequence[tuple[int, Array]], total: int, dtype: np.dtype[Any]) -> Array:
    accumulator = np.empty(parts[0][1].size)
    accumulate_f64(parts, accumulator)
    # NaN and infinity never leave a sum again, and finite float16 and float32 never overflow one.
    if not np.isfinite(accumulator).all():
        raise RuleError("an update has NaN, infinity or too large a value", code="not-finite")
    accumulator /= float(total)
    if dtype.itemsize == 2:
        return accumulator.astype(np.float32).astype(dtype)
    return accumulator.astype(dtype)


def _integer_mean(parts: Sequence[tuple[int, Array]], total: int, dtype: np.dtype[Any]) -> Array:
    return ((_integer_sum(parts) + total // 2) // total).astype(dtype)


def _integer_sum(parts: Sequence[tuple[int, Array]]) -> Array:
    """Sum n_i * v_i exactly in int64; refuse before anything can wrap around."""
    result = np.zeros(parts[0][1].size, np.int64)
    room = np.full(result.size, MAX_INTEGER_SUM, np.uint64)  # 2**62 - 1 - sum n_i * abs(v_i)
    for n, v in parts:
        magnitude = _magnitude(v)
        if np.any(magnitude > room // np.uint64(n)):
            raise RuleError(
                "an integer tensor's weighted sum would reach 2**62", code="weight-sum", claim="C7"
            )
        room -= magnitude * np.uint64(n)
        result += v.astype(np.int64) * np.int64(n)
    return result


def _magnitude(v: Array) -> Array:
    """abs(v) as uint64, right for -2**63 too, whose absolute value int64 has not."""
    if v.dtype.kind == "u":
        return v.astype(np.uint64)
    signed = v.astype(np.int64)
    bits = signed.view(np.uint64)
    return np.where(signed < 0, np.uint64(0) - bits, bits)
