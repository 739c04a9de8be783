"""`python -m brickyard`: the command line."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C while it loads is no error either."""
    try:
        from brickyard.cli import main as run
    except KeyboardInterrupt:
        print("brickyard: stopped", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
