"""Submission refuses what would go wrong on the cluster, and passes on how a job ended."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from orchestrator.cluster import submission
from orchestrator.cluster.submission import (
    Submission,
    connect,
    follow,
    prepare,
    short_grace,
    submit,
)
from orchestrator.errors import ConfigError, OrchestratorError, SecurityError
from orchestrator.tracking.git_info import GitInfo, git_info
from tests.support.job_cluster import free_port, job_cluster
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
SHARED = ["storage=/shared/runs", "tracking.mlflow=null", "data.root=/shared/data"]
EXPERIMENT = textwrap.dedent(
    """\
    name: sent
    detector: {name: ssd}
    data:
      root: data
      train: {images: images, annotations: train.json}
      val: {images: images, annotations: val.json}
    train:
      epochs: 1
      batch_size: 2
      optimizer: {name: sgd, lr: 0.1}
    """
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an experiment and a driver that says what it was given, then exits with 75."""
    driver = tmp_path / "orchestrator" / "run.py"
    driver.parent.mkdir()
    (driver.parent / "__init__.py").touch()
    driver.write_text("import sys\nprint('driver got', sys.argv[1:], flush=True)\nsys.exit(75)\n")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "sent.yaml").write_text(EXPERIMENT)
    return tmp_path


def prepared(project: Path, *overrides: str, **options: Any) -> Submission:
    return prepare(project / "experiments/sent.yaml", overrides, working_dir=project, **options)


def test_the_entrypoint_runs_the_file_where_it_will_lie(project: Path) -> None:
    submission = prepared(project, *SHARED, "train.optimizer={name: adamw, lr: 1e-3}")
    assert submission.entrypoint == (
        "python -m orchestrator.run experiments/sent.yaml storage=/shared/runs "
        "tracking.mlflow=null data.root=/shared/data 'train.optimizer={name: adamw, lr: 1e-3}'"
    )
    assert submission.working_dir == project


def test_results_of_earlier_commands_stay_behind(project: Path) -> None:
    names = ("predictions.json", "predictions.json.parts/1", "drawn/x.jpg")
    for name in names:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(bytes(100_000))
    before = prepared(project, *SHARED)
    for name in names:
        (project / name).unlink()
    assert prepared(project, *SHARED).bytes == before.bytes < 100_000


def test_a_mistake_in_the_experiment_is_found_before_anything_is_sent(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"epochs.*epoch|epoch.*epochs"):
        prepared(project, *SHARED, "train.epoch=3")


def test_everything_that_would_go_with_the_job_is_named_at_once(project: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        prepared(project)
    text = str(refusal.value)
    assert "storage: 'runs' is relative" in text
    assert "tracking.mlflow: 'sqlite:///runs/mlflow.db' is relative" in text
    assert "data.train.annotations: 'data/train.json' is not uploaded" in text
    assert "data.val.annotations: 'data/val.json' is not uploaded" in text


def test_weights_and_working_folders_must_be_where_the_job_is(project: Path) -> None:
    (project / ".gitignore").write_text("/runs/\n")
    for folder in ("runs/first", "weights"):
        (project / folder).mkdir(parents=True)
        (project / folder / "w.safetensors").touch()
    for weights in ("weights", "weights/w.safetensors", "./weights/", "/shared/w", "s3://b/w"):
        assert prepared(project, *SHARED, f"train.init_from={weights}").bytes > 0
    with pytest.raises(ConfigError, match=r"^train\.init_from: 'runs/first' is not uploaded"):
        prepared(project, *SHARED, "train.init_from=runs/first")
    bucket = ["storage=s3://bucket/runs", *SHARED[1:]]
    with pytest.raises(ConfigError, match=r"^scratch: 'runs' is relative"):
        prepared(project, *bucket)
    assert prepared(project, *bucket, "scratch=/shared/scratch").bytes > 0


def test_data_that_is_uploaded_may_stay_where_it_is(project: Path) -> None:
    (project / "data").mkdir()
    for name in ("train.json", "val.json", "images/a.jpg"):
        (project / "data" / name).parent.mkdir(exist_ok=True)
        (project / "data" / name).touch()
    assert prepared(project, *SHARED[:2]).bytes > 0
    with pytest.raises(ConfigError, match="not uploaded"):
        prepared(project, *SHARED[:2], excludes=["data"])


@pytest.mark.parametrize(
    ("uri", "accepted"),
    [
        ("sqlite:////shared/mlflow.db", True),
        ("sqlite:///mlflow.db", False),
        ("http://mlflow.example:5000", True),
    ],
)
def test_where_results_are_tracked(project: Path, uri: str, accepted: bool) -> None:
    overrides = [SHARED[0], f"tracking.mlflow={uri}", SHARED[2]]
    if accepted:
        assert prepared(project, *overrides).bytes > 0
    else:
        with pytest.raises(ConfigError, match=r"tracking\.mlflow: .* is relative"):
            prepared(project, *overrides)


def test_an_experiment_that_stays_behind_is_refused(project: Path, tmp_path: Path) -> None:
    (project / ".rayignore").write_text("experiments\n")
    with pytest.raises(ConfigError, match=r"sent\.yaml: not among the \d+ files"):
        prepared(project, *SHARED)
    (project / ".rayignore").unlink()
    inner = project / "orchestrator"
    with pytest.raises(ConfigError, match=r"sent\.yaml: not among the \d+ files"):
        prepare(project / "experiments/sent.yaml", SHARED, working_dir=inner)


@pytest.fixture
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_token(no_address: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("no_token")
@pytest.mark.parametrize(
    "address", ["http://10.1.2.3:8265", "https://ray.example", "http://0.0.0.0:1"]
)
def test_another_machine_is_not_asked_without_a_token(address: str) -> None:
    with pytest.raises(SecurityError, match="no token is in use"):
        connect(address)


@pytest.mark.usefixtures("no_token")
@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "auto", "http://[::1", "http://h:abc",
        "http://h:99999", "http://h:0",
    ],
)  # fmt: skip
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed: http://HOST:PORT"):
        connect(address)


