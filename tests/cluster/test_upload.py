"""The measured upload is the package Ray itself makes, file for file and byte for byte."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from orchestrator.cluster import upload
from orchestrator.cluster.upload import check_working_dir, uploaded_files, working_dir_size
from orchestrator.errors import ConfigError

MIB = 1024**2


def build(root: Path, files: dict[str, str | int]) -> Path:
    """Write text as it is, a number as that many bytes; a name that ends in / is a folder."""
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            with path.open("wb") as file:
                file.truncate(content)
        else:
            path.write_text(content)
    return root


def packed_by_ray(root: Path, target: Path, excludes: list[str]) -> tuple[set[str], int]:
    """Names in, and size of, the package of Ray 2.55 and newer."""
    create_package(
        str(root),
        target,
        include_gitignore=True,
        excludes=[*get_runtime_env_default_excludes(), *excludes],
    )
    with zipfile.ZipFile(target) as package:
        return set(package.namelist()), target.stat().st_size


PROJECT: dict[str, str | int] = {
    ".gitignore": "/data/\n*.so\n__pycache__/\n",
    ".rayignore": "/docs\n",
    ".git/objects/pack/history.pack": 5000,
    ".venv/lib/python3/site.py": 100,
    "README.md": "über alles\n",
    "data/images/1.jpg": 4000,
    "docs/page.md": "text",
    "docs/deep/picture.svg": 300,
    "native/kernel.so": 999,
    "orchestrator/__init__.py": "",
    "orchestrator/__pycache__/run.pyc": 10,
    "orchestrator/data/readers/coco.py": "x = 1\n",
    "orchestrator/data/größe.py": "y = 2\n",
    "orchestrator/nested/.gitignore": "*.tmp\n",
    "orchestrator/nested/a.tmp": 50,
    "orchestrator/nested/b.txt": 51,
    "empty/": 0,
    "extra/log.txt": 70,
}


@pytest.mark.parametrize("excludes", [[], ["extra"], ["*.py", "/README.md"]])
def test_files_and_size_are_those_of_the_package(tmp_path: Path, excludes: list[str]) -> None:
    root = build(tmp_path / "project", PROJECT)
    names, size = packed_by_ray(root, tmp_path / "package.zip", excludes)
    assert {each.path for each in uploaded_files(root, excludes)} == names
    assert working_dir_size(root, excludes).bytes == size
    assert working_dir_size(root, excludes).files == len(names)


_NAMES = st.sampled_from(["a", "b", "data", "runs", "x.py", "y.so", "ü"])
_PATTERNS = st.sampled_from(["/data", "data/", "*.so", "b", "!b", "/a/b", "**/x.py", "# note", ""])


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.lists(_NAMES, min_size=1, max_size=4).map("/".join), max_size=10),
    ignored=st.lists(_PATTERNS, max_size=4),
    sizes=st.integers(0, 5000),
)
def test_any_tree_is_measured_as_ray_packs_it(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], ignored: list[str], sizes: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    root = folder / "project"
    root.mkdir()
    (root / ".rayignore").write_text("\n".join(ignored))
    for number, name in enumerate(names):
        path = root / name
        if not path.exists() and all(
            parent.is_dir() or not parent.exists() for parent in path.parents
        ):
            build(root, {name: sizes + number})
    expected, size = packed_by_ray(root, folder / "package.zip", [])
    assert {each.path for each in uploaded_files(root)} == expected
    assert working_dir_size(root).bytes == size


def test_the_biggest_files_come_first(tmp_path: Path) -> None:
    root = build(tmp_path, {f"f{size}": size for size in (5, 900, 30, 7, 200, 1, 60)})
    assert [each.size for each in working_dir_size(root).biggest] == [900, 200, 60, 30, 7]


@pytest.mark.parametrize(
    ("big", "line"),
    [
        ("old_runs/7/model.safetensors", "/old_runs"),
        ("archive.zip", "/archive.zip"),
        ("detectors/weights/vgg.pth", "/detectors/weights/vgg.pth"),
    ],
)
def test_too_much_is_refused_with_the_line_that_helps(tmp_path: Path, big: str, line: str) -> None:
    root = build(tmp_path, {"orchestrator/run.py": "pass\n", big: 100 * MIB})
    with pytest.raises(ConfigError) as refusal:
        check_working_dir(root)
    text = str(refusal.value)
    assert "100.0 MiB in 2 files" in text
    assert "less than 100 MiB" in text
    assert f"100.0 MiB  {big}" in text
    assert f"add the line {line} to {root}/.rayignore" in text
    build(root, {".rayignore": f"{line}\n"})
    assert check_working_dir(root).files == 2


def test_the_limit_itself_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build(tmp_path, {"a.bin": 1000})
    size = working_dir_size(root).bytes
    monkeypatch.setattr(upload, "upload_limit", lambda: size + 1)
    assert check_working_dir(root).bytes == size
    monkeypatch.setattr(upload, "upload_limit", lambda: size)
    with pytest.raises(ConfigError):
        check_working_dir(root)


def test_gitignore_counts_only_while_ray_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path, {".gitignore": "big\n", "big": 500})
    assert {each.path for each in uploaded_files(root)} == {".gitignore"}
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert {each.path for each in uploaded_files(root)} == {".gitignore", "big"}


def test_this_project_is_small_to_send_and_complete() -> None:
    root = Path(__file__).resolve().parents[2]
    sent = {each.path for each in uploaded_files(root)}
    assert check_working_dir(root).bytes < 5 * MIB
    assert {"orchestrator/run.py", "orchestrator/data/readers/coco.py", "setup.cfg"} <= sent
    assert {"native/suppression.py", "experiments/quickstart.yaml"} <= sent
    assert not any(path.split("/")[0] in {"tests", "docs", "data", "runs", ".git"} for path in sent)
