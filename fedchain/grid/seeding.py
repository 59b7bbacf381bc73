"""One client's call is seeded by who, what and when, so that its result depends on nothing else.

Neither the worker that runs it, nor the calls before it, nor the order of answers plays a part.
"""

import hashlib
import random
import sys

import numpy as np
from flwr.app import ConfigRecord, Message

_DOMAIN = b"fedchain/grid-seed/v1\0"


def round_of(message: Message) -> int:
    """Read the round from the message's config, where Flower's strategies put it; else 0."""
    for record in message.content.values():
        if isinstance(record, ConfigRecord):
            number = record.get("server-round")
            if isinstance(number, int):
                return number
    return 0


def call_seed(seed: int, message_type: str, server_round: int, participant: str) -> int:
    """Derive the seed of one call: 64 bits of SHA-256 over length-prefixed parts."""
    digest = hashlib.sha256(_DOMAIN)
    for part in (str(seed), message_type, str(server_round), participant):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(4, "little") + data)
    return int.from_bytes(digest.digest()[:8], "little")


def seed_everything(seed: int) -> None:
    """Seed the global generators of random, numpy and, if it is loaded, torch.

    Also pins torch to one thread in the calling thread: another number of threads sums in
    another order, and a forked child whose parent used OpenMP hangs with two.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
