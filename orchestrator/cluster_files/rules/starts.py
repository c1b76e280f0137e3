"""What must hold where a script starts Ray: on how many nodes, at which port, with what token."""

from __future__ import annotations

import re
from collections.abc import Collection

from orchestrator.cluster_files.rules.commands import MODE, Found
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.config.problems import KeyPath

_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def check_token(sheet: Sheet, path: KeyPath, found: Found, given: Collection[str]) -> None:
    """Report a start of Ray that asks for a token which nothing gives it.

    Args:
        sheet: takes the problems.
        path: of what names the variables.
        found: what commands do.
        given: names of the variables of a machine or container that holds no token of its own.
    """
    for start in found.starts:
        seen = {*given, *start.env}
        if start.env.get(MODE, "").lower() == "token" and not seen.intersection(_TOKENS):
            sheet.report(
                path,
                f"Ray asks for a token and is given none; name {_TOKENS[0]} or {_TOKENS[1]}",
            )
            return


def check_starts(
    sheet: Sheet, path: KeyPath, found: Found, nodes: int, key: KeyPath, needle: str = ""
) -> None:
    """Report what is wrong with how a script starts Ray.

    Args:
        sheet: takes the problems.
        path: of the script.
        found: what its commands do.
        nodes: that it has.
        key: of their number.
        needle: text by which that is found.
    """
    if not found.starts:
        sheet.report(path, "no command starts Ray; write ray start or ray symmetric-run")
    _joins(sheet, found)
    for start in found.starts:
        wanted = start.options.get("--min-nodes", "")
        if wanted.isdecimal() and int(wanted) != nodes:
            sheet.report(start.path, f"--min-nodes is {wanted}, there are {nodes}", "--min-nodes")
            sheet.report(key, f"there are {nodes} nodes, --min-nodes is {wanted}", needle)


def _joins(sheet: Sheet, found: Found) -> None:
    """Workers look for the head at the port that it listens at."""
    heads = [start for start in found.starts if start.head and "--port" in start.options]
    for worker in (start for start in found.starts if not start.head):
        address = worker.options.get("--address", "")
        variable = re.fullmatch(r"\$\{?(\w+)\}?", address)
        if variable is not None:
            address = worker.command.variables.get(variable[1], "")
        port = re.search(r":(\d+)$", address)
        for head in heads:
            listens = head.options["--port"]
            if port is not None and port[1] != listens:
                message = f"the head listens at {listens}, workers look for {port[1]}"
                sheet.report(head.path, message, f"--port={listens}")
                sheet.report(worker.path, message, f":{port[1]}")
