"""Seeded storms: whatever happens in them, one block a height, and progress after them."""

import pytest

from tests.sim.simulator import SIZES, BrokenError, Outcome, Simulation, simulate
from tests.sim.toy import fast_signatures

CHUNK = 40


@pytest.mark.parametrize("first", range(0, 400, CHUNK))
def test_no_storm_forks_loses_or_stalls(first: int) -> None:
    """Agreement, nothing lost, nothing twice, only the guilty accused, progress after the heal."""
    outcomes = []
    for seed in range(first, first + CHUNK):
        try:
            outcomes.append(simulate(seed))
        except BrokenError as error:
            raise AssertionError(f"seed {seed} breaks: simulate({seed})") from error
    assert len({outcome.n for outcome in outcomes}) >= 3


def test_the_storms_are_storms() -> None:
    """Seeds reach later rounds, every n, and a share of restarts: else they would prove nothing."""
    outcomes = [simulate(seed) for seed in range(120)]
    assert {outcome.n for outcome in outcomes} == set(SIZES)
    assert max(outcome.rounds for outcome in outcomes) >= 3
    assert sum(outcome.rounds > 0 for outcome in outcomes) >= 20
    with fast_signatures():
        lives = []
        for seed in range(60):
            simulation = Simulation(seed, 4)
            simulation.run()
            lives.append(max(node.lives for node in simulation.world.nodes))
    assert sum(life > 2 for life in lives) >= 5


def test_a_seed_replays_exactly() -> None:
    """The same seed does the same, to the last message."""

    def trace(seed: int) -> tuple[Outcome, list[bytes]]:
        with fast_signatures():
            simulation = Simulation(seed)
            outcome = simulation.run()
            return outcome, [block for _, block in sorted(simulation.world.history.items())]

    assert [trace(seed) for seed in (3, 4, 5)] == [trace(seed) for seed in (3, 4, 5)]
    assert trace(3) != trace(4)
