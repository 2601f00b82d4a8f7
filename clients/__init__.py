"""Talks to a running server: the Python API behind `codetr detect`.

from clients.client import CoDetrClient
from clients.aio import AsyncCoDetrClient
"""
