"""Golden vectors of all that numbers become: digests, trees, instructions, artifacts, averages.

tests/vectors/numbers.json was written by the second implementation below, which is made of the
formats' text and of hashlib, struct, json and Fraction; of ours it takes the list of dtypes only.
So a change of ours fails here, and so does one of both. Write it anew, after a change of format:

    python -m tests.unit.test_vectors_numbers
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedchain_proto import average, digest, merkle
from fedchain_proto.artifact import ArtifactFile, write_artifact
from fedchain_proto.digest import DTYPES, Array
from fedchain_proto.instruction import instruction_digest

VECTORS = Path(__file__).parent.parent / "vectors" / "numbers.json"
MIB = 1 << 20


# ---------------------------------------------------------------- the second implementation


def h(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def u32(n: int) -> bytes:
    return n.to_bytes(4, "little")


def u64(n: int) -> bytes:
    return n.to_bytes(8, "little")


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162 section 2.1.1, by its recursive definition."""
    if len(leaves) < 2:
        return leaves[0] if leaves else h()
    k = split(len(leaves))
    return h(b"\1", mth(leaves[:k]), mth(leaves[k:]))


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth_path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 9162 section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*mth_path(m, leaves[:k]), mth(leaves[k:])]
    return [*mth_path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    """RFC 9162 section 2.1.4.1."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def reference_tensor_leaf(name: bytes, dtype: str, shape: Sequence[int], data: bytes) -> bytes:
    chunks = [h(b"\0", data[i : i + MIB]) for i in range(0, len(data), MIB)]
    dims = b"".join(u64(dim) for dim in shape)
    kind = dtype.encode().ljust(8, b"\0")
    head = b"\0fedchain/tensor/v1\0" + u32(len(name)) + name + kind + u32(len(shape)) + dims
    return h(head, u64(len(data)), u32(MIB), mth(chunks))


def reference_digest(tensors: Sequence[tuple[str, str, Sequence[int], bytes]]) -> bytes:
    rows = sorted((name.encode(), dtype, shape, data) for name, dtype, shape, data in tensors)
    leaves = [reference_tensor_leaf(*row) for row in rows]
    return h(b"fedchain/model/v1\0", u32(len(leaves)), mth(leaves))


def reference_model_digest(arrays: Mapping[str, Array]) -> bytes:
    """For other tests: the same, from arrays."""
    names = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items()}
    return reference_digest(
        [
            (
                name,
                names[array.dtype.kind, array.dtype.itemsize],
                array.shape,
                array.astype(array.dtype.newbyteorder("<")).tobytes(),
            )
            for name, array in arrays.items()
        ]
    )


def text(value: str) -> bytes:
    return u32(len(value.encode())) + value.encode()


def tagged(kind: str, value: Any) -> bytes:
    """One value of a vector, whose "kind" is the tag in the format."""
    if kind == "l":
        return b"l" + u32(len(value)) + b"".join(tagged(*item) for item in value)
    match kind:
        case "b":
            body = bytes([value])
        case "i":
            body = int(value).to_bytes(8, "little", signed=True)
        case "f":
            body = bytes.fromhex(value)
        case "s":
            body = text(value)
        case _:  # "y"
            body = u32(len(value) // 2) + bytes.fromhex(value)
    return kind.encode() + body


def reference_instruction(case: dict[str, Any]) -> bytes:
    app = bytes.fromhex(case["app"])
    parts = [b"fedchain/instruction/v1\0", text(case["type"]), u32(len(app)), app]
    entries = sorted((key.encode(), kind, value) for key, kind, value in case["config"])
    parts.append(u32(len(entries)))
    parts += [u32(len(key)) + key + tagged(kind, value) for key, kind, value in entries]
    return h(*parts)


def reference_file(tensors: Sequence[tuple[str, str, Sequence[int], bytes]]) -> bytes:
    rows = sorted(tensors, key=lambda t: (-DTYPES[t[1]].itemsize, t[0].encode()))
    at, entries = 0, []
    for name, dtype, shape, data in rows:
        label = json.dumps(name)
        dims = ",".join(str(dim) for dim in shape)
        end = at + len(data)
        entries.append(
            f'{label}:{{"dtype":"{dtype}","shape":[{dims}],"data_offsets":[{at},{end}]}}'
        )
        at = end
    header = ("{" + ",".join(entries) + "}").encode()
    header += b" " * (-len(header) % 8)
    return u64(len(header)) + header + b"".join(data for _, _, _, data in rows)


def round_half_even(x: Fraction, bits: int, lowest: int) -> float:
    """Round to a binary float of `bits` significant bits whose last place is >= 2**lowest."""
    if x == 0:
        return 0.0
    magnitude = abs(x)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    place = Fraction(2) ** max(exponent - bits + 1, lowest)
    # round() of a Fraction rounds halves to even, exactly; the product is a float without loss.
    return float(round(magnitude / place) * place) * (1 if x > 0 else -1)


def f64(x: Fraction) -> float:
    return round_half_even(x, 53, -1074)


def reference_sum(weights: Sequence[int], values: Sequence[float]) -> float:
    """The rule's float64 accumulator, each operation rounded once, by exact rationals."""
    total = 0.0
    for n, x in zip(weights, values, strict=True):
        total = f64(Fraction(total) + Fraction(f64(n * Fraction(x))))
    return total


def reference_mean(dtype: str, weights: Sequence[int], values: Sequence[Any]) -> Any:
    if dtype[0] in "IU":
        s, t = sum(n * v for n, v in zip(weights, values, strict=True)), sum(weights)
        return (s + t // 2) // t
    mean = f64(Fraction(reference_sum(weights, values)) / sum(weights))
    if dtype in ("F32", "F16"):
        mean = round_half_even(Fraction(mean), 24, -149)
    if dtype == "F16":
        mean = round_half_even(Fraction(mean), 11, -24)
    return mean


# ---------------------------------------------------------------- what the vectors are about

CODES = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "U64": "Q", "U8": "B"}


def counter(size: int) -> bytes:
    """Bytes without a short period, to fill large tensors: byte i is (131 i + 7) mod 251."""
    return bytes((131 * i + 7) % 251 for i in range(size))


def tensor_of(row: dict[str, Any]) -> tuple[str, str, list[int], bytes]:
    data = counter(row["counter"]) if "counter" in row else bytes.fromhex(row["data"])
    return row["name"], row["dtype"], row["shape"], data


def array_of(row: dict[str, Any]) -> Array:
    _, dtype, shape, data = tensor_of(row)
    array: Array = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    match row.get("layout"):
        case "transposed":  # equal values behind other strides
            array = np.asfortranarray(array)
            assert not array.flags.c_contiguous
        case "big-endian":
            array = array.astype(array.dtype.newbyteorder(">"))
            assert array.tobytes() != data
        case "strided":
            array = np.repeat(array, 2)[::2]
            assert not array.flags.c_contiguous
    return array


def tensor(name: str, dtype: str, shape: list[int], **rest: Any) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape, **rest}


