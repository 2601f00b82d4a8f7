"""Errors a user can act on; the command line and the server print their message and nothing else.

They are the client's, so that whoever catches one catches it from both sides.
"""

from codetr_client.errors import CodetrError, InvalidImageError, ServerBusyError

__all__ = ["CodetrError", "InvalidImageError", "ServerBusyError"]
