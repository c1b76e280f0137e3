"""The argument parser every verb uses."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from orchestrator.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Argparse without abbreviations, whose usage errors are ConfigErrors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError; argparse would exit with 2."""
        dashed = "unrecognized arguments: -" in message and "=" in message
        hint = "; overrides have no dashes, write key.path=value" if dashed else ""
        raise ConfigError(f"{self.prog}: {message}{hint}\n{self.prog} --help shows the usage")
