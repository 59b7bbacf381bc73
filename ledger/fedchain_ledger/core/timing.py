"""How long the core waits for what. All in milliseconds of the clock that ``handle`` is given."""

from __future__ import annotations

from dataclasses import dataclass

from fedchain_proto.errors import UsageError

SLOT_HEIGHTS = 50  # K: a leader's slot moves on at every multiple; every validator must agree


@dataclass(frozen=True)
class Timing:
    """One validator's patience. Validators may differ; safety depends on none of it."""

    base_timeout_ms: int = 1_000  # T0: round 0
    max_factor: int = 16  # cap of the doubling (besu #7642: 2^r without one waits 4,096 s)
    worst_round_ms: int = 10_000  # a whole round with the largest block and fsync
    resend_ms: int = 2_000  # R6
    tip_ms: int = 10_000  # R6
    answer_ms: int = 1_000  # R6: one peer gets one answer of a kind in this time
    laggard_ms: int = 250  # votes that were under way when we decided ask for nothing
    quiet_ms: int = 100  # a block is cut after this long without a new transaction ...
    quiet_factor: int = 4  # ... or this many times that after the first one

    def __post_init__(self) -> None:
        """Refuse values under which a healthy network would never finish a round.

        Raises:
            UsageError: A duration is not positive, or the longest time-out is too short.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"timing: {name} must be at least 1, not {value}")
        if self.base_timeout_ms * self.max_factor <= self.worst_round_ms:
            raise UsageError(
                "timing: base_timeout_ms * max_factor must exceed worst_round_ms,"
                f" but {self.base_timeout_ms} * {self.max_factor} <= {self.worst_round_ms}"
            )

    def timeout_ms(self, round_: int) -> int:
        """``min(T0 * 2**round, max_factor * T0)``."""
        doublings = min(round_, self.max_factor.bit_length())
        return min(self.base_timeout_ms << doublings, self.base_timeout_ms * self.max_factor)