def model_cases() -> list[dict[str, Any]]:
    every = [
        tensor(dtype.lower(), dtype, [2], data=counter(2 * DTYPES[dtype].itemsize).hex())
        for dtype in DTYPES
        if dtype != "BOOL"
    ]
    return [
        {"case": "no tensors", "tensors": []},
        {"case": "0-dim", "tensors": [tensor("w", "F32", [], data="0000c03f")]},
        {"case": "one element", "tensors": [tensor("w", "F32", [1], data="0000c03f")]},
        {"case": "zero-size", "tensors": [tensor("w", "F16", [3, 0, 2], data="")]},
        {"case": "one chunk, full", "tensors": [tensor("w", "U8", [MIB], counter=MIB)]},
        {"case": "two chunks", "tensors": [tensor("w", "U8", [MIB + 1], counter=MIB + 1)]},
        {
            "case": "seven chunks",
            "tensors": [tensor("w", "F64", [851_968], counter=8 * 851_968)],
        },
        {
            "case": "not contiguous",
            "tensors": [
                tensor("w", "F32", [400, 900], counter=4 * 360_000, layout="transposed"),
                tensor("v", "I16", [5], data=counter(10).hex(), layout="strided"),
            ],
        },
        {
            "case": "big-endian",
            "tensors": [tensor("w", "F64", [3], data=counter(24).hex(), layout="big-endian")],
        },
        {
            "case": "every dtype",
            "tensors": [*every, tensor("bool", "BOOL", [2, 1], data="0100")],
        },
        {
            "case": "names sort by UTF-8 bytes",
            "tensors": [
                tensor(name, "I8", [1], data=f"{i:02x}")
                for i, name in enumerate(["\U0001f600", "\uff61", "z", "a.b", "a", "é"])
            ],
        },
    ]


