"""The package's public face loads what is asked for, and no more."""

import pkgutil
import signal
import subprocess
import sys

import pytest

import fedchain

BLOCK_TRAINING = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "flwr", "sklearn", "matplotlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Blocked())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK_TRAINING + code], capture_output=True, text=True, check=False
    )


def test_auditor_needs_no_training_packages() -> None:
    """Without torch and flwr the package, the command and the audit still load."""
    done = run("import fedchain, fedchain.cli; fedchain.Report; fedchain.Policy; fedchain.Run")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["launch", "LedgerFedAvg", "attest", "Federation"])
def test_missing_training_package_names_the_extra(name: str) -> None:
    """What does need them says how to get them."""
    done = run(f"import fedchain; fedchain.{name}")
    assert "pip install 'fedchain[train]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("wrong", "words"), [("'--rounds', '0'", "rounds must be"), ("'--dir', '/'", "not empty")]
)
def test_demo_refuses_at_once_what_cannot_work(wrong: str, words: str) -> None:
    """Nobody waits for torch to be told of a typing mistake, and no banner comes before that."""
    done = run(
        f"import sys; sys.argv = ['fedchain', 'demo', {wrong}]; import fedchain.cli as c; c.main()"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_demo_without_its_packages_is_one_line() -> None:
    """The command says what to install, in one line, with exit status 2."""
    done = run("import sys; sys.argv = ['fedchain', 'demo']; import fedchain.cli as c; c.main()")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "fedchain[demo]" in done.stderr


def test_every_public_name_exists_and_others_do_not() -> None:
    """`__all__` keeps its promises."""
    for name in fedchain.__all__:
        assert getattr(fedchain, name) is not None
    with pytest.raises(AttributeError):
        _ = fedchain.no_such_name  # type: ignore[attr-defined]


def test_no_module_bears_a_public_name() -> None:
    """Importing a module never puts it in the place of the function that bears its name."""
    modules = {module.name for module in pkgutil.iter_modules(fedchain.__path__)}
    assert "cli" in modules
    assert not modules & set(fedchain.__all__)


def test_interrupt_while_the_command_is_loaded_is_one_line() -> None:
    """Ctrl-C in the first second says what it says later, with the same exit status."""
    done = run(
        "import sys\n"
        "def interrupted(name, path=None, target=None):\n"
        "    if name == 'fedchain.cli':\n"
        "        raise KeyboardInterrupt\n"
        "Blocked.find_spec = staticmethod(interrupted)\n"
        "from fedchain.__main__ import main\n"
        "main()"
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_interrupt_while_the_interpreter_leaves_is_silent() -> None:
    """A second Ctrl-C, when everything is closed, ends the process and prints nothing more."""
    done = run(
        "import atexit, signal, sys\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "sys.argv = ['fedchain', '--version']\n"
        "from fedchain.__main__ import main\n"
        "main()"
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
