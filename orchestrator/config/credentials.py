"""Keys and passwords in addresses: found, so that they are refused, and masked in what is printed.

A resolved experiment is printed, stored in the run folder and sent to MLflow, and a key in it would
go everywhere. Stores, databases and servers all take theirs from the environment.
"""

from __future__ import annotations

import re

_SECRET = (
    r"(?:\w*(?:password|passwd|pwd|secret|token|credential|signature|apikey)\w*"
    r"|(?:api_|access_|private_|account_|secret_)key(?:_id)?|sslkey|pass|sas|sig|key)"
)
_OPTION = re.compile(rf"(?i)([?&;]{_SECRET}=)([^&;\s'\"]+)")
_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*)://([^/@\s'\"?]+)@")
#: What is before the @ of these addresses is a name as long as it has no colon.
_NAMED = ("postgresql", "mysql", "mssql", "oracle")
_MASK = "***"


def mask(text: str) -> str:
    """``text`` with what may be a key, token or password in its addresses hidden."""
    return _OPTION.sub(rf"\1{_MASK}", _USER.sub(rf"\1://{_MASK}@", text))


def holds_secret(address: str) -> bool:
    """Whether an address carries a key: before its host, or in its options."""
    user = _USER.search(address)
    if user is not None:
        name, colon, password = user[2].partition(":")
        if user[1].lower().partition("+")[0] not in _NAMED or (colon and password):
            return bool(name or password)
    return _OPTION.search(address) is not None
