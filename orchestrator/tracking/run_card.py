"""The run card: one page that says what a run was and what came of it.

A number means something only together with the code, configuration, data, machine and seed that
gave it; the card keeps them on the same page, in the run folder and in MLflow.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.run_files import RUN_CARD
from orchestrator.tracking.git_info import GitInfo

#: Packages whose version can change a result.
_PACKAGES = (
    "ray",
    "torch",
    "torch-npu",
    "torchvision",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "pycocotools",
    "pyarrow",
    "mlflow",
)


@dataclass(frozen=True)
class Hardware:
    """The machine of the driver and the devices of the workers.

    Attributes:
        cpu: model name.
        cores: that this process may use.
        memory_gib: of the whole machine.
        accelerators: one description per worker's device, such as ``NVIDIA H100``; empty for CPUs.
    """

    cpu: str
    cores: int
    memory_gib: float
    accelerators: tuple[str, ...]

    @classmethod
    def here(cls, accelerators: Sequence[str] = ()) -> Hardware:
        """This machine, with the accelerators that the caller knows of."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(memory / 2**30, 1),
            accelerators=tuple(accelerators),
        )

    def __str__(self) -> str:
        text = f"{self.cpu}, {self.cores} cores, {self.memory_gib:g} GiB"
        counts = {name: self.accelerators.count(name) for name in dict.fromkeys(self.accelerators)}
        return ", ".join([text, *(f"{count} x {name}" for name, count in counts.items())])


def _cpu_model() -> str:
    """As Linux names it; ARM machines give the architecture only."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.machine()


def package_versions() -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    found = {package: _version(package) for package in _PACKAGES}
    return versions | {package: version for package, version in found.items() if version}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class RunCard:
    """What the card says.

    Attributes:
        name: of the run.
        status: how it ended.
        code: None when the code is in no repository.
        config_digest, data_digest: identity of the experiment and of its annotations.
        seeds: of every run behind the numbers.
        hardware: where it ran.
        versions: by package.
        metrics: numbers of the last evaluation, such as the 12 of COCO; -1 where none is defined.
        facts: anything else worth a line, such as steps and images per second.
        files: what is where, by name.
    """

    name: str
    status: str
    code: GitInfo | None
    config_digest: str
    data_digest: str
    seeds: tuple[int, ...]
    hardware: Hardware
    versions: Mapping[str, str]
    metrics: Mapping[str, float]
    facts: Mapping[str, object]
    files: Mapping[str, str]

    def render(self) -> str:
        """The card as Markdown."""
        return "\n".join(self._lines()) + "\n"

    def write(self, run_dir: Path) -> Path:
        """Write the card into the run folder and return where it is."""
        path = run_dir / RUN_CARD
        write_atomic(path, self.render().encode("utf-8"))
        return path

    def _lines(self) -> Iterator[str]:
        yield f"# {self.name}"
        yield ""
        yield from _table(
            ("", ""),
            {
                "status": self.status,
                "code": str(self.code or "in no git repository"),
                "configuration": self.config_digest,
                "data": self.data_digest,
                "seeds" if len(self.seeds) > 1 else "seed": ", ".join(map(str, self.seeds)),
                "hardware": str(self.hardware),
                **{name: str(value) for name, value in self.facts.items()},
            },
        )
        yield from ("", "## Numbers", "")
        if self.metrics:
            yield from _table(
                ("metric", "value"),
                {key: _number(value) for key, value in self.metrics.items()},
            )
        else:
            yield "Not evaluated."
        yield from ("", "## Files", "")
        yield from _table(("what", "where"), self.files)
        yield from ("", "## Versions", "")
        yield from _table(("package", "version"), self.versions)


def read_tables(run_dir: Path) -> dict[str, dict[str, str]]:
    """Rows of the card in a run folder, by the heading above them; those above any by ``""``.

    Empty where there is no card. Inverse of :meth:`RunCard.write` but for line breaks in a value.
    """
    path = run_dir / RUN_CARD
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    tables: dict[str, dict[str, str]] = {"": {}}
    heading, head = "", False
    for line in lines:
        if line.startswith("## "):
            heading = line.removeprefix("## ")
            tables[heading] = {}
        elif line.startswith("|---"):
            head = False
        elif not line.startswith("|"):
            head = True
        elif not head:
            cells = line.removeprefix("| ").removesuffix(" |")
            key, _, value = cells.partition(" | ")
            tables[heading][key.replace("\\|", "|")] = value.replace("\\|", "|")
    return tables


def _number(value: float) -> str:
    return "-" if value == -1 else f"{value:.4f}"


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> Iterator[str]:
    yield f"| {head[0]} | {head[1]} |"
    yield "|---|---|"
    for key, value in rows.items():
        yield f"| {_cell(key)} | {_cell(value)} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
