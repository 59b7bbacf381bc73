"""A Flower Grid on one machine, in worker processes that a bad client cannot take down."""

from fedchain.grid.inprocess import InProcessGrid
from fedchain.grid.nodes import NodeSpec
from fedchain.grid.outcome import FAILED, MALFORMED, OVERRAN, REFUSED

__all__ = ["FAILED", "MALFORMED", "OVERRAN", "REFUSED", "InProcessGrid", "NodeSpec"]