@pytest.mark.usefixtures("no_token")
def test_the_token_file_is_closed_to_others(tmp_path: Path) -> None:
    # As `ray get-auth-token --generate` leaves it.
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("b9a1" * 16)
    token.chmod(0o644)
    with pytest.raises(ConfigError, match="no Ray job server answers"):
        connect(f"http://127.0.0.1:{free_port()}")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


@pytest.mark.usefixtures("no_token")
def test_a_token_is_used_that_cannot_be_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As secrets of Docker are: mounted for reading alone, with mode and user of the machine."""
    token = tmp_path / "ray_token"
    token.write_text("b9a1" * 16)
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))

    def refuse(path: Path, mode: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    assert submission._token() == "b9a1" * 16
    token.write_bytes(b"\xff\xfe")
    assert submission._token() is None


@pytest.mark.usefixtures("no_address")
def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no Ray job server answers at http://127"):
        connect(f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match="no Ray job server answers"):
        connect()


class Server:
    """Takes a job and remembers it."""

    def submit_job(self, **job: Any) -> str:
        self.job = job
        return "job-1"


def test_a_job_is_told_the_commit_that_its_folder_has_lost(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(
            command, cwd=project, check=True, capture_output=True, text=True
        ).stdout.strip()

    server = Server()
    submit(server, prepared(project, *SHARED))
    # Of Ray's own three seconds a job would lose the step that it was told is committed.
    assert server.job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}

    (project / "setup.cfg").touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    commit = git("rev-parse", "HEAD")
    for change, dirty in (("", False), ("[metadata]\n", True)):
        (project / "setup.cfg").write_text(change)
        submit(server, prepared(project, *SHARED))
        assert server.job["runtime_env"]["working_dir"] == str(project)
        for name, value in server.job["runtime_env"]["env_vars"].items():
            monkeypatch.setenv(name, value)
        elsewhere = tmp_path_factory.mktemp("uploaded") / "run.py"
        assert git_info(elsewhere) == GitInfo(commit, dirty=dirty)


def test_a_line_that_breaks_while_the_job_is_sent_is_no_bug(project: Path) -> None:
    class Breaking:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def submit_job(self, **job: Any) -> str:
            raise self.error

    sent = prepared(project, *SHARED)
    with pytest.raises(ConfigError, match=r"did not take the job: broken pipe.*ray job list"):
        submit(Breaking(requests.ConnectionError("broken pipe\nand more")), sent)
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "setup.cfg")
    with pytest.raises(FileNotFoundError, match=r"setup\.cfg"):
        submit(Breaking(missing), sent)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of its own that asks for a token, as clusters/README.md starts it."""
    with job_cluster(monkeypatch) as address:
        yield address


