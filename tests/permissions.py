"""What a test needs that runs a program as somebody who may not write."""

# The suite may run as root, whom no permission stops: the program then becomes nobody. What it
# imports later must be loaded before, for the checkout itself may be closed to nobody.
BECOME_NOBODY = (
    "import os, sqlalchemy.dialects.sqlite.pysqlite, sqlite3, shutil, tempfile\n"
    "if os.getuid() == 0:\n"
    "    os.setuid(65534)\n"
)
