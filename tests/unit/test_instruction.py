"""The instruction digest: the same orders, one name; any other order, another."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedchain_proto.errors import RuleError
from fedchain_proto.instruction import ConfigValue, instruction_digest

INTEGERS = st.integers(-(2**63), 2**63 - 1)
SCALARS: list[st.SearchStrategy[Any]] = [
    st.booleans(),
    INTEGERS,
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
]
VALUES = st.one_of(*SCALARS, *(st.lists(scalar, max_size=4) for scalar in SCALARS))
CONFIGS = st.dictionaries(st.text("abé", max_size=4), VALUES, max_size=5)


def meaning(value: object) -> str:
    """What a client would see: type and exact value, so that 1, 1.0 and True differ."""
    if isinstance(value, list):
        return "[" + ",".join(meaning(item) for item in value) + "]"
    return f"{type(value).__name__}:{value!r}"


@given(CONFIGS)
def test_order_of_entries_does_not_matter(config: dict[str, ConfigValue]) -> None:
    """A dict built in another order is the same instruction."""
    backwards = dict(reversed(config.items()))
    assert instruction_digest("train", config) == instruction_digest("train", backwards)


@given(CONFIGS, CONFIGS)
def test_different_configurations_have_different_digests(
    one: dict[str, ConfigValue], two: dict[str, ConfigValue]
) -> None:
    """Digests agree exactly when every key, type and value does."""
    same = {k: meaning(v) for k, v in one.items()} == {k: meaning(v) for k, v in two.items()}
    assert (instruction_digest("train", one) == instruction_digest("train", two)) == same


def test_close_calls_differ() -> None:
    """Types, list borders, signs of zero, message type and application all count."""
    configs: list[tuple[str, dict[str, ConfigValue], bytes]] = [
        ("train", {}, b""),
        ("evaluate", {}, b""),
        ("train", {}, b"app"),
        ("train", {"a": 1}, b""),
        ("train", {"a": 1.0}, b""),
        ("train", {"a": True}, b""),
        ("train", {"a": "1"}, b""),
        ("train", {"a": b"1"}, b""),
        ("train", {"a": [1]}, b""),
        ("train", {"a": [True]}, b""),
        ("train", {"a": []}, b""),
        ("train", {"a": 0.0}, b""),
        ("train", {"a": -0.0}, b""),
        ("train", {"a": ["bc", "d"]}, b""),
        ("train", {"a": ["b", "cd"]}, b""),
        ("train", {"a": "b", "c": "d"}, b""),
        ("train", {"a": "", "b": "c", "d": ""}, b""),
        ("traina", {"": 1}, b""),
    ]
    assert len({instruction_digest(*config) for config in configs}) == len(configs)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        [1.0, float("nan")],
        2**63,
        -(2**63) - 1,
        [1, 1.0],
        [True, 1],
        ["a", b"a"],
        None,
        {"b": 1},
        [[1]],
        1j,
        "\ud800",
    ],
)
def test_values_without_one_meaning_are_refused(value: Any) -> None:
    """NaN, integers beyond 64 bits, mixed or nested lists and foreign types have no digest."""
    with pytest.raises(RuleError) as error:
        instruction_digest("train", {"a": value})
    assert (error.value.code, error.value.claim) == ("instruction", "C5")


def test_bad_key_is_refused() -> None:
    """A key that cannot be encoded has no place in the order."""
    with pytest.raises(RuleError, match="UTF-8"):
        instruction_digest("train", {"\ud800": 1})
