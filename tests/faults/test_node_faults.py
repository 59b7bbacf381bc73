"""Validators that are killed or interrupted while they work: nothing acknowledged is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedchain_ledger.core.audit import audit
from fedchain_ledger.offline import open_sources
from fedchain_ledger.service.embedded import EmbeddedLedger
from fedchain_proto.receipts import VerifiedReceipt
from tests.unit.chainkit import Consortium
from tests.unit.nodekit import QUICK, clock

ROOT = Path(__file__).parents[2]

# Admits owner after owner, and says so only when it holds the receipt.
PROGRAM = """
import sys
from pathlib import Path
from fedchain_ledger.service.embedded import EmbeddedLedger
from fedchain_proto.receipts import VerifiedReceipt
from tests.unit.chainkit import Consortium
from tests.unit.nodekit import QUICK, clock

consortium = Consortium(int(sys.argv[2]), label="faults")
keys = {f"validator-{i + 1}": key for i, key in enumerate(consortium.validator_keys)}
with EmbeddedLedger(
    consortium.genesis, keys, Path(sys.argv[1]), clock=lambda: clock() + int(sys.argv[3]),
    timing=QUICK,
) as ledger:
    client = ledger.client()
    number = 0
    while True:
        names = [f"owner-{number + i:05d}" for i in range(3)]
        outcomes = client.submit([consortium.seal(consortium.admitted(name)) for name in names])
        assert all(isinstance(o, VerifiedReceipt) for o in outcomes), outcomes
        number += 3
        print(number, flush=True)
"""


def run_until(folder: Path, validators: int, signal_number: int, lines: int, age_ms: int) -> int:
    """Let the program work, send it a signal after some lines; the last number it said."""
    said = 0
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(validators), str(age_ms)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for count, line in enumerate(process.stdout, 1):
            said = int(line)
            if count == lines:
                os.kill(process.pid, signal_number)
                break
        else:
            pytest.fail(process.stderr.read())
        for line in process.stdout:
            if line.endswith("\n"):
                said = int(line)
        process.wait(60)
    return said


@pytest.mark.parametrize("validators", [1, 4])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_nothing_acknowledged_is_lost(
    tmp_path: Path, validators: int, number: signal.Signals
) -> None:
    """After each of several deaths at work the chain replays, audits, and holds every receipt."""
    consortium = Consortium(validators, label="faults")
    (tmp_path / "ledger").mkdir()
    acknowledged = 0
    for life in range(3):
        said = run_until(tmp_path / "ledger", validators, number, 5 + 3 * life, 60_000 * life)
        acknowledged = max(acknowledged, said)
        if number == signal.SIGINT:
            left = sorted(path.name for path in (tmp_path / "ledger").iterdir())
            assert left == [f"validator-{i + 1}.db" for i in range(validators)]
    with open_sources(tmp_path, consortium.genesis) as sources:
        report = audit(sources, consortium.genesis)
        assert report.verdict == "PASS", report
    keys = {f"validator-{i + 1}": key for i, key in enumerate(consortium.validator_keys)}
    with EmbeddedLedger(
        consortium.genesis,
        keys,
        tmp_path / "ledger",
        clock=lambda: clock() + 600_000,
        timing=QUICK,
    ) as ledger:
        client = ledger.client()
        before = client.head()[0]
        names = [f"owner-{i:05d}" for i in range(acknowledged)]
        envelopes = [consortium.seal(consortium.admitted(name)) for name in names]
        outcomes = client.submit(envelopes)
        assert all(isinstance(outcome, VerifiedReceipt) for outcome in outcomes)
        # Each was there already: asking again decided nothing new.
        assert client.head()[0] == before
        fresh = consortium.seal(consortium.admitted("one-more"))
        [outcome] = client.submit([fresh])
        assert isinstance(outcome, VerifiedReceipt)
