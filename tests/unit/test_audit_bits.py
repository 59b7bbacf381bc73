"""Flip one bit anywhere in a stored chain: the audit fails, and names claim, height and database.

Nothing is raised, whatever a bit turned into.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedchain_ledger.core.audit import audit
from tests.unit.auditkit import findings
from tests.unit.chainkit import Consortium, MemorySource, trained

WHO = Consortium(validators=4)
SCRIBE, _ = trained(WHO)
BLOCKS = len(SCRIBE.blocks)
BAD = "validator-2"


def _regions(height: int) -> list[str]:
    stored = SCRIBE.blocks[height - 1]
    return ["header", "certificate", *(f"envelope {at}" for at in range(len(stored.envelopes)))]


def _flip(source: MemorySource, height: int, region: str, at: int, bit: int) -> None:
    """Flip one bit of one stored region; `at` counts from its end if negative."""
    stored = source.blocks[height - 1]

    def flipped(raw: bytes) -> bytes:
        changed = bytearray(raw)
        changed[at] ^= 1 << bit
        return bytes(changed)

    if region == "header":
        stored.header = flipped(stored.header)
    elif region == "certificate":
        stored.certificate = flipped(stored.certificate)
    else:
        index = int(region.split()[1])
        stored.envelopes[index] = flipped(stored.envelopes[index])


def _size(height: int, region: str) -> int:
    stored = SCRIBE.blocks[height - 1]
    if region == "header":
        return len(stored.header)
    if region == "certificate":
        return len(stored.certificate)
    return len(stored.envelopes[int(region.split()[1])])


def _assert_found(height: int, region: str, at: int, bit: int) -> None:
    damaged = SCRIBE.source(BAD)
    _flip(damaged, height, region, at, bit)
    report = audit([SCRIBE.source(), damaged], WHO.genesis)
    assert report.verdict == "FAIL"
    found = findings(report)
    assert height in [finding.height for _, finding in found]
    assert all(f"[{BAD}]" in finding.why for _, finding in found)
    assert all(finding.height in (height, height + 1) for _, finding in found)


@pytest.mark.parametrize("height", range(1, BLOCKS + 1))
@pytest.mark.parametrize("region", ["header", "certificate", "envelope"])
def test_flipped_bit_in_each_stride_of_each_region_is_found(height: int, region: str) -> None:
    """Header, payload, signature, certificate, of every block, the tip's too."""
    names = [name for name in _regions(height) if name.startswith(region)]
    for name in names:
        for at in range(0, _size(height, name), 11):
            _assert_found(height, name, at, at % 8)


@settings(max_examples=60)
@given(st.data())
def test_any_flipped_bit_anywhere_is_found(data: st.DataObject) -> None:
    """No bit of a stored chain is beside the point."""
    height = data.draw(st.integers(1, BLOCKS))
    region = data.draw(st.sampled_from(_regions(height)))
    at = data.draw(st.integers(0, _size(height, region) - 1))
    _assert_found(height, region, at, data.draw(st.integers(0, 7)))


@settings(max_examples=60)
@given(st.integers(1, BLOCKS), st.data())
def test_any_other_bytes_are_found(height: int, data: st.DataObject) -> None:
    """Cut, grown, emptied or random regions fail as well, and raise nothing."""
    damaged = SCRIBE.source(BAD)
    stored = damaged.blocks[height - 1]
    region = data.draw(st.sampled_from(["header", "certificate", "envelope"]))
    original = {
        "header": stored.header,
        "certificate": stored.certificate,
        "envelope": stored.envelopes[0],
    }[region]
    other = data.draw(
        st.one_of(
            st.binary(max_size=400),
            st.integers(0, len(original) - 1).map(lambda end: original[:end]),
            st.binary(min_size=1, max_size=20).map(lambda more: original + more),
        ).filter(lambda raw: raw != original)
    )
    if region == "header":
        stored.header = other
    elif region == "certificate":
        stored.certificate = other
    else:
        stored.envelopes[0] = other
    report = audit([damaged], WHO.genesis)
    assert report.verdict == "FAIL"
    assert height in [finding.height for _, finding in findings(report)]
    assert str(report)


@pytest.mark.parametrize("height", range(1, BLOCKS + 1))
def test_missing_added_and_reordered_transactions_are_found(height: int) -> None:
    """A block's transactions are those that it had, in that order."""
    envelopes = SCRIBE.blocks[height - 1].envelopes
    for other in (envelopes[1:], [*envelopes, envelopes[0]], [*envelopes[1:], envelopes[0]]):
        if other == envelopes:
            continue
        damaged = SCRIBE.source(BAD)
        damaged.blocks[height - 1].envelopes = list(other)
        report = audit([damaged], WHO.genesis)
        assert ("C2", height) in [(one, finding.height) for one, finding in findings(report)]


@pytest.mark.parametrize("height", range(1, BLOCKS))
def test_block_taken_out_of_the_middle_is_found(height: int) -> None:
    """Heights are contiguous from the genesis."""
    damaged = SCRIBE.source(BAD)
    del damaged.blocks[height - 1]
    report = audit([damaged], WHO.genesis)
    assert report.verdict == "FAIL"
    assert height in [finding.height for one, finding in findings(report) if one == "C2"]
