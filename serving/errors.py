"""Errors a user can act on; the command line and the server print their message and nothing else."""

from __future__ import annotations


class CodetrError(Exception):
    """A fault in what the user gave or runs; the message names the fault, the value and what to do."""


class InvalidImageError(CodetrError):
    """Bytes that are no image this service accepts; the request, and only it, is answered `INVALID_ARG`."""
