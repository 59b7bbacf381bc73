"""The rule fedavg/v1: what exact rationals give, rounded where the rule rounds and nowhere else."""

import struct
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedchain_proto import average
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFile, write_artifact
from fedchain_proto.average import MAX_EXAMPLES, MemoryArrays, TensorSource, weighted_mean
from fedchain_proto.digest import DTYPES, Array
from fedchain_proto.errors import RuleError
from tests.unit.test_vectors_numbers import reference_mean, reference_sum

FLOATS = ["F16", "F32", "F64"]
INTEGERS = [name for name in DTYPES if name[0] in "IU"]


def finite_bits(rng: np.random.Generator, dtype: str, size: int) -> Array:
    """Any finite value by its bits: every exponent is as likely as any other."""
    kind = DTYPES[dtype]
    x: Array = np.frombuffer(rng.bytes(size * kind.itemsize), kind).copy()
    with np.errstate(invalid="ignore"):
        x[~(np.abs(x).astype(np.float64) < average.MAX_FLOAT64)] = 0
    return x


def subnormal(rng: np.random.Generator, dtype: str, size: int) -> Array:
    """Values below the smallest normal number, of both signs."""
    unit = np.finfo(DTYPES[dtype]).smallest_subnormal
    x: Array = rng.integers(-(2**9), 2**9, size) * unit
    return x.astype(DTYPES[dtype])


def cancelling(rng: np.random.Generator, dtype: str, size: int) -> Array:
    """Large values of one magnitude and both signs, with small ones between."""
    x: Array = rng.choice([-1.0, 1.0, 2.0**-8, 1 / 3], size) * rng.choice([1.0, 1e4], size)
    return x.astype(DTYPES[dtype])


FAMILIES = [finite_bits, subnormal, cancelling]
Family = Callable[[np.random.Generator, str, int], Array]


def updates_of(
    family: Family, dtype: str, *, clients: int = 7, size: int = 300, seed: int = 0
) -> list[tuple[int, Array]]:
    """One round of updates with weights of every magnitude up to the largest."""
    rng = np.random.default_rng(seed)
    weights = [int(2 ** rng.uniform(0, 29)) for _ in range(clients - 1)] + [MAX_EXAMPLES]
    return [(n, family(rng, dtype, size)) for n in weights]


def sources(updates: Sequence[tuple[int, Array]]) -> list[tuple[int, TensorSource]]:
    return [(n, MemoryArrays({"w": x})) for n, x in updates]


def columns(updates: Sequence[tuple[int, Array]]) -> list[list[Any]]:
    """Per element, the values of all updates."""
    return [list(column) for column in zip(*(x.tolist() for _, x in updates), strict=True)]


