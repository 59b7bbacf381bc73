"""Names and untrusted text: what is let in, and how the rest is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedchain_proto.errors import RuleError
from fedchain_proto.names import check_name, check_text, is_name, is_text, printable


@pytest.mark.parametrize("name", ["a", "0", "client-00", "a.b_c-d", "x" * 63])
def test_plain_names_pass(name: str) -> None:
    """What the rule allows is returned as it is."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "-a",
        ".a",
        "_a",
        "x" * 64,
        "a b",
        "a\n",
        "a\0",
        "ä",
        "\u0430",
        "a/b",
        "\u0661",
        "a" * 10_000,
    ],
)
def test_other_names_are_refused(name: str) -> None:
    """Upper case, look-alikes, separators, line ends and overlong names are no names."""
    assert not is_name(name)
    with pytest.raises(RuleError) as caught:
        check_name(name)
    assert caught.value.code == "name"
    assert len(str(caught.value)) < 300


def test_text_of_any_script_passes() -> None:
    """A hospital may have its own name."""
    assert check_text("Universitätsspital Zürich, 東京", 60) == "Universitätsspital Zürich, 東京"


@pytest.mark.parametrize(
    "text",
    [
        "a\nb",
        "\x1b[31m",
        "a\x7f",
        "a\x85",
        "a\u202eb",
        "a\u200bb",
        "\ufeffa",
        "\ud800",
        "\U000e0041",
    ],
)
def test_text_that_steers_its_reader_is_refused(text: str) -> None:
    """Line ends, escapes, invisible and direction-changing characters do not get in."""
    with pytest.raises(RuleError) as caught:
        check_text(text, 60)
    assert caught.value.code == "text"


def test_text_has_a_limit() -> None:
    """The limit itself passes, one character more does not."""
    assert is_text("x" * 60, 60)
    assert not is_text("x" * 61, 60)


@given(st.text(st.characters(exclude_categories=())), st.integers(1, 50))
def test_what_is_shown_is_safe_and_bounded(text: str, limit: int) -> None:
    """Any string, lone surrogates included, becomes text that a terminal shows as it is."""
    shown = printable(text, limit)
    assert is_text(shown, limit)
    shown.encode("utf-8")


def test_harmless_text_is_shown_unchanged() -> None:
    """Only what is unsafe or too long is touched."""
    assert printable("Zürich", 6) == "Zürich"
    assert printable("a\x1bb", 20) == "a\\x1bb"
    assert printable("Zürich", 5) == "Züri…"
