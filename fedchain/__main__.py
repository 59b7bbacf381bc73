"""``python -m fedchain``: the command, where the console script is not on the path."""

from fedchain.cli import main

main()
