"""setup.cfg, constraints.txt, the Makefile and the sources agree with one another."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
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
COMPANIONS = {"pydantic-core": "pydantic"}


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


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
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


def test_the_environment_has_the_pinned_versions(setup_cfg: configparser.ConfigParser) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("the pinned versions serve Python 3.11 and newer")
    pinned = pins()
    wrong = {
        name: found
        for name in requirements(setup_cfg)
        if Version(found := importlib.metadata.version(name)) != pinned[name]
    }
    assert wrong == {}


def test_the_constraints_name_neither_paths_nor_hosts() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+", line), line


def test_security_floors_hold(setup_cfg: configparser.ConfigParser) -> None:
    # Ray below 2.52 has no token authentication; torch below 2.6 runs code that is hidden in a
    # checkpoint even with weights_only (GHSA-53q9-r3pm-6pq6).
    floors = {"ray": "2.51.2", "torch": "2.5.1", "mlflow": "3.12.0"}
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
    command = ["make", "--dry-run", f"VENV={venv}"]
    planned = subprocess.run(
        [*command, "quickstart", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "pip install" not in planned
    assert "-m orchestrator.run experiments/quickstart.yaml" in planned
    (venv / ".installed-dev").unlink()
    assert (
        "-e '.[dev]'"
        in subprocess.run(
            [*command, "test"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    )
