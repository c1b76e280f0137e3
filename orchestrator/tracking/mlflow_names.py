"""What MLflow accepts: addresses, names and values (``mlflow.utils.validation``, 3.13 to 3.18)."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import ConfigError, nearest

_MAX_NAME = 250
MAX_PARAM = 6000
MAX_TAG = 5000
_REFUSED = re.compile(r"[^/\w.\- :]")
_SCHEMES = (
    "sqlite",
    "postgresql",
    "mysql",
    "mssql",
    "http",
    "https",
    "databricks",
    "databricks-uc",
)


def resolve_tracking_uri(uri: str, base: Path) -> str:
    """The address with a SQLite file made absolute, so that every process means the same one.

    Args:
        uri: of a server or database.
        base: folder that a relative SQLite path starts from.

    Raises:
        ConfigError: an address MLflow does not serve, such as a folder.
    """
    scheme = uri.split(":", 1)[0].lower() if ":" in uri else ""
    # A dialect may name its driver: postgresql+psycopg2.
    dialect = scheme.split("+", 1)[0]
    if dialect not in _SCHEMES and uri != "databricks":
        hint = nearest(dialect, _SCHEMES)
        if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
            hint = f"http://{uri}"
        raise ConfigError(
            f"tracking.mlflow is {uri!r}, allowed are sqlite:///FILE, a database "
            "(postgresql, mysql, mssql) and a server (http, https, databricks)"
            + (f"; did you mean {hint}?" if hint else "")
            + "\nMLflow keeps no runs in folders since 3.13; use sqlite:///runs/mlflow.db"
        )
    if scheme in ("http", "https"):
        problem = _server_problem(uri)
        if problem is not None:
            raise ConfigError(
                f"tracking.mlflow is {uri!r}, {problem}; allowed is {scheme}://HOST or "
                f"{scheme}://HOST:PORT"
            )
    if dialect != "sqlite":
        return uri
    path = sqlite_path(uri)
    if path is None:
        raise ConfigError(
            f"tracking.mlflow is {uri!r}, expected sqlite:///FILE or sqlite:////ABSOLUTE/FILE, "
            "with options behind a question mark; a database in memory would be gone with the run"
        )
    if str(path).startswith("~"):
        raise ConfigError(
            f"tracking.mlflow is {uri!r}, and a path that starts with '~' is not expanded; write "
            "it in full: sqlite:////ABSOLUTE/FILE"
        )
    address, mark, options = uri.partition("?")
    form = "file:" if address.partition(":///")[2].startswith("file:") else ""
    return f"{scheme}:///{form}{base.absolute() / path}{mark}{options}"


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


def clean_name(name: str) -> str:
    """A metric or parameter name that MLflow takes; different names stay different.

    Characters other than letters, digits and ``/ _ . - :`` and space become ``_``. A name that had
    to be changed ends in a digest of the original: two class names that differ in such a character
    only would otherwise share one curve.
    """
    cleaned = "/".join(
        "_" if part in ("", ".", "..") else part for part in _REFUSED.sub("_", name).split("/")
    )
    if cleaned == name and len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{cleaned[: _MAX_NAME - 9]}-{digest}"


def param_text(value: object) -> str:
    """A parameter value as text: strings as they are, anything else as JSON, cut to fit."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:MAX_PARAM]
