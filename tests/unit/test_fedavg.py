"""FedAvg in torch: the bits of the rule, whatever the threads, slices and flags around it."""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedchain_proto import average
from fedchain_proto.artifact import ArtifactFile, write_artifact
from fedchain_proto.average import MAX_EXAMPLES, MemoryArrays, TensorSource
from fedchain_proto.digest import DTYPES, Array
from fedchain_proto.errors import FedchainError, RuleError
from fedchain_server import fedavg
from tests.unit.test_average import (
    FAMILIES,
    FLOATS,
    INTEGERS,
    Family,
    columns,
    finite_bits,
    sources,
    updates_of,
)
from tests.unit.test_vectors_numbers import reference_sum

Updates = list[tuple[int, TensorSource]]
FEDAVG_FILE = Path(fedavg.__file__)


def models(clients: int = 5) -> Updates:
    """Updates with a tensor of every dtype, several slices, 0-dim, empty and strided ones."""
    rng = np.random.default_rng(11)
    result: Updates = []
    for _ in range(clients):
        arrays = {name: finite_bits(rng, name, 999 + 100 * i) for i, name in enumerate(FLOATS)}
        for name in INTEGERS:
            info = np.iinfo(DTYPES[name])
            low, high = max(info.min, -(2**30)), min(info.max, 2**30)
            arrays[name] = rng.integers(low, high, 1001, dtype=np.int64).astype(DTYPES[name])
        arrays |= {"scalar": np.array(rng.normal()), "empty": np.zeros((2, 0), np.float32)}
        arrays["strided"] = rng.normal(size=(40, 50)).astype(np.float32).T[::3]
        result.append((int(rng.integers(1, MAX_EXAMPLES)), MemoryArrays(arrays)))
    return result


def assert_same_bits(ours: dict[str, Array], rule: dict[str, Array]) -> None:
    assert list(ours) == list(rule)
    for name, array in rule.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape)
        assert ours[name].tobytes() == array.tobytes(), name


def on_fresh_thread(work: Callable[[], None]) -> None:
    """Run where flags may be set without spoiling another test; raise what `work` raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # handed to the test's own thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_accumulators_are_what_exact_rationals_give(family: Family, dtype: str) -> None:
    """torch's float64 sums have the bits of the exact ones, rounded once an operation."""
    updates = updates_of(family, dtype, seed=2)
    expected = [reference_sum([n for n, _ in updates], column) for column in columns(updates)]
    assert fedavg.accumulate_f64(updates, "cpu").tobytes() == np.array(expected).tobytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_accumulators_are_numpys(family: Family, dtype: str) -> None:
    """On 200,000 elements with fifty clients, torch and the rule differ in no accumulator."""
    updates = updates_of(family, dtype, clients=50, size=200_000, seed=3)
    sums = np.empty(200_000)
    average.accumulate_f64(updates, sums)
    assert fedavg.accumulate_f64(updates, "cpu").tobytes() == sums.tobytes()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("slice_size", [10, 64, fedavg.CPU_SLICE])
