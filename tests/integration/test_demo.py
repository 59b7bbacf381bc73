"""`fedchain demo`: real digits, real accuracy, one folder, a verdict; and what wrong input gets."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

FEDCHAIN = [sys.executable, "-m", "fedchain"]


def fedchain(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FEDCHAIN, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )


def test_demo_reaches_its_accuracy_and_its_history_holds(tmp_path: Path) -> None:
    """The defaults train to at least 0.95 on images that no owner saw; stdout is one document."""
    done = fedchain("demo", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"run", "dir", "seconds", "rounds", "verdict"}
    assert document["verdict"] == "PASS"
    assert re.fullmatch("[0-9a-f]{64}", document["run"])
    assert [r["number"] for r in document["rounds"]] == list(range(1, 11))
    for record in document["rounds"]:
        assert set(record) == {"number", "height", "model", "updates", "exclusions", "accuracy"}
        assert record["updates"] == 10
        assert record["exclusions"] == []
    assert document["rounds"][-1]["accuracy"] >= 0.95
    folder = Path(document["dir"])
    assert folder == tmp_path / "fedchain-demo"
    databases = sorted(p.name for p in (folder / "ledger").glob("*.db"))
    assert databases == [f"validator-{i}.db" for i in range(1, 5)]
    assert (folder / "learning-curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for key in [*(folder / "keys").iterdir(), *folder.glob("participants/*/*.key")]:
        assert key.stat().st_mode & 0o777 == 0o600, key


def test_demo_for_people_shows_rounds_and_claims(tmp_path: Path) -> None:
    """Bars, a table and the verdict, claim by claim, with the options taken."""
    done = fedchain(
        *("demo", "--dir", "d", "--clients", "3", "--rounds", "2", "--validators", "1"),
        *("--seed", "4", "--device", "cpu"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for words in ("round  1", "3/3", "Test accuracy", "PASS at depth full", "C6  PASS", "C12 NOT"):
        assert words in done.stdout
    assert len(list((tmp_path / "d" / "ledger").glob("*.db"))) == 1
    assert done.stderr == ""


def test_bars_are_live_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal a round's bar moves while its owners answer: it is drawn before it is full."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [*FEDCHAIN, "demo", "--dir", "d", "--clients", "4", "--rounds", "1"],
        cwd=tmp_path,
        stdout=follower,
        stderr=subprocess.STDOUT,
        env={
            **os.environ,
            "TERM": "xterm",
            "COLUMNS": "100",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        },
    )
    os.close(follower)
    screen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # The other end is closed.
            break
        if not part:
            break
        screen += part
    os.close(leader)
    assert child.wait() == 0
    states = {int(n) for n in re.findall(rb"(\d+)/4\b", screen)}
    assert 4 in states
    assert states & {1, 2, 3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--rounds", "0"), "rounds must be"),
        (("demo", "--clients", "0"), "clients must be"),
        (("demo", "--clients", "100000"), "clients must be"),
        (("demo", "--clients", "2000"), "2000"),
        (("demo", "--validators", "0"), "validators must be"),
        (("demo", "--device", "cuda:77"), "cuda"),
        (("demo", "--device", "abacus"), "abacus"),
        (("demo", "--dir", "taken"), "not empty"),
        (("demo", "--dir", "a-file"), "is a file"),
        (("ledger", "audit", "--dir", "nowhere"), "nowhere"),
        (("ledger", "history", "--dir", "taken"), "taken"),
    ],
)
def test_wrong_input_gets_one_line_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    """What is wrong and what to do, on stderr, with exit status 2; no folder is made."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").touch()
    (tmp_path / "a-file").touch()
    done = fedchain(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-file", "taken"]


@pytest.mark.parametrize(
    ("arguments", "meant"), [(("dmo",), "demo"), (("ledger", "audt"), "audit")]
)
def test_mistyped_command_is_told_what_was_meant(
    tmp_path: Path, arguments: tuple[str, ...], meant: str
) -> None:
    """Once, not twice."""
    done = fedchain(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count(repr(meant)) == 1


@pytest.mark.parametrize(
    "arguments", [("demo", "--rounds", "many"), ("demo", "--no-such-option"), ("no-such-command",)]
)
def test_wrong_usage_exits_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What the command line cannot parse is refused without a traceback."""
    done = fedchain(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
