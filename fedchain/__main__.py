"""The `fedchain` command's door, and ``python -m fedchain`` where it is not on the path."""

import sys


def main() -> None:
    """Load the command and run it; the console script's entry point.

    Loading takes a second, in which Ctrl-C is answered as it is later: in one line.
    """
    try:
        from fedchain.cli import main as command
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
