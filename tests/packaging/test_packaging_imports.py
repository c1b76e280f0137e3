"""Importing costs little and does nothing; the rooms keep to what they may know."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "ray", "mlflow", "cv2", "pycocotools", "pandas", "sklearn"}


def modules_after(statement: str, folder: Path) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "HOME": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stderr == ""
    return {name.split(".")[0] for name in json.loads(process.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "statement",
    [
        "import orchestrator, detectors, native",
        "import orchestrator.errors",
        "import orchestrator.cli.main",
        "import orchestrator.cluster.upload",
    ],
)
def test_an_import_loads_nothing_heavy_and_writes_nothing(statement: str, tmp_path: Path) -> None:
    assert modules_after(statement, tmp_path) & HEAVY == set()
    assert list(tmp_path.iterdir()) == []


def test_the_help_of_every_command_loads_nothing_heavy(tmp_path: Path) -> None:
    statement = (
        "import contextlib, io\n"
        "from orchestrator.cli.main import VERBS, main\n"
        "for name in VERBS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, "
        "contextlib.suppress(SystemExit):\n"
        "        main([name, '--help'])\n"
        "    assert 'usage' in out.getvalue(), name"
    )
    assert modules_after(statement, tmp_path) & HEAVY == set()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["config", "show", "good.yaml"], 0),
        (["config", "schema"], 0),
        (["run", "bad.yaml"], 64),
        (["run", "none.yaml"], 64),
        (["check", "none.yaml"], 64),
        (["fit", "none.yaml"], 64),
        (["benchmark", "none.yaml"], 64),
        (["check-resume", "none.yaml"], 64),
        (["shard", "none.yaml", "out"], 64),
        (["init", "none"], 65),
        (["predict", "none", "x.jpg"], 71),
        (["evaluate", "none"], 71),
        (["export", "none"], 71),
        (["report", "none"], 71),
        (["replay", "none"], 71),
        (["compare", "none", "other"], 71),
        (["rerun", "none"], 71),
        (["models"], 0),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_looking_at_a_file_loads_nothing_heavy(words: list[str], code: int, tmp_path: Path) -> None:
    text = (ROOT / "experiments" / "quickstart.yaml").read_text("utf-8")
    (tmp_path / "good.yaml").write_text(text)
    (tmp_path / "bad.yaml").write_text(text.replace("epochs:", "epoch:"))
    statement = (
        "import contextlib, io\n"
        "from orchestrator.cli.main import main\n"
        "out, err = contextlib.redirect_stdout, contextlib.redirect_stderr\n"
        "with out(io.StringIO()), err(io.StringIO()):\n"
        f"    assert main({words!r}) == {code}"
    )
    assert modules_after(statement, tmp_path) & HEAVY == set()


def device_talk(source: str) -> list[str]:
    """Places where a source speaks of one kind of device, which only accelerators.py may."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [f"torch.{node.attr}"] if node.attr in ("cuda", "npu") else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = ["torch.cuda"] if node.value.split(":")[0] == "cuda" else []
        else:
            continue
        for name in names:
            if name.startswith(("torch.cuda", "torch.npu", "torch_npu")):
                found.append(f"line {node.lineno}: {name}")
    return found


def test_only_one_file_speaks_of_kinds_of_devices() -> None:
    talk = {}
    for package in ("orchestrator", "detectors", "native"):
        for path in (ROOT / package).rglob("*.py"):
            if path != ROOT / "orchestrator/accelerators.py" and (
                found := device_talk(path.read_text())
            ):
                talk[str(path.relative_to(ROOT))] = found
    assert talk == {}
    assert device_talk((ROOT / "orchestrator/accelerators.py").read_text())


@pytest.mark.parametrize(
    "line",
    [
        "import torch_npu",
        "import torch.cuda.amp",
        "from torch import cuda",
        "from torch.cuda import synchronize",
        "torch.cuda.synchronize()",
        "torch.npu.empty_cache()",
        "x = y.cuda()",
        "model.npu(0)",
        'x.to("cuda")',
        'x.to("cuda:1")',
    ],
)
def test_device_talk_is_noticed(line: str) -> None:
    assert device_talk(f"import torch\n{line}\n") != []


def test_the_names_of_kinds_in_a_configuration_are_no_device_talk() -> None:
    assert device_talk('kind: Literal["auto", "cpu", "gpu", "npu"] = "auto"') == []
