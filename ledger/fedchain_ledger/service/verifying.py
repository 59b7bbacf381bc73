"""Signatures of many envelopes at once, on more than one core, before the event loop needs them.

Ed25519 is most of what a block of many transactions costs, and PyNaCl lets go of Python's lock.
What holds goes into the cache that the chain asks; what does not is left for the chain to refuse.
"""

import asyncio
import os
from collections.abc import Sequence

from fedchain_ledger.core.verification import KeyLookup, VerificationCache, Verified, verify
from fedchain_proto.errors import EvidenceError

FEW = 32
"""Below this many envelopes threads cost more than they save."""


async def verify_ahead(
    envelopes: Sequence[bytes], key_of: KeyLookup, cache: VerificationCache
) -> None:
    """Fill the cache with those of `envelopes` whose signatures hold.

    Args:
        envelopes: From anyone.
        key_of: Asked from other threads.
        cache: Touched from the event loop's thread only.
    """
    if len(envelopes) < FEW:
        return
    workers = min(4, os.cpu_count() or 1)
    parts = [envelopes[start::workers] for start in range(workers)]
    found = await asyncio.gather(*(asyncio.to_thread(_verify_all, part, key_of) for part in parts))
    for part in found:
        for verified in part:
            cache.put(verified)


def _verify_all(envelopes: Sequence[bytes], key_of: KeyLookup) -> list[Verified]:
    private = VerificationCache()  # the shared one is not made for threads
    found = []
    for raw in envelopes:
        try:
            found.append(verify(raw, key_of, private))
        except EvidenceError:
            continue
    return found