def instruction_cases() -> list[dict[str, Any]]:
    f = struct.pack("<d", 0.1).hex()
    everything = [
        ["lr", "f", f],
        ["epochs", "i", 3],
        ["lowest", "i", -(2**63)],
        ["shuffle", "b", 1],
        ["name", "s", "é\n"],
        ["raw", "y", "00ff"],
        ["empty", "l", []],
        ["steps", "l", [["i", 1], ["i", -1]]],
        ["rates", "l", [["f", f], ["f", struct.pack("<d", -0.0).hex()]]],
        ["words", "l", [["s", "a"], ["s", ""]]],
    ]
    return [
        {"type": "train", "app": "", "config": []},
        {"type": "evaluate", "app": "", "config": []},
        {"type": "train", "app": "00" * 32, "config": everything},
    ]


def average_cases() -> list[dict[str, Any]]:
    def row(dtype: str, weights: list[int], values: list[list[Any]]) -> dict[str, Any]:
        code = CODES[dtype]
        return {
            "dtype": dtype,
            "weights": weights,
            "updates": [struct.pack(f"<{len(v)}{code}", *v).hex() for v in values],
        }

    tiny32, huge32 = 2.0**-149, float(np.finfo(np.float32).max)
    top = 2**29 - 1
    return [
        row("F32", [3, 1], [[1.0, tiny32, -0.0, 0.1], [2.0, 0.0, -0.0, -0.3]]),
        row("F32", [top, top - 1], [[1.0000001, huge32, 1e-45], [-1.0, huge32, -1e-45]]),
        row("F32", [1, top, 1], [[1e30, 7 * tiny32], [1.0, tiny32], [-1e30, tiny32]]),
        row("F64", [7, 11, 13], [[0.1, 2.0**-1074, 1e300], [0.7, 2.0**-1074, -1e300], [0.3, 0, 1]]),
        row("F16", [2, 3], [[0.1, 65504.0, 2.0**-24], [0.7, 65504.0, 0.0]]),
        # 1 + 2**-11 + 2**-32: a tie for float16 once it went by way of float32, above one before.
        row("F16", [2**19, 2**19 + 1], [[1.0, -1.0], [1.0 + 2.0**-10, -1.0 - 2.0**-10]]),
        row("I64", [1, 2], [[-1, -2, 5, 2**60], [-2, 1, 5, 2**60]]),
        row("U64", [1, 1], [[0, 2**61, 1], [1, 2**61 - 1, 0]]),
        row("U8", [1, 2], [[255, 0, 1], [255, 255, 0]]),
    ]


def trees() -> dict[str, Any]:
    # The entries and the root of Certificate Transparency's own test tree.
    entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
    entries.append("606162636465666768696a6b6c6d6e6f")
    leaves = [h(b"\0", bytes.fromhex(entry)) for entry in entries]
    sizes = range(len(leaves) + 1)
    return {
        "entries": entries,
        "roots": [mth(leaves[:n]).hex() for n in sizes],
        "paths": [
            {"size": n, "index": i, "hashes": [x.hex() for x in mth_path(i, leaves[:n])]}
            for n in sizes
            for i in range(n)
        ],
        "consistency": [
            {"old": m, "new": n, "hashes": [x.hex() for x in subproof(m, leaves[:n], True)]}
            for n in sizes
            for m in range(1, n)
        ],
    }


