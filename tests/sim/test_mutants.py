"""Every rule, broken alone, is noticed: by each of the tests named for it."""

from collections.abc import Callable

import pytest

from fedchain_ledger.core.consensus import HaltError
from tests.sim.mutants import MUTANTS, Mutant

CASES = [(mutant, killer) for mutant in MUTANTS for killer in mutant.killers]


def _name(value: object) -> str:
    if isinstance(value, Mutant):
        return value.name
    function = getattr(value, "func", value)
    return str(getattr(function, "__qualname__", function)).split(".")[0]


@pytest.mark.parametrize(("mutant", "killer"), CASES, ids=_name)
def test_a_broken_rule_fails_its_tests(mutant: Mutant, killer: Callable[[], None]) -> None:
    """With the mutant the test fails: it would notice this bug. Without, it holds (elsewhere)."""
    # ValueError: a test that unpacks exactly one message found none, or two.
    with mutant.switch(), pytest.raises((AssertionError, HaltError, ValueError)):
        killer()
    # The switch is off again: what it replaced is back.


def test_every_mutant_has_a_killer() -> None:
    """A mutant that nothing is asked to kill would pass unseen."""
    assert all(mutant.killers for mutant in MUTANTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25
