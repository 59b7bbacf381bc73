"""Exact weighted FedAvg with torch: the rule "fedavg/v1" on CPU or CUDA, the same bits on both.

The rule itself is fedchain_proto.average; this is its fast form, tested bit-equal to it. Slice by
slice over all updates, so that memory does not grow with their number; slices are shared out
among Python threads. Imports torch and numpy and nothing of ours, so that it runs on a GPU machine
that has nothing else; its caller translates the ValueErrors.

What keeps the bits equal: float64 accumulators from +0.0; updates added one after another in the
order given; product and sum fused only where the product is exact; a divisor that is a 0-dim
tensor on the device (CUDA multiplies by the reciprocal of a Python number); no torch.compile.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]
Parts = Sequence[tuple[int, Array]]
"""(n_i, x_i[slice]) of every update, in canonical order."""

MAX_EXAMPLES = 2**29 - 1
MAX_TOTAL_WEIGHT = 2**53 - 1
MAX_INTEGER_SUM = 2**62 - 1
CPU_SLICE = 1 << 17  # elements: 2 MiB of sum and term stay in the cache; measured, see benchmarks
CUDA_SLICE = 1 << 22  # elements: 16 MiB of float32 outweigh the cost of starting a copy
_FLOATS = {2: torch.float16, 4: torch.float32, 8: torch.float64}

_one_average_at_a_time = threading.Lock()  # it borrows torch's process-wide thread count


class Source(Protocol):
    """Where one update's tensors are read from: an opened artifact, or arrays in memory."""

    @property
    def names(self) -> Sequence[str]:
        """Tensor names, in an order that all updates share."""

    def flat(self, name: str) -> Array:
        """Elements of one tensor, shape (n,); may be read-only and memory-mapped."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""


class _Slice(NamedTuple):
    """One slice of one tensor: what to average, and where the result goes."""

    parts: Parts
    out: Array


def resolve_device(name: str) -> torch.device:
    """Find the device where the sum runs; the result's bits do not depend on it.

    Args:
        name: "auto" (CUDA if there is any), "cpu", "cuda", "cuda:1". Apple's "mps" has no
            float64 and means the CPU.

    Raises:
        ValueError: No such device here, or no such name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device is called {name!r}; use auto, cpu, cuda or cuda:1") from None
    if device.type in ("cpu", "mps"):
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"averaging does not run on {device.type!r}; use auto, cpu or cuda")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= found:
        raise ValueError(f"no device {name!r}: torch finds {found} CUDA devices here; use cpu")
    return device


def weighted_mean(
    updates: Sequence[tuple[int, Source]], device: torch.device | str, threads: int = 1
) -> dict[str, Array]:
    """Average one round's updates, each weighted by its signed example count.

    Args:
        updates: (n_i, arrays) in canonical order, at least one; equal names, dtypes and shapes.
            n_i counts training examples, 0 < n_i < 2**29.
        device: Where the sum runs; the result's bits do not depend on it.
        threads: Python threads that share the slices out; nor on this.

    Returns:
        Arrays of the same names, dtypes and shapes, on the CPU.

    Raises:
        ValueError: No updates, weights or sums out of range, different structures, a boolean
            tensor, or a value that is not finite.
        RuntimeError: A summing thread flushes subnormal numbers to zero.

    Source: McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629).
    """
    total = _checked_total(updates)
    device = _with_float64(device)
    size = CUDA_SLICE if device.type == "cuda" else CPU_SLICE
    first = updates[0][1]
    result = {name: _empty_mean(updates, name) for name in first.names}
    slices: queue.SimpleQueue[_Slice] = queue.SimpleQueue()
    for name, out in result.items():
        flats = [(n, source.flat(name)) for n, source in updates]
        for at in range(0, out.size, size):
            parts = [(n, flat[at : at + size]) for n, flat in flats]
            slices.put(_Slice(parts, out[at : at + size]))
    largest = min(size, max((out.size for out in result.values()), default=0))

    def work() -> None:
        stage = _stage(largest, device)
        divisor = torch.tensor(float(total), dtype=torch.float64, device=device)
        try:
            while True:
                _average(slices.get_nowait(), stage, total, divisor)
        except queue.Empty:
            return
        except BaseException:
            while not slices.empty():  # nobody will read what the other threads would finish
                slices.get()
            raise

    _run(work, device, max(1, min(threads, slices.qsize())))
    return {name: out.reshape(first.shape(name)) for name, out in result.items()}


