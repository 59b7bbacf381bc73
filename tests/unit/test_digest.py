"""The model digest: equal weights, one name; any difference, another."""

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedchain_proto import digest, merkle
from fedchain_proto.digest import CHUNK_BYTES, DTYPES, Array, model_digest
from fedchain_proto.errors import EvidenceError, RuleError
from tests.unit.test_vectors_numbers import reference_model_digest

TRANSPOSED = np.arange(700 * 600, dtype=np.float64).reshape(700, 600).T


def model() -> dict[str, Array]:
    """A model with every awkward tensor: 0-dim, empty, several chunks, strided."""
    return {
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((3, 0, 2), np.float16),
        "large": np.arange(700_000, dtype=np.float32).reshape(700, 1000),
        "transposed": TRANSPOSED,
        "strided": np.arange(20, dtype=np.int16)[::3],
        "flags": np.array([True, False]),
    }


ARRAYS = st.dictionaries(
    st.text("abcé😀.", min_size=1, max_size=5),
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda name: hnp.arrays(DTYPES[name], hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
    ),
    max_size=6,
)


@given(ARRAYS)
@settings(max_examples=200)
def test_digest_is_what_the_format_says(arrays: dict[str, Array]) -> None:
    """A second implementation, written from the format's text, finds the same 32 bytes."""
    assert model_digest(arrays) == reference_model_digest(arrays)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_move_a_bit(threads: int) -> None:
    """The digest is the reference's for any number of threads, many chunks and tensors."""
    arrays = model() | {f"t{i}": np.full(i * 40_000, i, np.float32) for i in range(30)}
    assert model_digest(arrays, threads=threads) == reference_model_digest(arrays)


def test_memory_layout_key_order_and_byte_order_do_not_matter() -> None:
    """Fortran order, strides, big-endian values and another order of keys are the same model."""
    arrays = model()
    expected = model_digest(arrays)
    rearranged = {
        name: np.asfortranarray(arrays[name]).astype(arrays[name].dtype.newbyteorder(">"))
        for name in reversed(arrays)
        if arrays[name].ndim > 0  # asfortranarray makes (1,) of a 0-dim array
    } | {"scalar": arrays["scalar"]}
    assert model_digest(rearranged) == expected


def test_everything_that_matters_is_covered() -> None:
    """Name, dtype, shape, one bit, a missing or an extra tensor: each is another digest."""
    x = np.zeros(4, np.float32)
    flipped = x.copy()
    flipped.view(np.uint8)[5] = 1
    models: list[dict[str, Array]] = [
        {},
        {"a": x},
        {"b": x},
        {"a": x.view(np.int32)},
        {"a": x.view(np.uint32)},
        {"a": x.reshape(2, 2)},
        {"a": x.reshape(4, 1)},
        {"a": x.reshape(1, 4)},
        {"a": flipped},
        {"a": -x},  # -0.0 is other bytes than +0.0
        {"a": x[:3]},
        {"a": x[:0]},
        {"a": x[:0].reshape(0, 1)},
        {"a": x[0]},
        {"a": x, "b": x},
        {"a": x, "b": x[:0]},
    ]
    assert len({model_digest(m) for m in models}) == len(models)


def test_zero_dim_is_not_one_element() -> None:
    """A shape of () and one of (1,) differ: the shape is read before anything flattens it."""
    assert digest.structure({"a": np.array(1.0)}) == (("a", "F64", ()),)
    assert model_digest({"a": np.array(1.0)}) != model_digest({"a": np.array([1.0])})


def test_contiguous_arrays_are_hashed_where_they_lie() -> None:
    """A read-only 64 MiB tensor costs no copy; of a transposed one at most a few chunks."""
    flat = np.zeros(1 << 24, np.float32)
    flat.flags.writeable = False
    for array, bound in [(flat, 1 << 20), (flat.reshape(4096, 4096).T, 4 * CHUNK_BYTES)]:
        tracemalloc.start()
        try:
            model_digest({"a": array})
            assert tracemalloc.get_traced_memory()[1] < bound
        finally:
            tracemalloc.stop()


def test_one_tensor_verifies_alone() -> None:
    """Each tensor's path leads to the model digest."""
    arrays = model()
    expected = model_digest(arrays)
    for name in arrays:
        digest.verify_tensor(name, arrays[name], digest.tensor_path(arrays, name), expected)


def test_another_tensor_does_not_verify() -> None:
    """Another value, name or place, a model of another size or digest: refused."""
    arrays = model()
    expected, proof = model_digest(arrays), digest.tensor_path(arrays, "large")
    changed = arrays["large"].copy()
    changed[3, 7] += 1
    bigger = merkle.Path(proof.leaf_index, proof.tree_size + 1, proof.hashes)
    for name, array, path, claimed in [
        ("large", changed, proof, expected),
        ("other", arrays["large"], proof, expected),
        ("large", arrays["large"], digest.tensor_path(arrays, "scalar"), expected),
        ("large", arrays["large"], bigger, expected),
        ("large", arrays["large"], proof, bytes(32)),
        ("large", arrays["large"], merkle.Path(0, 1 << 33, (bytes(32),) * 33), expected),
    ]:
        with pytest.raises(EvidenceError):
            digest.verify_tensor(name, array, path, claimed)


@pytest.mark.parametrize(
    "name",
    ["", "x" * 256, "é" * 128, "a\nb", "a\x00", "\x7f", "a\u202eb", "\ud800", "__metadata__"],
)
def test_bad_names_are_refused(name: str) -> None:
    """A name that is empty, too long, not UTF-8, invisible or safetensors' own has no digest."""
    with pytest.raises(RuleError, match="tensor name") as error:
        model_digest({name: np.zeros(1)})
    assert error.value.claim == "C1"


def test_longest_name_is_accepted() -> None:
    """255 bytes of UTF-8 are a name."""
    assert model_digest({"é" * 127 + "x": np.zeros(1)})


@pytest.mark.parametrize("dtype", ["c8", "O", "S3", "U2", "M8[s]", "V4", "f16"])
def test_dtypes_off_the_list_are_refused(dtype: str) -> None:
    """Objects, strings, complex and extended floats have no place in a model."""
    with pytest.raises(RuleError, match="dtype"):
        model_digest({"a": np.zeros(1, np.dtype(dtype))})


def test_every_listed_dtype_is_its_own_name() -> None:
    """The closed list is one to one, whatever the byte order."""
    for (name, dtype), order in itertools.product(DTYPES.items(), "<>="):
        assert digest.dtype_name(dtype.newbyteorder(order)) == name


def test_too_many_dimensions_are_refused() -> None:
    """A 33-dimensional array exists in numpy 2 only, so in no model."""
    shape: tuple[int, ...] = (1,) * 33
    try:
        array: Any = np.zeros(shape)
    except ValueError:
        pytest.skip("this numpy has no 33 dimensions")
    with pytest.raises(RuleError, match="32 dimensions"):
        model_digest({"a": array})


def test_shape_that_cannot_be_read_back_is_refused() -> None:
    """An empty array may claim any other dimension in memory; no file could hold that claim."""
    empty = np.zeros((0, 2**61), np.uint8)
    assert model_digest({"a": empty})
    with pytest.raises(RuleError, match="2\\*\\*62"):
        model_digest({"a": empty.reshape(0, 2**62)})
