"""`python -m brickyard`: the command line."""

import sys

from brickyard.cli._signals import end, seen

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C while it loads is no error either."""
    try:
        from brickyard.cli._app import main as run
    except KeyboardInterrupt:
        print("brickyard: stopped", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    try:
        run()
    except SystemExit:
        code = seen()
        if code is None:
            raise
        end(code)


if __name__ == "__main__":
    main()
