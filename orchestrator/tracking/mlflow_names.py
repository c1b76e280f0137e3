"""What MLflow accepts: names and values (``mlflow.utils.validation``, 3.13 to 3.18)."""

from __future__ import annotations

import hashlib
import json
import re

_MAX_NAME = 250
MAX_PARAM = 6000
MAX_TAG = 5000
_REFUSED = re.compile(r"[^/\w.\- :]")


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
