"""Refuses to build a wheel of the application: its folders are import names of its own environment alone."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableOnly(BuildHookInterface):
    """Lets hatchling install the application editable and in no other way."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raise for any wheel but the one that points to this folder; `version` is hatchling's word for the kind."""
        if version != "editable":
            raise RuntimeError(
                "codetr-triton is an application and has no wheel: `pip install -e .` installs it, "
                "`pip install ./clients` the client library"
            )