@pytest.mark.ray
@pytest.mark.slow
def test_nothing_but_metrics_and_the_login_page_answers_without_the_token(cluster: str) -> None:
    home = os.environ["HOME"]

    def listened() -> set[int]:
        ports = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if home in " ".join(process.cmdline()):
                    found = process.net_connections("tcp")
                    ports |= {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}
        return ports

    # The agents of a node come after its job server.
    def settled() -> set[int]:
        before = listened()
        time.sleep(3)
        return before if len(before) > 5 and listened() == before else set()

    ports = wait_for(settled, 90)
    answers = {}
    for port in ports:
        for path in ("", "api/version", "api/jobs/", "metrics", "nodes"):
            # What speaks gRPC alone ends the connection.
            with contextlib.suppress(requests.RequestException):
                answer = requests.get(f"http://127.0.0.1:{port}/{path}", timeout=5)
                # The page that asks for the token is a file of Ray's and says nothing.
                public = answer.text.startswith(("# HELP", "<!doctype html>"))
                if answer.status_code < 400 and not public:
                    answers[port, path] = answer.text[:100]
    assert answers == {}
    control = next(
        word.partition("=")[2]
        for process in psutil.process_iter(["cmdline"])
        for word in process.info["cmdline"] or ()
        if word.startswith("--gcs-address=") and home in " ".join(process.info["cmdline"])
    )
    asking = (
        "from ray._raylet import GcsClient; "
        f"print(GcsClient(address={control!r}).internal_kv_keys(b'', None, 10))"
    )
    for variables in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        environment = {**os.environ, **variables}
        environment.pop("RAY_AUTH_TOKEN_PATH")
        done = subprocess.run(
            [sys.executable, "-c", asking], env=environment, capture_output=True, timeout=60
        )
        assert done.returncode != 0
        assert b"nauthenticated" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_is_sent_followed_and_its_exit_code_returned(
    cluster: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(cluster)
    job = submit(client, prepared(project, *SHARED))
    with pytest.raises(OrchestratorError, match=f"{job} failed") as failure:
        follow(client, job)
    assert failure.value.exit_code == 75
    assert f"driver got {['experiments/sent.yaml', *SHARED]}" in capsys.readouterr().out


def test_a_job_that_would_hardly_be_waited_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    assert short_grace() is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "kills this job after 3 s" in str(short_grace())
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "120")
    assert short_grace() is None


PLACES = {
    "data.train.images": "data/images",
    "data.val.images": "data/images",
    "data.train.annotations": "data/train.json",
    "data.val.annotations": "data/val.json",
    "data.train.shards": "data/shards",
    "data.classes": "data/names.txt",
    "data.sources.0.images": "more/images",
    "data.sources.0.annotations": "more/train.json",
    "data.sources.0.classes": "more/names.txt",
    "data.cache": "cache",
    "train.init_from": "weights.safetensors",
    "storage": "runs",
    "scratch": "scratch",
    "tracking.mlflow": "sqlite:///runs/mlflow.db",
}


@pytest.mark.parametrize("key", PLACES)
def test_every_place_that_an_experiment_names_is_looked_at(project: Path, key: str) -> None:
    images = project / "there"
    for name in ("a.jpg", "train.json", "val.json"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).touch()
    sent = [
        "data.root=.",
        *(f"data.{split}.images=there" for split in ("train", "val")),
        *(f"data.{split}.annotations=there/{split}.json" for split in ("train", "val")),
        "tracking.mlflow=null",
        "storage=s3://bucket/runs" if key == "scratch" else "storage=/shared/runs",
        "scratch=/shared/scratch",
        "data.format=voc",
    ]
    if "sources" in key:
        sent.append("data.sources=[{images: there, annotations: there/train.json}]")
    assert prepared(project, *sent).files > 3
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(key)}: '{re.escape(PLACES[key])}'"
    ) as info:
        prepared(project, *sent, f"{key}={PLACES[key]}")
    assert len(str(info.value).splitlines()) == 1


def test_the_places_that_a_sweep_tries_are_looked_at(project: Path) -> None:
    sweep = "sweep={search: grid, space: {data.root: {choice: [/shared/a, here]}}}"
    with pytest.raises(ConfigError, match=r"data\.train\.images: 'here/images' is not uploaded"):
        prepared(project, *SHARED, sweep)
    assert prepared(project, *SHARED, sweep.replace("here", "/shared/b")).files > 0


def test_published_weights_are_no_place(project: Path) -> None:
    assert prepared(project, *SHARED, "train.init_from=torchvision:ssd300_vgg16").files > 0


def test_what_is_uploaded_is_said(project: Path) -> None:
    (project / "big.bin").write_bytes(bytes(300_000))
    text = prepared(project, *SHARED).describe()
    # experiments/sent.yaml, orchestrator/__init__.py, orchestrator/run.py and the big one.
    assert text.startswith(f"4 files of {project}, 0.3 MiB; the biggest are big.bin 0.3 MiB, ")


@pytest.mark.parametrize("seconds", ["3", "soon"])
def test_a_grace_too_short_is_refused(
    project: Path, seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", seconds)
    with pytest.raises(ConfigError, match="allowed are 120 seconds"):
        prepared(project, *SHARED)