def bits(values: Sequence[Any], dtype: str) -> bytes:
    return np.array(values, DTYPES[dtype]).tobytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_accumulators_are_what_exact_rationals_give(family: Family, dtype: str) -> None:
    """Every float64 accumulator has the bits of the exact sum, rounded once an operation."""
    updates = updates_of(family, dtype)
    sums = np.empty(300)
    average.accumulate_f64(updates, sums)
    weights = [n for n, _ in updates]
    expected = [reference_sum(weights, column) for column in columns(updates)]
    assert sums.tobytes() == struct.pack("<300d", *expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_means_are_what_exact_rationals_give(family: Family, dtype: str) -> None:
    """Division and the last rounding are exact too; float16 goes by way of float32."""
    updates = updates_of(family, dtype, seed=1)
    weights = [n for n, _ in updates]
    expected = [reference_mean(dtype, weights, column) for column in columns(updates)]
    assert weighted_mean(sources(updates))["w"].tobytes() == bits(expected, dtype)


@given(st.integers(1, MAX_EXAMPLES), st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_product_is_exact(n: int, x: float) -> None:
    """No product of a float32 and a weight is rounded: fused or not, the bits are the same."""
    out = np.empty(1)
    average.accumulate_f64([(n, np.array([x], np.float32))], out)
    assert Fraction(float(out[0])) == n * Fraction(x)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_means_are_exact(dtype: str) -> None:
    """Integers of every width are summed exactly and rounded half up, negative ones too."""
    rng = np.random.default_rng(5)
    info = np.iinfo(DTYPES[dtype])
    low, high = max(info.min, -(2**33)), min(info.max, 2**33)
    updates = [
        (n, rng.integers(low, high, 500, dtype=np.int64, endpoint=True).astype(DTYPES[dtype]))
        for n in (1, 2, 3, 2**27)
    ]
    weights = [n for n, _ in updates]
    expected = [reference_mean(dtype, weights, column) for column in columns(updates)]
    assert weighted_mean(sources(updates))["w"].tobytes() == bits(expected, dtype)


TOP = 2**62


@pytest.mark.parametrize(
    ("dtype", "updates", "fits"),
    [
        ("I64", [(1, TOP - 1)], True),
        ("I64", [(1, TOP)], False),
        ("I64", [(1, 1 - TOP)], True),
        ("I64", [(1, -TOP)], False),
        ("I64", [(1, -(2**63))], False),
        ("I64", [(2, TOP // 2 - 1), (1, 1)], True),
        ("I64", [(2, TOP // 2 - 1), (2, 1)], False),
        ("I64", [(1, TOP - 1), (1, -1)], False),  # of magnitudes: a sum on the way counts
        ("I64", [(MAX_EXAMPLES, 2**33)], True),
        ("I64", [(MAX_EXAMPLES, 2**33 + 17)], False),
        ("I64", [(MAX_EXAMPLES, 2**62)], False),  # the product alone would wrap around
        ("U64", [(1, TOP - 1)], True),
        ("U64", [(1, TOP)], False),
        ("U64", [(1, 2**64 - 1)], False),
        ("U64", [(1, 2**63), (1, 2**63)], False),
    ],
)
def test_integer_sums_stop_below_2_to_62(
    dtype: str, updates: list[tuple[int, int]], fits: bool
) -> None:
    """sum n * abs(v) may reach 2**62 - 1 and no more; nothing wraps around unseen."""
    parts = [(n, np.array([0, v, 0], DTYPES[dtype])) for n, v in updates]
    weights, arrays = [n for n, _ in parts], [source for _, source in sources(parts)]
    if fits:
        average.check_weights(weights, arrays)
        expected = reference_mean(dtype, weights, [v for _, v in updates])
        assert weighted_mean(sources(parts))["w"][1] == expected
        return
    for refused in (
        lambda: average.check_weights(weights, arrays),
        lambda: weighted_mean(sources(parts)),
    ):
        with pytest.raises(RuleError, match=r"2\*\*62") as error:
            refused()
        assert error.value.code == "weight-sum"


def test_integer_bound_is_per_element() -> None:
    """Two elements that are each in range do not add up across positions."""
    one, two = np.array([TOP - 1, 0]), np.array([0, TOP - 1])
    average.check_weights([1, 1], [MemoryArrays({"w": x}) for x in (one, two)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(dtype: str, value: float) -> None:
    """One NaN or infinity anywhere costs its update, and never becomes an average."""
    good = np.zeros(70_000, DTYPES[dtype])  # more than a slice
    bad = good.copy()
    bad[69_999] = value
    base = MemoryArrays({"w": good})
    assert average.check_update(MemoryArrays({"w": bad}), base) == wire.REASON_NOT_FINITE
    assert average.check_update(MemoryArrays({"w": good}), base) is None
    with pytest.raises(RuleError) as error:
        weighted_mean(sources([(1, good), (3, bad), (1, -bad)]))
    assert error.value.code == "not-finite"


def test_float64_too_large_to_be_weighted_is_refused() -> None:
    """2**970 and above may overflow once weighted: the update is refused, not the round."""
    below, at = np.array([np.nextafter(2.0**970, 0)]), np.array([-(2.0**970)])
    base = MemoryArrays({"w": below})
    assert average.check_update(base, base) is None
    assert average.check_update(MemoryArrays({"w": at}), base) == wire.REASON_NOT_FINITE
    huge = np.array([1e308])
    with pytest.raises(RuleError) as error:
        weighted_mean(sources([(MAX_EXAMPLES, huge), (1, huge)]))
    assert error.value.code == "not-finite"


@pytest.mark.parametrize(
    "other",
    [
        {"v": np.zeros(2, np.float32)},
        {"w": np.zeros(2)},
        {"w": np.zeros((2, 1), np.float32)},
        {"w": np.zeros(1, np.float32)},  # numpy would broadcast it
        {"w": np.zeros(2, np.float32), "x": np.zeros(0)},
        {},
    ],
)
def test_another_structure_is_refused(other: dict[str, Array]) -> None:
    """Another name, dtype, shape or number of tensors: no average, and nothing is broadcast."""
    base, update = MemoryArrays({"w": np.zeros(2, np.float32)}), MemoryArrays(other)
    assert average.check_update(update, base) == wire.REASON_WRONG_STRUCTURE
    for refused in (
        lambda: average.check_weights([1, 1], [base, update]),
        lambda: weighted_mean([(1, base), (1, update)]),
    ):
        with pytest.raises(RuleError) as error:
            refused()
        assert error.value.code == "structure"


@pytest.mark.parametrize("n", [0, -1, MAX_EXAMPLES + 1, 2**64, True, 1.0, np.int64(3), None])
def test_weights_out_of_range_are_refused(n: Any) -> None:
    """A weight is a Python integer of 1 to 2**29 - 1: nothing negative, huge or fractional."""
    source = MemoryArrays({"w": np.zeros(2)})
    for refused in (
        lambda: average.check_weights([n], [source]),
        lambda: weighted_mean([(n, source)]),
    ):
        with pytest.raises(RuleError, match="example count") as error:
            refused()
        assert (error.value.code, error.value.claim) == ("weight", "C7")


def test_largest_and_smallest_weights_are_accepted() -> None:
    """1 and 2**29 - 1 are weights."""
    source = MemoryArrays({"w": np.ones(2)})
    assert weighted_mean([(1, source), (MAX_EXAMPLES, source)])["w"].tolist() == [1.0, 1.0]


def test_total_weight_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A total that float64 cannot hold exactly is refused (2**24 updates are too many to build)."""
    source = MemoryArrays({"w": np.ones(2)})
    monkeypatch.setattr(average, "MAX_TOTAL_WEIGHT", 10)
    average.check_weights([5, 5], [source, source])
    with pytest.raises(RuleError, match="sum") as error:
        average.check_weights([5, 6], [source, source])
    assert error.value.code == "weight-sum"


def test_nothing_to_average_is_refused() -> None:
    """No updates have no mean."""
    with pytest.raises(RuleError, match="no updates"):
        weighted_mean([])
    with pytest.raises(RuleError, match="no updates"):
        average.check_weights([], [])


def test_booleans_have_no_average() -> None:
    """A boolean tensor is refused when a run opens, and again when it is averaged."""
    source = MemoryArrays({"mask": np.array([True])})
    for refused in (
        lambda: average.check_averageable(source),
        lambda: weighted_mean([(1, source)]),
    ):
        with pytest.raises(RuleError, match="boolean"):
            refused()
    average.check_averageable(MemoryArrays({"mask": np.array([1], np.uint8)}))


def test_shapes_and_dtypes_are_kept() -> None:
    """0-dim, empty, big-endian and strided tensors come back as they went in, little-endian."""
    arrays: dict[str, Array] = {
        "scalar": np.array(2.5),
        "empty": np.zeros((2, 0, 3), np.float32),
        "big": np.arange(4, dtype=">f4"),
        "strided": np.arange(20, dtype=np.float16).reshape(4, 5).T[::2],
        "counter": np.array(7),
    }
    mean = weighted_mean([(3, MemoryArrays(arrays)), (4, MemoryArrays(arrays))])
    for name, array in arrays.items():
        assert mean[name].shape == array.shape
        assert mean[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(mean[name], array)
    assert list(mean) == sorted(arrays)


def test_zero_has_one_sign() -> None:
    """The sum starts from +0.0, so that a mean of negative zeros is +0.0 everywhere."""
    mean = weighted_mean(sources([(1, np.array([-0.0, 0.0])), (1, np.array([-0.0, -0.0]))]))
    assert not np.signbit(mean["w"]).any()


def test_order_matters_and_is_the_callers() -> None:
    """Another order moves bits of the sum, so arrival must be sorted away: then none moves."""
    updates = updates_of(cancelling, "F64", clients=9)
    named = [(f"client-{i}", update) for i, update in enumerate(updates)]
    arrived = [named[i] for i in np.random.default_rng(3).permutation(len(named))]
    one, two, three = np.empty(300), np.empty(300), np.empty(300)
    average.accumulate_f64(updates, one)
    average.accumulate_f64([update for _, update in arrived], two)
    average.accumulate_f64([update for _, update in sorted(arrived, key=lambda u: u[0])], three)
    assert one.tobytes() != two.tobytes()
    assert one.tobytes() == three.tobytes()


def test_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean does not depend on the slice size, whole slices or not."""
    floats = updates_of(finite_bits, "F32", clients=3, size=1000)
    integers = [(n, (x.view(np.int32) >> 20).copy()) for n, x in floats]
    for updates in (sources(floats), sources(integers)):
        whole = weighted_mean(updates)["w"]
        for size in (1, 7, 500, 999, 1000):
            with monkeypatch.context() as patch:
                patch.setattr(average, "SLICE", size)
                assert weighted_mean(updates)["w"].tobytes() == whole.tobytes()


def test_updates_are_left_alone() -> None:
    """Averaging reads; read-only mapped arrays are enough for it."""
    updates = updates_of(cancelling, "F64")
    for _, x in updates:
        x.flags.writeable = False
    before = [x.tobytes() for _, x in updates]
    weighted_mean(sources(updates))
    assert before == [x.tobytes() for _, x in updates]


def test_memory_does_not_grow_with_clients(tmp_path: Path) -> None:
    """Thirty mapped updates of 8 MB take no more memory than two."""
    write_artifact(tmp_path / "m", {"w": np.ones(2_000_000, np.float32)})
    peaks = []
    for clients in (2, 30):
        files = [(1, ArtifactFile.open(tmp_path / "m")) for _ in range(clients)]
        tracemalloc.start()
        try:
            weighted_mean(files)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000
