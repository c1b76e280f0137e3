"""Keys and passwords in addresses: found, so that they are refused, and masked in what is said.

A resolved experiment is printed, stored in the run folder and sent to MLflow, and a key in it would
go everywhere. Stores, databases and servers all take theirs from the environment. Whatever finds or
hides a secret in this program does it here: errors mask their messages, and so does what writes
down text that it did not make.
"""

from __future__ import annotations

import re

# Every part has a largest length: a text of any kind is looked at in a time that grows with it.

_MASK = "***"
_SECRET = (
    r"(?:[\w.-]{0,64}(?:password|passwd|pwd|secret|token|credential|signature|apikey)[\w.-]{0,64}"
    r"|[\w.-]{0,64}(?:api|access|private|account|secret|shared)[_-]?key(?:[_-]?id)?"
    r"|sslkey|pass|sas|sig|key|auth|jwt|bearer)"
)
#: Options of an address: behind ``?``, ``&``, ``;`` or ``#``. Those of a driver stand in one, with
#: their signs as numbers: ``odbc_connect=UID%3Dsa%3BPWD%3D…``.
_OPTION = re.compile(
    rf"(?i)((?:[?&;#]|%3b|%26|\bodbc_connect=){_SECRET}(?:=|%3d))((?:(?!%3b|%26)[^&;#\s'\"])+)"
)
#: The same of what is no address: ``--password=…``.
_SETTING = re.compile(
    r"(?i)((?<![\w.])(?:[\w-]{0,64}(?:password|passwd|secret(?:[_-]?(?:access[_-]?)?key)?)"
    r"|(?:[\w-]{0,64}[_-])?(?:auth|access|api|session|security|bearer)?[_-]?token"
    r"|[\w-]{0,64}api[_-]?key)=)"
    r"([^\s&;,'\")}]+)"
)
#: A scheme, and what stands before the path of the address. With one slash, too: that is what a
#: path makes of an address. Only looked at, because another address may stand in it.
_ADDRESS = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,31}):/{1,2}(?=([^/\s]{1,4096}))")
#: A key that has a slash in it, so that the address seems to have its host before the ``@``.
_SLASHED = re.compile(
    r"(?i)\b([a-z][a-z0-9+.-]{1,31}):/{1,2}"
    r"([^/@\s'\"?#:\[]{0,256}:(?!\d+[/?#])[^/@\s'\"]{0,256}/[^@\s'\"]{0,256}"
    r"(?:@[^/@\s'\"]{0,256}){0,8})@"
)
#: An address whose scheme was forgotten. An image is called ``name:tag@sha256:…``.
_BARE = re.compile(
    r"(?i)(?<![\w/:.@*-])(?!mailto:)([a-z][\w.+-]{0,63}:)([^\s/@:'\"]{3,256})"
    r"@(?=(?:[\w-]{1,64}(?:\.[\w-]{1,64}){1,8}|localhost)(?:[:/\s'\",;]|$))"
)
#: What ends an address, or its host, and stands in passwords all the same: whoever reads the
#: address of a database takes all up to the ``@``.
_QUOTES, _ENDS = re.compile(r"['\"]"), re.compile(r"['\"?#]")
#: What is a secret wherever it stands.
_SHAPES = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[oprsu]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bglpat-[\w-]{20,}|\bhf_[A-Za-z0-9]{30,}"
    r"|\bxox[abp]-[\w-]{10,}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_HEADER = re.compile(
    r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic)\s+|\bbearer\s+(?=\S{20}))(\S+)"
)
#: What is before the @ of these addresses is a name as long as it has no colon.
_NAMED = ("postgresql", "mysql", "mssql", "oracle", "mariadb", "ssh", "sftp")
_NAME = re.compile(rf"(?i)^{_SECRET}$")
#: A name that says where a secret lies, not what it is.
_PLACE_OF = re.compile(r"(?i)(?:[_-](?:file|path|dir|name|mode|ttl|url|uri)|\.file)$")


def mask(text: str) -> str:
    """``text`` with what may be a key, token or password in it hidden."""
    text = _SLASHED.sub(rf"\1://{_MASK}@", _without_users(text))
    text = _BARE.sub(rf"\1{_MASK}@", text)
    text = _SETTING.sub(rf"\1{_MASK}", _OPTION.sub(rf"\1{_MASK}", text))
    return _HEADER.sub(rf"\1{_MASK}", _SHAPES.sub(_MASK, text))


def _without_users(text: str) -> str:
    parts, at = [], 0
    for address in _ADDRESS.finditer(text):
        user = _user_of(address[2])
        if user is not None and address.start() >= at:
            parts += [text[at : address.start()], f"{address[1]}://{_MASK}"]
            at = address.end() + len(user)
    return "".join([*parts, text[at:]])


def _user_of(authority: str) -> str | None:
    """What stands before the host, a password with signs that should have been escaped included.

    Args:
        authority: of an address, and maybe what follows it in the same text, up to a slash.

    Returns:
        None where there is only a host: an ``@`` behind it belongs to what follows.
    """
    address = _QUOTES.split(authority, maxsplit=1)[0]
    place = address if "@" in address else authority
    if "@" not in place:
        return None
    head = _ENDS.split(authority, maxsplit=1)[0]
    _, colon, port = head.partition(":")
    # HOST:PORT?mail=a@b, or HOST?mail=a@b.
    if "@" not in head and (not colon or port.isdecimal() or head.startswith("[")):
        return None
    return place[: place.rindex("@")]


def holds_secret(address: str) -> bool:
    """Whether an address carries a key: before its host, or in its options."""
    return secret_in(address) is not None


def secret_in(text: str) -> str | None:
    """The first address, option or token in a text that is or carries a secret."""
    for address in _ADDRESS.finditer(text):
        user = _user_of(address[2])
        if user is None:
            continue
        name, colon, password = user.partition(":")
        named = address[1].lower().partition("+")[0] in _NAMED
        if bool(name or password) and (not named or bool(colon and password)):
            return f"{address[0]}{user}@"
    found = (pattern.search(text) for pattern in (_SLASHED, _BARE, _OPTION, _SHAPES))
    return next((each[0] for each in found if each is not None), None)


def names_secret(name: str) -> bool:
    """Whether what has this name is a secret, and not where one lies: ``POSTGRES_PASSWORD``."""
    return _NAME.search(name) is not None and _PLACE_OF.search(name) is None
