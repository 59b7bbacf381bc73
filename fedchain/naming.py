"""How many of each a federation may have, and what they are called. Needs no training packages."""

from fedchain_proto.errors import UsageError

MAX_CLIENTS = 4096
MAX_VALIDATORS = 100
MAX_ROUNDS = 100_000


def participant_names(clients: int) -> tuple[str, ...]:
    """Zero-padded names, so that the order of names is the order of partitions.

    Raises:
        UsageError: Not a number from 1 to 4096.
    """
    check_count("clients", clients, MAX_CLIENTS)
    width = max(2, len(str(clients - 1)))
    return tuple(f"client-{index:0{width}d}" for index in range(clients))


def validator_names(validators: int) -> tuple[str, ...]:
    """``validator-1`` to ``validator-n``.

    Raises:
        UsageError: Not a number from 1 to 100.
    """
    check_count("validators", validators, MAX_VALIDATORS)
    return tuple(f"validator-{index}" for index in range(1, validators + 1))


def check_count(what: str, value: object, most: int) -> None:
    """Refuse a count that is no whole number from 1 to `most`.

    Raises:
        UsageError: Naming what was asked for and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise UsageError(f"{what} must be a whole number from 1 to {most}, not {value!r}")