def accumulate_f64(parts: Parts, device: torch.device | str) -> Array:
    """Return sum n_i * x_i of float arrays as float64 (k,), before any division or rounding.

    For tests: a result rounded to float32 hides almost every error of its sum.
    """
    device = _with_float64(device)
    sums: list[Array] = []

    def work() -> None:
        stage = _stage(parts[0][1].size, device)
        sums.append(_float_sum(parts, stage).cpu().numpy())

    _run(work, device, 1)
    return sums[0]


class _CpuStage:
    """One thread's buffers on the CPU: each slice is widened to 64 bits as it is copied in."""

    def __init__(self, size: int) -> None:
        self.sum = torch.empty(size, dtype=torch.float64)
        self._floats = torch.empty_like(self.sum)
        self._integers = self._floats.view(torch.int64)

    def bring(self, x: Array) -> torch.Tensor:
        """Copy x (k,) in; the caller may overwrite the result, the next call does.

        numpy copies, because torch warns of read-only memory, which a mapped artifact is.

        Returns:
            Floats as float64, integers as int64 (uint64 wraps).
        """
        host = (self._floats if x.dtype.kind == "f" else self._integers)[: x.size]
        np.copyto(host.numpy(), x, casting="unsafe")
        return host


class _CudaStage:
    """One thread's buffers on a GPU, and the pinned ones on the way there.

    Two of each, in turn: the host fills one while the other is being copied. Floats travel in
    their own dtype and are widened there.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.sum = torch.empty(size, dtype=torch.float64, device=device)
        self._host = [torch.empty(size, dtype=torch.float64, pin_memory=True) for _ in range(2)]
        self._there = [torch.empty_like(self.sum) for _ in range(2)]
        # torch does not annotate Event's and Stream's constructors.
        self._sent = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def bring(self, x: Array) -> torch.Tensor:
        """Copy x (k,) in; the caller may overwrite the result, the call after next does.

        Returns:
            Floats as they are, integers as int64 (uint64 wraps).
        """
        self._turn = turn = 1 - self._turn
        dtype = _FLOATS[x.dtype.itemsize] if x.dtype.kind == "f" else torch.int64
        self._sent[turn].synchronize()  # else we overwrite what is still being copied
        host = self._host[turn].view(dtype)[: x.size]
        np.copyto(host.numpy(), x, casting="unsafe")
        there = self._there[turn].view(dtype)[: x.size].copy_(host, non_blocking=True)
        self._sent[turn].record()
        return there


_Stage = _CpuStage | _CudaStage


def _stage(size: int, device: torch.device) -> _Stage:
    return _CudaStage(size, device) if device.type == "cuda" else _CpuStage(size)


def _average(task: _Slice, stage: _Stage, total: int, divisor: torch.Tensor) -> None:
    """Average one slice into `task.out`."""
    if task.out.dtype.kind != "f":
        sums = _integer_sum(task.parts, stage)
        mean = torch.div(sums.add_(total // 2), total, rounding_mode="floor")
        np.copyto(task.out, mean.cpu().numpy(), casting="unsafe")
        return
    sums = _float_sum(task.parts, stage)
    # NaN and infinity never leave a sum again, and finite float16 and float32 never overflow one.
    # A finite sum of the sums settles it at a tenth of the cost of looking at each.
    if not (bool(torch.isfinite(sums.sum())) or bool(torch.isfinite(sums).all())):
        raise ValueError("an update has NaN, infinity or too large a value")
    mean = sums.div_(divisor)
    if task.out.dtype.itemsize == 2:
        mean = mean.to(torch.float32)  # the rule rounds to half precision by way of single
    torch.from_numpy(task.out).copy_(mean)


def _float_sum(parts: Parts, stage: _Stage) -> torch.Tensor:
    """Sum n_i * x_i in float64, in order, from +0.0; a view of `stage.sum`."""
    sums = stage.sum[: parts[0][1].size].zero_()
    for n, x in parts:
        term = stage.bring(x)
        if x.dtype.itemsize == 8:
            # The product is rounded: multiplied and added apart, since fused bits would differ.
            sums.add_(term.mul_(n))
        else:
            sums.add_(term, alpha=n)
    return sums


def _integer_sum(parts: Parts, stage: _Stage) -> torch.Tensor:
    """Sum n_i * v_i exactly in int64; a view of `stage.sum`. Refuses what could wrap around."""
    sums = stage.sum.view(torch.int64)[: parts[0][1].size].zero_()
    room = torch.full_like(sums, MAX_INTEGER_SUM)  # 2**62 - 1 - sum n_i * abs(v_i)
    wrong = torch.zeros_like(sums, dtype=torch.bool)
    for n, v in parts:
        term = stage.bring(v)
        lowest = 0 if v.dtype.kind == "u" else -MAX_INTEGER_SUM  # a wrapped uint64 is negative
        wrong |= (term < lowest) | (term > MAX_INTEGER_SUM)
        magnitude = term.abs()
        wrong |= magnitude > torch.div(room, n, rounding_mode="floor")
        room -= magnitude * n
        sums += term * n
    if bool(wrong.any()):
        raise ValueError("an integer tensor's weighted sum would reach 2**62")
    return sums


def _checked_total(updates: Sequence[tuple[int, Source]]) -> int:
    """Return the sum of all weights, if the rule allows them."""
    if not updates:
        raise ValueError("nothing to average: no updates")
    for n, _ in updates:
        if isinstance(n, bool) or not isinstance(n, int) or not 0 < n <= MAX_EXAMPLES:
            raise ValueError(f"example count {n!r} is not in 1 .. {MAX_EXAMPLES}")
    total = sum(n for n, _ in updates)
    if total > MAX_TOTAL_WEIGHT:
        raise ValueError("the weights sum to 2**53 or more")
    first = updates[0][1]
    if any(tuple(source.names) != tuple(first.names) for _, source in updates):
        raise ValueError("updates with different tensors")
    return total


def _empty_mean(updates: Sequence[tuple[int, Source]], name: str) -> Array:
    """Make room for the mean of one tensor, shape (n,), if all updates agree on its structure."""
    first = updates[0][1]
    flat, shape = first.flat(name), first.shape(name)
    for _, source in updates:
        if source.flat(name).dtype != flat.dtype or source.shape(name) != shape:
            raise ValueError(f"updates differ in dtype or shape of tensor {name!r}")
    if flat.dtype.kind not in "fiu" or flat.dtype.itemsize > 8:
        raise ValueError(f"tensor {name!r} is {flat.dtype}, which has no average here")
    return np.empty(flat.size, flat.dtype)


def _with_float64(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def _run(work: Callable[[], None], device: torch.device, threads: int) -> None:
    """Run `work` on fresh threads and wait; raise what the first of them raised.

    Each sums alone, with one torch thread: torch's own pool costs more than a slice, and its
    threads' denormal flags are out of our sight.
    """

    def on_thread() -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(False)  # inherited from whoever started us
        _flush_denormal_canary()
        with _stream(device):
            work()

    with _one_average_at_a_time:
        torch_threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(threads) as pool:
                for done in [pool.submit(on_thread) for _ in range(threads)]:
                    done.result()
        finally:
            torch.set_num_threads(torch_threads)  # it is the default of all threads to come


@contextmanager
def _stream(device: torch.device) -> Iterator[None]:
    """On CUDA, give this thread a stream of its own, so that copies and sums overlap."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # as Event's
        with torch.cuda.stream(own):
            yield


def _flush_denormal_canary() -> None:
    """Check that this thread keeps subnormal numbers, as operands and as results."""
    tiny = torch.tensor([2.0**-1022, 2.0**-1074], dtype=torch.float64)
    if not bool(tiny.mul(torch.tensor([0.5, 2.0**60], dtype=torch.float64)).ne(0.0).all()):
        raise RuntimeError(
            "subnormal numbers are flushed to zero on this thread: the average would not be"
            " reproducible"
        )
