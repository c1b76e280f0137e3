"""The whole state of another run to begin with: ``train.continue_from``.

Weights, optimizer, average and step are taken, so that the new run is where the other one was; its
schedule, data and everything else are its own. Like initial weights the state is identified by a
digest, and read only while the run has no checkpoint of its own.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from orchestrator.checkpoints.codec import TrainState, decode
from orchestrator.checkpoints.commit import CommitStore, Found
from orchestrator.checkpoints.initial_weights import InitialWeights
from orchestrator.checkpoints.manifest import MANIFEST_NAME, Manifest, read_verified, verify
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.storage.address import is_remote
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.run_files import LABEL_MAP, require_there
from orchestrator.storage.sealed import UnusableError

_KEY = "train.continue_from"

log = logging.getLogger(__name__)


def find_state(location: str, known: str | None = None) -> InitialWeights:
    """The newest checkpoint of a run, or the one that is named, with a digest of its files.

    Args:
        location: a run folder or one of its checkpoints, on a disk.
        known: digest of the checkpoint that was found here before, which is the one to take as long
            as the other run, which may have gone on since, has it.

    Raises:
        ConfigError: the location is in a bucket.
        DataError: there is no checkpoint that can be used.
        StorageError: there is nothing.
    """
    if is_remote(location):
        raise ConfigError(
            f"{_KEY}: {location} is in a bucket; allowed is a folder that every node sees. Next: "
            "copy that run, or one of its checkpoints, to such a folder and name it"
        )
    path = Path(location).absolute()
    require_there(path)
    if not (path / MANIFEST_NAME).is_file():
        store = CommitStore(LocalStorage(path)) if path.is_dir() else None
        for one in () if store is None or known is None else store.commits():
            if _digest(one.manifest) == known:
                return InitialWeights(str(one.path), known, "state")
        found = Found(None, ()) if store is None else store.latest()
        for rejected in found.rejected:
            log.warning("%s: not gone on from: %s", _KEY, rejected.describe())
        if found.commit is None:
            raise DataError(
                f"{_KEY}: {path} is neither a run with a checkpoint nor a checkpoint. Next: name "
                "the folder that training printed as `run folder`; of a file of weights, begin "
                "with train.init_from"
            )
        path = Path(found.commit.path)
    return InitialWeights(str(path), _digest(_manifest(path)), "state")


def load_state(source: InitialWeights, label_map: LabelMap) -> TrainState:
    """The state that :func:`find_state` has found.

    Args:
        source: what was found.
        label_map: classes of the run that begins.

    Raises:
        ConfigError: the other run has other classes.
        DataError: its files are gone, damaged, or not those that were found.
    """
    path = Path(source.path)
    manifest = _manifest(path)
    if _digest(manifest) != source.sha256:
        raise DataError(
            f"{_KEY}: {path} is another checkpoint than when this run was started. Next: see that "
            "all machines have the same folder"
        )
    storage, key = _place(path)
    try:
        files = {
            name: read_verified(storage, key, name, record)
            for name, record in manifest.files.items()
        }
    except (UnusableError, OSError) as error:
        raise DataError(f"{_KEY}: {path} cannot be read ({error})") from error
    theirs = LabelMap.from_json(files.pop(LABEL_MAP).decode())
    if theirs != label_map:
        raise ConfigError(
            f"{_KEY}: {path} was trained on the classes {list(theirs.names)} (ids "
            f"{list(theirs.ids)}), this experiment has {list(label_map.names)} (ids "
            f"{list(label_map.ids)}). Next: begin with its weights by train.init_from, which takes "
            "what does not depend on the classes"
        )
    return decode(files)


def _place(path: Path) -> tuple[LocalStorage, str]:
    """Where a checkpoint lies, which may be a link to one, such as one called best."""
    real = path.resolve()
    return LocalStorage(real.parent), real.name


def _manifest(path: Path) -> Manifest:
    storage, key = _place(path)
    try:
        return verify(storage, key, renamed=True)
    except (UnusableError, StorageError, OSError) as error:
        raise DataError(f"{_KEY}: {path} cannot be used ({error})") from error


def _digest(manifest: Manifest) -> str:
    lines = (f"{name} {record.sha256}\n" for name, record in sorted(manifest.files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