def test_mean_is_the_rules(threads: int, slice_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dtype and shape, 1, 2 or 5 threads, any slice: the bits of the numpy rule."""
    monkeypatch.setattr(fedavg, "CPU_SLICE", slice_size)
    updates = models(3)
    assert_same_bits(fedavg.weighted_mean(updates, "cpu", threads), average.weighted_mean(updates))


@pytest.mark.parametrize("threads", [1, 2])
def test_mean_of_large_tensors_is_the_rules(threads: int) -> None:
    """Half a million elements, several slices of the real size a thread."""
    updates = sources(updates_of(finite_bits, "F32", size=500_001))
    assert_same_bits(fedavg.weighted_mean(updates, "cpu", threads), average.weighted_mean(updates))


def test_one_order_one_value() -> None:
    """Clients that arrive in any order give the same bits once sorted; unsorted they do not."""
    updates = updates_of(FAMILIES[2], "F64", clients=9, size=2000)
    named = {f"client-{i}": update for i, update in enumerate(updates)}
    arrived = [list(named)[i] for i in np.random.default_rng(3).permutation(len(named))]
    first = fedavg.accumulate_f64(updates, "cpu").tobytes()
    assert first != fedavg.accumulate_f64([named[name] for name in arrived], "cpu").tobytes()
    assert (
        first == fedavg.accumulate_f64([named[name] for name in sorted(arrived)], "cpu").tobytes()
    )


def test_mapped_artifacts_are_read_without_a_warning(tmp_path: Path) -> None:
    """Read-only files are averaged where they lie; torch does not complain of them."""
    files: Updates = []
    for i, (n, source) in enumerate(models(3)):
        path = tmp_path / str(i)
        write_artifact(path, {name: source.flat(name) for name in source.names})
        files.append((n, ArtifactFile.open(path)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = fedavg.weighted_mean(files, "cpu", 2)
    assert_same_bits(mean, average.weighted_mean(files))


def test_subnormals_survive_a_caller_who_flushes_them() -> None:
    """A library that set the flag on the calling thread does not move a bit, nor lose its flag."""
    updates = sources(updates_of(FAMILIES[1], "F32"))
    expected = average.weighted_mean(updates)

    def work() -> None:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormal numbers")
        try:
            assert_same_bits(fedavg.weighted_mean(updates, "cpu", 2), expected)
            assert torch.tensor(2.0**-1022, dtype=torch.float64).mul(0.5).item() == 0.0
        finally:
            torch.set_flush_denormal(False)

    on_fresh_thread(work)


def test_canaries_sing_where_subnormals_are_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A summing thread that flushes is refused, by torch's form and by the rule alike."""
    updates = sources(updates_of(FAMILIES[1], "F32"))

    def work() -> None:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormal numbers")
        try:
            with pytest.raises(FedchainError, match="subnormal"):
                average.weighted_mean(updates)
            with monkeypatch.context() as patch:
                patch.setattr(torch, "set_flush_denormal", lambda _: True)
                with pytest.raises(RuntimeError, match="subnormal"):
                    fedavg.weighted_mean(updates, "cpu", 2)
        finally:
            torch.set_flush_denormal(False)

    on_fresh_thread(work)
    average.flush_denormal_canary()  # and is silent here


def test_torch_threads_of_the_process_are_left_alone() -> None:
    """Training after a round finds as many torch threads as before, on old and new threads."""
    before = torch.get_num_threads()
    seen: list[int] = []
    callers = [
        threading.Thread(target=lambda: fedavg.weighted_mean(models(2), "cpu", 2)) for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    on_fresh_thread(lambda: seen.append(torch.get_num_threads()))
    assert (torch.get_num_threads(), seen) == (before, [before])


BAD: dict[str, Callable[[], Updates]] = {
    "no updates": list,
    "NaN": lambda: sources([(1, np.array([0.0, np.nan]))]),
    "infinities of both signs": lambda: sources([(1, np.array([s * np.inf])) for s in (1, -1)]),
    "NaN in half": lambda: sources([(1, np.array([np.nan], np.float16))]),
    "float64 that overflows": lambda: sources([(MAX_EXAMPLES, np.array([1e308]))]),
    "integer sum": lambda: sources([(1, np.array([2**61])), (1, np.array([-(2**61)]))]),
    "lowest int64": lambda: sources([(1, np.array([-(2**63)]))]),
    "wrapping product": lambda: sources([(2**28, np.array([2**36]))]),
    "large uint64": lambda: sources([(1, np.array([2**64 - 1], np.uint64))]),
    "boolean": lambda: sources([(1, np.array([True]))]),
    "zero weight": lambda: sources([(0, np.ones(2))]),
    "weight too large": lambda: sources([(MAX_EXAMPLES + 1, np.ones(2))]),
    "weight is true": lambda: sources([(True, np.ones(2))]),
    "other shape": lambda: sources([(1, np.ones((2, 1))), (1, np.ones((1, 2)))]),
    "broadcastable shape": lambda: sources([(1, np.ones(2)), (1, np.ones(1))]),
    "other dtype": lambda: sources([(1, np.ones(2)), (1, np.ones(2, np.float32))]),
    "other names": lambda: [*sources([(1, np.ones(2))]), (1, MemoryArrays({"v": np.ones(2)}))],
}


@pytest.mark.parametrize("updates", BAD.values(), ids=BAD.keys())
def test_what_the_rule_refuses_is_refused(updates: Callable[[], Updates]) -> None:
    """Whatever the numpy rule refuses, the fast form refuses, on 1 thread and on 2."""
    with pytest.raises(RuleError):
        average.weighted_mean(updates())
    for threads in (1, 2):
        with pytest.raises(ValueError, match=r"."):
            fedavg.weighted_mean(updates(), "cpu", threads)


def test_half_precision_goes_by_way_of_single() -> None:
    """A mean just above a tie of two halves: rounded twice, as the rule says, it is the lower."""
    one, next_half = np.array([1.0], np.float16), np.array([1.0 + 2.0**-10], np.float16)
    updates = sources([(2**19, one), (2**19 + 1, next_half)])
    assert fedavg.weighted_mean(updates, "cpu")["w"].tolist() == [1.0]
    mean = fedavg.accumulate_f64([(2**19, one), (2**19 + 1, next_half)], "cpu") / (2**20 + 1)
    assert mean.astype(np.float16).tolist() == next_half.tolist()  # rounded once, it would differ


def test_largest_integer_sum_is_accepted() -> None:
    """2**62 - 1 is in range, as in the rule."""
    updates = sources([(1, np.array([2**62 - 1, -(2**62) + 1]))])
    assert_same_bits(fedavg.weighted_mean(updates, "cpu"), average.weighted_mean(updates))


def test_an_error_ends_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad slice ends the average at once: the others' slices are not summed for nothing."""
    monkeypatch.setattr(fedavg, "CPU_SLICE", 10)
    x = np.zeros(100_000, np.float32)
    x[3] = np.nan
    calls = 0
    real = fedavg._float_sum

    def counted(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*args)

    monkeypatch.setattr(fedavg, "_float_sum", counted)
    with pytest.raises(ValueError, match="NaN"):
        fedavg.weighted_mean(sources([(1, x)]), "cpu", 2)
    assert calls < 5000


def test_devices_by_name() -> None:
    """Known names give devices; the others are refused in plain words."""
    assert fedavg.resolve_device("cpu") == torch.device("cpu")
    assert fedavg.resolve_device("mps") == torch.device("cpu")  # it has no float64
    assert fedavg.resolve_device("auto").type in ("cpu", "cuda")
    for name in ("", "gpu", "cuda:x", "cpu:y", "meta", "cuda:99"):
        with pytest.raises(ValueError, match=r"use .*cpu"):
            fedavg.resolve_device(name)


def test_missing_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, "auto" means the CPU and "cuda" is refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fedavg.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="0 CUDA devices"):
        fedavg.resolve_device("cuda")


def test_needs_torch_and_numpy_only() -> None:
    """The file runs where nothing of ours is installed."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('fedavg', {str(FEDAVG_FILE)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print([name for name in sys.modules if name.startswith('fedchain')])"
    )
    env = {**os.environ, "PYTHONPATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
