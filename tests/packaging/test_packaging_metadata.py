"""setup.cfg, constraints.txt, the Makefile and the sources agree with one another."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "detectors", "native")
#: Modules of packages that another one brings along at a version of its choosing.
COMPANIONS = {
    "pydantic-core": "pydantic",
    # In a folder of its own, which it adds to the path.
    "psutil": "ray",
    # Where it has kernels for CUDA, the only place that its importer is imported.
    "triton": "torch",
    # What sends the requests.
    "urllib3": "requests",
}


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(setup_cfg: configparser.ConfigParser, *extras: str) -> dict[str, Requirement]:
    text = setup_cfg["options"]["install_requires"]
    text += "".join(setup_cfg["options.extras_require"][extra] for extra in extras)
    lines = [line.strip() for line in text.splitlines()]
    every = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): each for each in every}


def pins(file: Path = ROOT / "constraints.txt") -> dict[str, Version]:
    lines = file.read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_every_requirement_is_pinned_within_its_bounds(
    setup_cfg: configparser.ConfigParser,
) -> None:
    pinned = pins()
    for name, requirement in requirements(
        setup_cfg, "dev", "export", "tune", "s3", "serve"
    ).items():
        assert pinned[name] in requirement.specifier, requirement


def test_the_environment_has_the_versions_it_was_made_for(
    setup_cfg: configparser.ConfigParser,
) -> None:
    floors = Path(sys.prefix, "floors.txt")  # left there by VERSIONS=floor
    if not floors.exists() and sys.version_info < (3, 11):
        pytest.skip("the pinned versions serve Python 3.11 and newer")
    expected = pins(floors if floors.exists() else ROOT / "constraints.txt")
    wrong = {
        name: found
        for name in requirements(setup_cfg)
        if Version(found := importlib.metadata.version(name)) != expected[name]
    }
    assert wrong == {}


def test_the_floors_are_those_of_setup_cfg(setup_cfg: configparser.ConfigParser) -> None:
    written = runpy.run_path(str(ROOT / ".ci" / "floors.py"))["floors"]()
    every = requirements(setup_cfg, "dev", "export", "tune", "s3", "serve")
    stated = {
        name: {each.version for each in requirement.specifier if each.operator == ">="}
        for name, requirement in every.items()
    }
    assert {canonicalize_name(name): {floor} for name, floor in written.items()} == {
        name: floors for name, floors in stated.items() if floors
    }
    # Anything but a floor, or a marker, would not be understood there.
    assert all(len(each.specifier) <= 1 and each.marker is None for each in every.values())


def test_the_constraints_name_neither_paths_nor_hosts() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+", line), line


def test_security_floors_hold(setup_cfg: configparser.ConfigParser) -> None:
    # Ray below 2.52 has no token authentication; torch below 2.6 runs code that is hidden in a
    # checkpoint even with weights_only (GHSA-53q9-r3pm-6pq6); Pillow below 10.3 overruns a buffer
    # (CVE-2024-28219); mlflow below 3.17.2 has several.
    floors = {"ray": "2.51.2", "torch": "2.5.1", "mlflow": "3.17.1", "pillow": "10.2.0"}
    for name, too_old in floors.items():
        assert too_old not in requirements(setup_cfg)[name].specifier


def test_every_import_is_declared(setup_cfg: configparser.ConfigParser) -> None:
    declared = set(requirements(setup_cfg))
    extras = set(requirements(setup_cfg, "export", "tune", "s3", "serve", "npu"))
    owners = importlib.metadata.packages_distributions()
    undeclared = {}
    for path in sources():
        tree = ast.parse(path.read_text())
        lazy = {id(node) for each in functions(tree) for node in ast.walk(each)}
        for node, module in imports(tree):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in PACKAGES:
                continue
            names = {canonicalize_name(name) for name in owners.get(top, [top])}
            names = {COMPANIONS.get(name, name) for name in names}
            # What only an extra brings must not be needed to import the module.
            if not names & (extras if id(node) in lazy else declared):
                undeclared[f"{path.relative_to(ROOT)}:{node.lineno}"] = module
    assert undeclared == {}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def functions(tree: ast.AST) -> list[ast.AST]:
    return [
        each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node, node.module))
    return found


def test_every_folder_with_sources_is_a_typed_package(
    setup_cfg: configparser.ConfigParser,
) -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in setup_cfg["options.package_data"][package]
    folders = {path.parent for path in sources()}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_the_console_script_exists(setup_cfg: configparser.ConfigParser) -> None:
    script = setup_cfg["options.entry_points"]["console_scripts"].strip()
    entry = importlib.metadata.EntryPoint(
        name="orchestrator", value=script.split(" = ")[1], group="console_scripts"
    )
    assert callable(entry.load())


def test_make_runs_nothing_where_the_environment_is_up_to_date(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("bin/python", ".installed", ".installed-dev"):
        (venv / name).touch()
    done = planned("quickstart", "test", f"VENV={venv}")
    assert "pip install" not in done
    assert "-m orchestrator.run experiments/quickstart.yaml" in done
    (venv / ".installed-dev").unlink()
    assert "-e '.[dev]'" in planned("test", f"VENV={venv}")


def planned(*words: str, code: int = 0) -> str:
    """What `make --dry-run WORDS` says it would do, or why it refuses."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        ["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_each_python_and_choice_of_versions_has_its_environment(tmp_path: Path) -> None:
    this = "{}.{}".format(*sys.version_info)
    own = f"PYTHON={sys.executable}"
    assert f"{sys.executable} -m venv {tmp_path}/venv" in planned(
        "install", own, f"VENV={tmp_path}/venv"
    )
    # Environments of the developer's own may be there already: what is not is asked for.
    assert "pip install" not in planned("clean")
    for words, venv in (((own,), this), ((own, "VERSIONS=floor"), f"{this}-floor")):
        assert f".venv-{venv}/bin/python -m pytest" in planned("test", *words)
    assert "mypy" not in planned("test", own, "VERSIONS=floor")


def test_make_refuses_in_one_line_what_cannot_work(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\necho 2.7\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    this = "{}.{}".format(*sys.version_info)
    for words, reason in (
        (("VERSIONS=oldest",), 'VERSIONS is "oldest", allowed are pinned and floor'),
        (("VENV=a b",), 'VENV is "a b"'),
        (("PYTHON=false",), 'PYTHON is "false", which does not run'),
        ((f"PYTHON={sys.executable}", f"VENV={tmp_path}"), f"has Python 2.7, and PYTHON is {this}"),
    ):
        (line,) = [each for each in planned("test", *words, code=2).splitlines() if "***" in each]
        assert reason in line
