"""FedAvg on CUDA: bit for bit the CPU's, on float64 accumulators and after the last rounding.

Imports torch, numpy and pytest and loads the one file that it tests by its path, so that it runs
on a GPU machine that has nothing else:

    python -m pytest -c /dev/null --rootdir . -p no:cacheprovider tests/gpu
"""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

Array = np.ndarray[Any, np.dtype[Any]]

if not torch.cuda.is_available():
    pytest.skip("torch finds no CUDA device here", allow_module_level=True)

TOP = 2**29 - 1  # the largest weight
SIZE = 300_000


def load() -> ModuleType:
    path = Path(__file__).parents[2] / "server" / "fedchain_server" / "fedavg.py"
    spec = importlib.util.spec_from_file_location("fedavg_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fedavg = load()


class Arrays:
    """One update in memory, as fedavg reads it."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays
        self.names = tuple(sorted(arrays))
        self.shapes: dict[str, tuple[int, ...]] = {name: x.shape for name, x in arrays.items()}

    def flat(self, name: str) -> Array:
        return self.arrays[name].reshape(-1)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]


def values(family: str, dtype: str, rng: np.random.Generator) -> Array:
    """Random bits, numbers below the smallest normal one, or sums that cancel; all finite."""
    kind = np.dtype(dtype)
    if kind.kind == "i":
        return rng.integers(-(2**30), 2**30, SIZE, dtype=dtype)
    if family == "bits":
        x: Array = np.frombuffer(rng.bytes(SIZE * kind.itemsize), kind).copy()
        with np.errstate(invalid="ignore"):
            x[~(np.abs(x).astype(np.float64) < 2.0**970)] = 0
        return x
    if family == "subnormal":
        unit = np.finfo(kind).smallest_subnormal
        small: Array = rng.integers(-500, 500, SIZE) * np.float64(unit)
        return small.astype(kind)
    mixed: Array = rng.choice([-1.0, 1.0, 1 / 3], SIZE) * rng.choice([1.0, 1e4], SIZE)
    return mixed.astype(kind)


def round_of(family: str, dtype: str, clients: int = 12) -> list[tuple[int, Array]]:
    rng = np.random.default_rng(len(family + dtype))
    weights = [int(2 ** rng.uniform(0, 29)) for _ in range(clients - 1)] + [TOP]
    return [(n, values(family, dtype, rng)) for n in weights]


FAMILIES = ["bits", "subnormal", "cancelling"]
FLOATS = ["float16", "float32", "float64"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_accumulators_are_the_cpus(family: str, dtype: str) -> None:
    """No float64 sum differs between CUDA, the CPU and plain numpy."""
    updates = round_of(family, dtype)
    on_cuda = fedavg.accumulate_f64(updates, "cuda")
    sums = np.zeros(SIZE)
    for n, x in updates:
        sums += x.astype(np.float64) * float(n)
    assert on_cuda.tobytes() == fedavg.accumulate_f64(updates, "cpu").tobytes()
    assert on_cuda.tobytes() == sums.tobytes()


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("slice_size", [1000, 70_001, 1 << 22])
def test_means_are_the_cpus(threads: int, slice_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All dtypes at once, through division and the last rounding; slices and threads at will."""
    monkeypatch.setattr(fedavg, "CUDA_SLICE", slice_size)
    rounds = {f"{f}-{d}": round_of(f, d, 5) for f in FAMILIES for d in [*FLOATS, "int64"]}
    updates = []
    for client in range(5):
        arrays = {name: parts[client][1] for name, parts in rounds.items()}
        arrays |= {
            "scalar": np.array(math.pi * client),
            "empty": np.zeros((0, 3), np.float32),
            "matrix": np.full((3, 5), client, np.int32),
            "counter": np.array(client, np.uint64),
        }
        updates.append((TOP - client, Arrays(arrays)))
    on_cpu = fedavg.weighted_mean(updates, "cpu", 2)
    on_cuda = fedavg.weighted_mean(updates, "cuda", threads)
    assert list(on_cpu) == list(on_cuda)
    for name, array in on_cpu.items():
        assert (array.dtype, array.shape) == (on_cuda[name].dtype, on_cuda[name].shape)
        assert array.tobytes() == on_cuda[name].tobytes(), name


def test_dividing_by_a_python_number_would_differ() -> None:
    """CUDA multiplies by the number's reciprocal: why the divisor is a tensor on the device."""
    sums = torch.from_numpy(fedavg.accumulate_f64(round_of("cancelling", "float32"), "cpu"))
    total = float(3 * TOP)
    there, divisor = sums.cuda(), torch.tensor(total, dtype=torch.float64)
    assert torch.equal((there / divisor.cuda()).cpu(), sums / divisor)
    assert not torch.equal((there / total).cpu(), sums / divisor)


def test_fused_float64_sums_would_differ() -> None:
    """add with alpha rounds once where multiply, then add rounds twice: why float64 does not."""
    updates = round_of("cancelling", "float64")
    fused = torch.zeros(SIZE, dtype=torch.float64, device="cuda")
    for n, x in updates:
        fused.add_(torch.from_numpy(x).cuda(), alpha=n)
    assert fused.cpu().numpy().tobytes() != fedavg.accumulate_f64(updates, "cuda").tobytes()


@pytest.mark.parametrize(
    "bad",
    [
        np.array([0.0, np.nan]),
        np.array([np.inf], np.float32),
        np.array([np.nan], np.float16),
        np.array([2**62]),
        np.array([-(2**63)]),
        np.array([2**64 - 1], np.uint64),
        np.array([True]),
    ],
)
def test_refusals_are_the_cpus(bad: Array) -> None:
    """What the CPU refuses, CUDA refuses, in the same words."""
    said = []
    for device in ("cpu", "cuda"):
        with pytest.raises(ValueError, match=r".") as error:
            fedavg.weighted_mean([(1, Arrays({"w": bad}))], device)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_devices_by_name() -> None:
    """The GPU is found by name, one that is not there is refused."""
    assert fedavg.resolve_device("auto").type == "cuda"
    assert fedavg.resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="CUDA devices"):
        fedavg.resolve_device(f"cuda:{torch.cuda.device_count()}")
