"""Damaged checkpoint files: never loaded wrong, never in the way of an older good one.

``CHECKPOINT_MUTATIONS`` sets how many random mutations are tried (300 by default; 10,000 is what
the reliability table reports).
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from orchestrator.checkpoints.codec import state_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.errors import StorageError
from tests.support.commit_scenario import COMMIT_ARGUMENTS, states
from tests.support.faulty_storage import QuickStorage

STATES = states(4)
DIGESTS = {step: state_digest(state) for step, state in STATES.items()}
SCORES = {1: {"val/AP": 0.2}, 2: {"val/AP": 0.6}, 3: {"val/AP": 0.4}, 4: None}
MUTATIONS = int(os.environ.get("CHECKPOINT_MUTATIONS", "300"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four commits, three of them with scores."""
    path = tmp_path / "run"
    store = CommitStore(QuickStorage(path), keep_last=9)
    for step, state in STATES.items():
        store.save(state, **COMMIT_ARGUMENTS)
        scores = SCORES[step]
        if scores is not None:
            store.attach_metrics(step, scores)
    store.close()
    return path


class Pristine:
    """What a run folder held, to compare with and to restore."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.files = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}

    def restore(self) -> None:
        for path in self.run.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for name, content in self.files.items():
            (self.run / name).parent.mkdir(parents=True, exist_ok=True)
            (self.run / name).write_bytes(content)

    def intact(self) -> list[int]:
        """Steps whose commit is as it was written, metrics aside."""
        steps = []
        for step in STATES:
            folder = self.run / "ckpt" / f"{step:09d}"
            original = {
                name: data
                for name, data in self.files.items()
                if name.parent.name == folder.name and name.name != "METRICS.json"
            }
            if not folder.is_symlink() and all(
                (self.run / name).is_file()
                and not (self.run / name).is_symlink()
                and (self.run / name).read_bytes() == data
                for name, data in original.items()
            ):
                steps.append(step)
        return steps


def mutate(run: Path, draw: random.Random) -> str:
    """Damage something below ``run`` and say what."""
    files = sorted(p for p in run.rglob("*") if p.is_file() and not p.is_symlink())
    folders = sorted(p for p in (run / "ckpt").iterdir() if p.is_dir() and not p.is_symlink())
    file, other = draw.choice(files), draw.choice(files)
    folder, target = draw.choice(folders), draw.choice(folders)
    data = bytearray(file.read_bytes())
    kind = draw.choice(
        ["flip", "flip", "flip", "truncate", "extend", "zero", "insert", "delete", "swap", "copy",
         "exchange folders", "rename folder", "copy folder", "link", "link folder", "empty"]
    )  # fmt: skip
    match kind:
        case "flip" if data:
            position = draw.randrange(len(data))
            data[position] ^= 1 << draw.randrange(8)
            file.write_bytes(data)
        case "truncate" if data:
            file.write_bytes(data[: draw.randrange(len(data))])
        case "extend":
            file.write_bytes(data + draw.randbytes(draw.randrange(1, 9)))
        case "insert":
            position = draw.randrange(len(data) + 1)
            file.write_bytes(data[:position] + draw.randbytes(1) + data[position:])
        case "zero" if data:
            start = draw.randrange(len(data))
            data[start : start + 64] = bytes(len(data[start : start + 64]))
            file.write_bytes(data)
        case "delete":
            file.unlink()
        case "swap":
            content = other.read_bytes()
            other.write_bytes(data)
            file.write_bytes(content)
        case "copy":
            other.write_bytes(data)
        case "exchange folders":
            spare = run / "spare"
            folder.rename(spare)
            if target != folder:
                target.rename(folder)
            spare.rename(target)
        case "rename folder":
            folder.rename(run / "ckpt" / f"{draw.randrange(9, 10**8):09d}")
        case "copy folder":
            shutil.copytree(
                folder, run / "ckpt" / f"{draw.randrange(9, 99):09d}", dirs_exist_ok=True
            )
        case "link":
            file.unlink()
            file.symlink_to(other)
        case "link folder" if target != folder:
            shutil.rmtree(folder)
            folder.symlink_to(target)
        case "empty":
            file.write_bytes(b"")
    return f"{kind} {file.relative_to(run)} {other.relative_to(run)} {folder.name} {target.name}"


def assert_nothing_wrong_is_loaded(pristine: Pristine, case: str) -> None:
    """Whatever is loaded is what was committed, and the newest intact commit is found."""
    intact = pristine.intact()
    store = CommitStore(QuickStorage(pristine.run), keep_last=9)
    try:
        found = store.latest()
    except StorageError:
        assert not intact, case
        return
    if found.commit is None:
        assert not intact, case
        return
    assert found.commit.step >= max(intact, default=0), case
    assert found.commit.metrics in (None, SCORES[found.commit.step]), case
    for step in STATES:
        try:
            loaded = store.load(step)
        except StorageError:
            assert step not in intact, case
            continue
        assert state_digest(loaded) == DIGESTS[step], case
        assert loaded.scalars == STATES[step].scalars, case
    best = store.best()
    if best is not None:
        assert best.metrics == SCORES[best.step], case
        assert best.step in intact, case


def test_random_damage(run: Path) -> None:
    pristine = Pristine(run)
    draw = random.Random(11)
    for number in range(MUTATIONS):
        done = [mutate(run, draw) for _ in range(draw.choice([1, 1, 2, 3]))]
        case = f"{number}: {'; '.join(done)}"
        assert_nothing_wrong_is_loaded(pristine, case)
        intact = pristine.intact()
        CommitStore(QuickStorage(run)).sweep()
        assert pristine.intact() == intact, case
        assert_nothing_wrong_is_loaded(pristine, case)
        pristine.restore()
    latest = CommitStore(QuickStorage(run)).latest()
    assert latest.commit is not None
    assert latest.rejected == ()


def test_every_byte_of_the_manifest_counts(run: Path) -> None:
    manifest = run / "ckpt" / "000000004" / "MANIFEST.json"
    content = manifest.read_bytes()
    store = CommitStore(QuickStorage(run), keep_last=9)
    for position in range(len(content)):
        for changed in (
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :],
            content[:position] + content[position + 1 :],
        ):
            manifest.write_bytes(changed)
            found = store.latest()
            assert found.commit is not None
            assert found.commit.step == 3, position
            assert len(found.rejected) == 1
    manifest.write_bytes(content)
    found = store.latest()
    assert found.commit is not None
    assert found.commit.step == 4


def test_truncation_anywhere_is_noticed(run: Path) -> None:
    store = CommitStore(QuickStorage(run), keep_last=9)
    for file in (run / "ckpt" / "000000004").iterdir():
        content = file.read_bytes()
        for length in range(0, len(content), 37):
            file.write_bytes(content[:length])
            found = store.latest()
            assert found.commit is not None
            assert found.commit.step == 3, (file.name, length)
        file.write_bytes(content)