def document() -> dict[str, Any]:
    models = model_cases()
    for case in models:
        case["digest"] = reference_digest([tensor_of(row) for row in case["tensors"]]).hex()
        if all("data" in row for row in case["tensors"]):
            case["file"] = reference_file([tensor_of(row) for row in case["tensors"]]).hex()
    instructions = instruction_cases()
    for case in instructions:
        case["digest"] = reference_instruction(case).hex()
    averages = average_cases()
    for case in averages:
        code = CODES[case["dtype"]]
        rows = [
            struct.unpack(f"<{len(u) // 2 // struct.calcsize(code)}{code}", bytes.fromhex(u))
            for u in case["updates"]
        ]
        means = [reference_mean(case["dtype"], case["weights"], v) for v in zip(*rows, strict=True)]
        case["mean"] = struct.pack(f"<{len(means)}{code}", *means).hex()
        if code in "dfe":
            sums = [reference_sum(case["weights"], v) for v in zip(*rows, strict=True)]
            case["sums"] = struct.pack(f"<{len(sums)}d", *sums).hex()
    return {
        "merkle": trees(),
        "models": models,
        "instructions": instructions,
        "averages": averages,
    }


# ---------------------------------------------------------------- the tests

GOLDEN: dict[str, Any] = json.loads(VECTORS.read_text()) if VECTORS.exists() else {}


def test_vectors_are_the_second_implementations() -> None:
    """The file on disk is what the reference above writes: nobody edited a vector to fit."""
    assert document() == GOLDEN


def test_tree_is_certificate_transparencys() -> None:
    """The eight-leaf root that CT's implementations publish, from memory of none of our code."""
    root = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert GOLDEN["merkle"]["roots"][8] == root


def test_merkle_vectors() -> None:
    """Roots, paths and consistency proofs are the stored ones."""
    tree = GOLDEN["merkle"]
    leaves = [merkle.leaf_hash(bytes.fromhex(entry)) for entry in tree["entries"]]
    for n, root in enumerate(tree["roots"]):
        assert merkle.root(leaves[:n]).hex() == root
    for row in tree["paths"]:
        proof = merkle.path(leaves[: row["size"]], row["index"])
        assert [x.hex() for x in proof.hashes] == row["hashes"]
    for row in tree["consistency"]:
        hashes = merkle.consistency(leaves[: row["new"]], row["old"])
        assert [x.hex() for x in hashes] == row["hashes"]


@pytest.mark.parametrize("case", GOLDEN.get("models", []), ids=lambda case: case["case"])
def test_model_vectors(case: dict[str, Any], tmp_path: Path) -> None:
    """Digest and artifact file of each model are the stored bytes, on 1 and 2 threads."""
    arrays = {row["name"]: array_of(row) for row in case["tensors"]}
    for threads in (1, 2):
        assert digest.model_digest(arrays, threads=threads).hex() == case["digest"]
    write_artifact(tmp_path / "model", arrays)
    with ArtifactFile.open(tmp_path / "model") as artifact:
        assert artifact.digest().hex() == case["digest"]
    if "file" in case:
        assert (tmp_path / "model").read_bytes().hex() == case["file"]


@pytest.mark.parametrize("case", GOLDEN.get("instructions", []))
def test_instruction_vectors(case: dict[str, Any]) -> None:
    """Each configuration has the stored digest."""

    def value(kind: str, item: Any) -> Any:
        if kind == "l":
            return [value(*entry) for entry in item]
        if kind == "f":
            return struct.unpack("<d", bytes.fromhex(item))[0]
        if kind == "y":
            return bytes.fromhex(item)
        return bool(item) if kind == "b" else item

    config = {key: value(kind, item) for key, kind, item in case["config"]}
    app = bytes.fromhex(case["app"])
    assert instruction_digest(case["type"], config, app).hex() == case["digest"]


@pytest.mark.parametrize("case", GOLDEN.get("averages", []))
def test_average_vectors(case: dict[str, Any]) -> None:
    """Each mean, and before it each float64 sum, is the one that exact rationals give."""
    dtype = DTYPES[case["dtype"]]
    arrays = [np.frombuffer(bytes.fromhex(update), dtype) for update in case["updates"]]
    parts = list(zip(case["weights"], arrays, strict=True))
    mean = average.weighted_mean([(n, average.MemoryArrays({"w": x})) for n, x in parts])
    assert mean["w"].tobytes().hex() == case["mean"]
    if "sums" in case:
        sums = np.empty(arrays[0].size)
        average.accumulate_f64(parts, sums)
        assert sums.tobytes().hex() == case["sums"]


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(document(), indent=1) + "\n")
