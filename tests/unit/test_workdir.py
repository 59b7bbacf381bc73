"""A work folder is taken once, never overwritten, and left clean after a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedchain.workdir import Workdir, check_free
from fedchain_proto.errors import UsageError


def test_new_and_empty_folders_are_taken(tmp_path: Path) -> None:
    """A folder that does not exist is made, parents included; an empty one is used."""
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "empty"):
        with Workdir(path) as workdir:
            assert workdir.path.is_dir()


def test_folder_in_use_is_refused_while_it_is_held(tmp_path: Path) -> None:
    """Two processes never share a folder; once the first has let go, it is free again."""
    folder = tmp_path / "run"
    with Workdir(folder):
        code = f"from fedchain.workdir import Workdir; Workdir({str(folder)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode != 0
        assert "in use by another process" in other.stderr
    check_free(folder)


def test_lock_dies_with_its_process(tmp_path: Path) -> None:
    """A killed process leaves no lock behind."""
    folder = tmp_path / "run"
    code = (
        "import os, signal; from fedchain.workdir import Workdir; "
        f"w = Workdir({str(folder)!r}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    Workdir(folder).release()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ('{"status": "completed"}', "a finished run"),
        ('{"status": "aborted"}', "an aborted run"),
        ('{"status": "running"}', "an interrupted run"),
        ("not json", "an interrupted run"),
        ("[" * 100_000, "an interrupted run"),
    ],
)
def test_folder_that_holds_a_run_is_refused_in_words(
    tmp_path: Path, status: str, words: str
) -> None:
    """The refusal says how the run there ended, whatever its note holds, and touches nothing."""
    (tmp_path / "genesis.json").write_text("{}")
    (tmp_path / "run.json").write_text(status)
    with pytest.raises(UsageError, match=words):
        Workdir(tmp_path)
    assert (tmp_path / "run.json").read_text() == status


def test_foreign_content_is_refused(tmp_path: Path) -> None:
    """A folder with somebody's files, or a file in its place, is left alone."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        Workdir(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        Workdir(tmp_path / "thesis.txt")
    with pytest.raises(UsageError, match="cannot make the work folder"):
        Workdir(tmp_path / "thesis.txt" / "below")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_discard_leaves_what_was_there_before(tmp_path: Path) -> None:
    """A failed creation removes a folder that it made, and only empties one that was there."""
    (tmp_path / "empty").mkdir()
    for path, stays in ((tmp_path / "new", False), (tmp_path / "empty", True)):
        workdir = Workdir(path)
        (workdir.path / "keys").mkdir()
        workdir.genesis.write_text("{}")
        workdir.discard()
        assert path.exists() is stays
        assert not stays or not any(path.iterdir())


def test_discard_spares_what_somebody_else_put_there(tmp_path: Path) -> None:
    """Undoing a run removes what the run wrote, and no file beside it."""
    workdir = Workdir(tmp_path / "run")
    workdir.genesis.write_text("{}")
    (workdir.path / "notes.txt").write_text("mine")
    workdir.discard()
    assert [child.name for child in workdir.path.iterdir()] == ["notes.txt"]


def test_note_that_cannot_be_written_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk must not hide, behind a mere note, why a run ended; nor leave half of one."""
    with Workdir(tmp_path / "run") as workdir:
        (workdir.path / "run.json").mkdir()
        workdir.write_status("aborted")
        assert not (workdir.path / ".run.json.new").exists()
    assert "has no note that the run is aborted" in caplog.text
