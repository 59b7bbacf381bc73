"""The documentation is true: every command and every program in it runs as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
from tests import tiny
client_app, initial_arrays = tiny.make_app(), tiny.initial_arrays()
"""
RUN_ADOPTED = """
from tests.tiny import reply
from fedchain.grid import InProcessGrid, NodeSpec
app.train()(lambda message, context: reply(message))
nodes = [
    NodeSpec(i, name, federation.node_config(name))
    for i, name in enumerate(federation.participants, start=1)
]
from flwr.app import RecordDict
with InProcessGrid(app, nodes=nodes, seed=0, timeout_s=60.0) as grid:
    server_app(grid, Context(1, 0, {}, RecordDict(), {}))
import json
print(json.loads((federation.path / "genesis.json").read_text())["name"])
"""


def environment() -> dict[str, str]:
    """This interpreter's commands first on the path, this checkout importable."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(document: str) -> list[str]:
    lines = "\n".join(blocks(document, "console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docs")


def test_commands_of_the_auditors_page_run(folder: Path) -> None:
    """Each command of docs/audit.md, in order, in one folder, exits with 0."""
    listed = commands("docs/audit.md")
    assert len(listed) >= 6
    for command in listed:
        done = shell(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_commands_of_the_readme_run(folder: Path) -> None:
    """The README's ledger commands work on the folder that the demo leaves."""
    listed = commands("README.md")
    assert listed[:2] == ["make demo", "make test"]
    assert (folder / "fedchain-demo").is_dir(), "the auditor's page makes it"
    for command in listed[2:]:
        assert command.startswith(".venv/bin/fedchain ledger ")
        done = shell(command.removeprefix(".venv/bin/"), folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("document", ["README.md", "docs/api.md"])
def test_launch_program_runs(document: str, tmp_path: Path) -> None:
    """The program around `launch` runs as written, given an app and a model."""
    program = next(code for code in blocks(document, "python") if "fedchain.launch(" in code)
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "PASS" in done.stdout
    assert (tmp_path / "my-run" / "genesis.json").is_file()


def test_adoption_in_two_lines_runs(tmp_path: Path) -> None:
    """An existing ServerApp and ClientApp run with the two lines, and the history audits."""
    program = next(code for code in blocks("docs/api.md", "python") if "ServerApp()" in code)
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program + RUN_ADOPTED],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    audit = shell("fedchain ledger audit --dir adopted-run", tmp_path)
    assert audit.returncode == 0, audit.stdout
    assert "C6  PASS" in audit.stdout


def test_example_runs(tmp_path: Path) -> None:
    """examples/digits.py trains on real data and audits."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits.py"), "run"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "round 3:" in done.stdout
    assert "PASS" in done.stdout


def test_every_link_between_documents_leads_somewhere() -> None:
    """No page points to a file that is not there."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize(
    "arguments",
    [(), ("demo",), ("ledger",), *(("ledger", c) for c in ("history", "show", "audit"))],
)
def test_help_is_everywhere(arguments: tuple[str, ...]) -> None:
    """Every command explains itself."""
    command = [sys.executable, "-m", "fedchain", *arguments, "--help"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0
    assert "--help" in done.stdout
