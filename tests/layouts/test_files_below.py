"""Which files a folder holds for a reader: links, circles of them, and what is hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SecurityError
from orchestrator.layouts.files import files_below

OWN = ["a.txt", "sub/b.txt"]
AWAY = ["link/d.txt", "link/far/e.txt"]
#: Links and where they lead, from the folder; what is read beside its own files; and whether links
#: must be allowed for that.
LINKS: dict[str, tuple[dict[str, str], list[str], bool]] = {
    "none": ({}, [], False),
    "inside": ({"link": "sub"}, [], False),
    "inside, to a hidden folder": ({"link": ".store"}, ["link/c.txt"], False),
    "to the folder itself": ({"sub/link": "."}, [], False),
    "hidden": ({".link": "../away"}, [], False),
    "to nothing": ({"f.txt": "gone"}, ["f.txt"], False),
    # Of a file, the reader asks.
    "of a file": ({"f.txt": "../away/d.txt"}, ["f.txt"], False),
    "out": ({"link": "../away"}, AWAY, True),
    "out, from below": ({"sub/link": "../away/far"}, ["sub/link/e.txt"], True),
    "out and back": ({"link": "../away", "../away/back": "."}, AWAY, True),
    "out, twice": ({"link": "../away", "z": "../away"}, AWAY, True),
    "out, in a circle": ({"link": "../away", "../away/far/up": "../away"}, AWAY, True),
    "out, to what is above": ({"link": ".."}, ["link/away/d.txt", "link/away/far/e.txt"], True),
}


@pytest.mark.parametrize("name", LINKS)
def test_every_folder_is_read_once(name: str, tmp_path: Path) -> None:
    links, more, need_leave = LINKS[name]
    root = tmp_path / "set"
    for file in (
        *("a.txt", "sub/b.txt", ".store/c.txt", "../away/d.txt", "../away/far/e.txt"),
        *("._a.txt", ".ipynb_checkpoints/a.txt", "sub/.b.txt", "__MACOSX/sub/b.txt"),
    ):
        (root / file).resolve().parent.mkdir(parents=True, exist_ok=True)
        (root / file).resolve().touch()
    for link, target in links.items():
        (root / link).symlink_to((root / target).resolve())
    assert sorted(files_below(root, follow_links=True)) == sorted([*OWN, *more])
    # The folder itself may be reached through a link.
    (tmp_path / "here").symlink_to(root)
    if not need_leave:
        assert sorted(files_below(tmp_path / "here", follow_links=False)) == sorted([*OWN, *more])
        return
    with pytest.raises(SecurityError, match=r"set/.*: is a link to .*, out of .*set\n.*follow_lin"):
        list(files_below(tmp_path / "here", follow_links=False))
