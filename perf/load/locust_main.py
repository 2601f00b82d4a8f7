"""Locust, but for Python's own shutdown, in which gRPC under gevent now and then waits for ever.

Everything is written by then: locust's last act is to raise SystemExit.
"""

from __future__ import annotations

import os
import sys

from locust.main import main


def run() -> None:
    """Run locust on the command line's arguments and end this process with its status."""
    status: object = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    run()
