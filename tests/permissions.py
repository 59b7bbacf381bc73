"""What a test needs that runs a program as somebody who may not write."""

from pathlib import Path

# The suite may run as root, whom no permission stops: the program then becomes nobody. What it
# imports later must be loaded before, for the checkout itself may be closed to nobody.
BECOME_NOBODY = (
    "import os, sqlalchemy.dialects.sqlite.pysqlite, sqlite3, shutil, tempfile\n"
    "if os.getuid() == 0:\n"
    "    os.setuid(65534)\n"
)


def open_parents(folder: Path) -> None:
    """Let others pass through pytest's own folders, which are closed to them, down to `folder`."""
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & 0o005 == 0o005:
            return
        parent.chmod(mode | 0o055)
