"""Addresses that MLflow keeps runs at (3.13 to 3.18)."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import did_you_mean

_SCHEMES = (
    "sqlite",
    "postgresql",
    "mysql",
    "mssql",
    "http",
    "https",
    "databricks",
)


def refusal(uri: str) -> str | None:
    """What is wrong with the address of a server or database; None where nothing is.

    Refused is what MLflow does not serve, such as a folder, or a file that is gone with the run.
    """
    found = f"found {uri!r}"
    if uri.lower() == "none":
        return f"{found}, allowed is an address or null; write null"
    scheme = uri.split(":", 1)[0].lower() if ":" in uri else ""
    # A dialect may name its driver: postgresql+psycopg2.
    dialect = scheme.split("+", 1)[0]
    if dialect not in _SCHEMES and uri != "databricks":
        hint = did_you_mean(dialect, _SCHEMES, like="{}")
        if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
            hint = f"; did you mean http://{uri}?"
        return (
            f"{found}, allowed are sqlite:///FILE, a database (postgresql, mysql, mssql) and a "
            f"server (http, https, databricks){hint}; MLflow keeps no runs in folders since 3.13: "
            "write sqlite:///runs/mlflow.db"
        )
    problem = _server_problem(uri) if scheme in ("http", "https") else None
    if problem is not None:
        return f"{found}, {problem}; allowed is {scheme}://HOST or {scheme}://HOST:PORT"
    path = sqlite_path(uri)
    if dialect == "sqlite" and path is None:
        return (
            f"{found}, allowed is sqlite:///FILE or sqlite:////ABSOLUTE/FILE, with options behind "
            "a question mark; a database in memory would be gone with the run"
        )
    if path is not None and str(path).startswith("~"):
        return (
            f"{found}, and a path that starts with '~' is not expanded; write it in full: "
            "sqlite:////ABSOLUTE/FILE"
        )
    return None


def resolve_tracking_uri(uri: str, base: Path) -> str:
    """The address as every process is to mean it.

    A SQLite file is absolute, and the scheme in small letters.

    Args:
        uri: that an experiment may have; see :func:`refusal`.
        base: folder that a relative SQLite path starts from.
    """
    path = sqlite_path(uri)
    if path is None:
        scheme, colon, rest = uri.partition(":")
        return f"{scheme.lower()}{colon}{rest}"
    address, mark, options = uri.partition("?")
    scheme, _, file = address.partition(":///")
    form = "file:" if file.startswith("file:") else ""
    return f"{scheme.lower()}:///{form}{base.absolute() / path}{mark}{options}"


def _server_problem(uri: str) -> str | None:
    """What is wrong with the address of a server; None where nothing is."""
    if re.search(r"\s", uri):
        return "which holds a blank"
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        return f"which is no address ({error})"
    if not parts.hostname:
        return "which names no host"
    return "whose port is 0" if port == 0 else None


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite address; None for any other address and for a database in memory.

    Options follow a question mark: ``sqlite:///runs/mlflow.db?timeout=60``. SQLite's own form,
    ``sqlite:///file:runs/mlflow.db?mode=ro&uri=true``, names a file, too.
    """
    match = re.fullmatch(r"sqlite(\+\w+)?:///(file:)?([^:?][^?]*)(\?.*)?", uri, re.IGNORECASE)
    if match is None or "mode=memory" in (match[4] or "").split("?")[-1].split("&"):
        return None
    return Path(match[3])
