"""Certificates of an authority that a test makes for itself with `openssl`."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """A certificate authority in a folder; `cert` is what others must trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.cert, self._key = folder / "authority.pem", folder / "authority.key"
        self._make_key(self._key)
        self._openssl(
            "req", "-x509", "-new", "-key", self._key, "-days", "2", "-subj", "/CN=an authority of the tests",
            "-out", self.cert,
        )  # fmt: skip  # an option and its value

    def issue(self, name: str, password: str | None = None) -> tuple[Path, Path]:
        """Return a certificate for this machine and its key, which `password` shuts."""
        cert, key, request = (self._folder / f"{name}.{ending}" for ending in ("pem", "key", "csr"))
        self._make_key(key, *(["-aes256", "-pass", f"pass:{password}"] if password else []))
        given = ["-passin", f"pass:{password}"] if password else []
        self._openssl("req", "-new", "-key", key, *given, "-subj", f"/CN={name}", "-out", request)
        names = self._folder / f"{name}.cnf"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n")
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self._key, "-CAcreateserial", "-days", "2",
            "-extfile", names, "-out", cert,
        )  # fmt: skip  # as above
        return cert, key

    def _make_key(self, path: Path, *options: str) -> None:
        self._openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", *options, "-out", path)

    def _openssl(self, *words: str | Path) -> None:
        done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
