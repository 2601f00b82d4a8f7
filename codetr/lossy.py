"""Standard error for a program that must go on when nothing can be written there, as on a full disk."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any


class LossyStderr:
    """Standard error without a buffer: what cannot be written is lost."""

    def write(self, text: str) -> int:
        """Write as much as can be written now."""
        with suppress(OSError, ValueError):
            try:
                os.write(sys.stderr.fileno(), text.encode(sys.stderr.encoding or "utf-8", "replace"))
            except io.UnsupportedOperation:  # in the place of a test
                sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)
