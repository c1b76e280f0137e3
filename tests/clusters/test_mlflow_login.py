"""The MLflow server of ``clusters/compose.yaml`` as it is started there: nobody is answered.

Its database is PostgreSQL, as there, where that is installed, and a file besides.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from orchestrator.data.demo.digits import Recipe, build_digits
from tests.cluster.test_run_through_ray import EXPERIMENT
from tests.support.user_command import finish, start
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow
pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")

ROOT = Path(__file__).parents[2]
PASSWORD = "0123456789abcdef"
#: Answered to anybody, by MLflow's own list: whether it lives, which version it is, and how it is
#: looked at.
PUBLIC = ("/health", "/static", "/favicon.ico", "/api/3.0/mlflow/server-info")
PUBLIC += ("/ajax-api/3.0/mlflow/server-info",)
#: Says every way and every path that the server knows, whoever may take it.
ROUTES = """
import json
from mlflow.server import app as flask
from mlflow.server.auth import routes
from mlflow.server.fastapi_app import app
found = {(way, rule.rule) for rule in flask.url_map.iter_rules() for way in rule.methods}
found |= {
    (way, route.path)
    for route in app.routes
    for way in getattr(route, "methods", None) or ()
}
paths = [path for path in vars(routes).values() if isinstance(path, str) and path.startswith("/")]
found |= {(way, path) for path in paths for way in ("GET", "POST", "PATCH", "DELETE")}
print(json.dumps(sorted(found)))
"""


@contextmanager
def postgres(folder: Path) -> Iterator[int]:
    """A server of PostgreSQL with the user, database and password of the file; its port."""
    # It refuses to run as root.
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as place:
        if user is not None:
            os.chown(place, user, -1)
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)  # Opened again, by that user, as /dev/stdin.
        first = ("--username=mlflow", "--auth=scram-sha-256", "--pwfile=/dev/stdin")
        with (folder / "password").open("rb") as password:
            subprocess.run(
                ["initdb", *first, "-D", f"{place}/data"],
                stdin=password,
                stdout=subprocess.DEVNULL,
                check=True,
                user=user,
                cwd=place,
            )
        port = free_port()
        options = ("-h", "127.0.0.1", "-p", str(port), "-k", place)
        with (folder / "postgres.log").open("wb") as log:
            server = subprocess.Popen(
                ["postgres", "-D", f"{place}/data", *options],
                stdout=log,
                stderr=log,
                user=user,
                cwd=place,
            )
        try:
            wait_for(lambda: make_database(port), 60, server, every=0.5)
            yield port
        finally:
            server.terminate()
            server.wait(30)


def make_database(port: int) -> bool:
    """Make the database of the file, which PostgreSQL's image does; whether that went."""
    psycopg2 = pytest.importorskip("psycopg2")
    login = {"host": "127.0.0.1", "port": port, "user": "mlflow", "password": PASSWORD}
    try:
        connection = psycopg2.connect(dbname="postgres", **login)
    except psycopg2.OperationalError:
        return False
    connection.autocommit = True
    connection.cursor().execute("CREATE DATABASE mlflow")
    connection.close()
    return True


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, str]]]:
    """Its address, and the environment of the service."""
    folder = tmp_path_factory.mktemp("mlflow")
    if request.param == "sqlite":
        yield from serve(folder, lambda _, name: f"sqlite:///{folder}/{name}.db")
        return
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        pytest.skip("needs the server of PostgreSQL: initdb and postgres")
    with postgres(folder) as port:
        yield from serve(folder, lambda uri, _: uri.replace("@postgres/", f"@127.0.0.1:{port}/"))


def serve(folder: Path, place: Callable[[str, str], str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Start it; ``place`` says where a database is here, of its address there and what it holds."""
    service = yaml.safe_load((ROOT / "clusters/compose.yaml").read_text())["services"]["mlflow"]
    login = (ROOT / "clusters/docker/mlflow_auth.ini").read_text()
    login = re.sub("(?<=database_uri = ).*", lambda found: place(found[0], "users"), login)
    (folder / "login.ini").write_text(login)
    port = free_port()
    environment = {
        **os.environ,
        **service["environment"],
        "MLFLOW_BACKEND_STORE_URI": place(
            service["environment"]["MLFLOW_BACKEND_STORE_URI"], "runs"
        ),
        "PGPASSWORD": PASSWORD,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "login.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "fedcba9876543210",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
    }
    _, _, command = service["command"][-1].partition("exec mlflow ")
    words = shlex.split(command)
    for option, value in {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--artifacts-destination": str(folder / "artifacts"),
    }.items():
        words[words.index(option) + 1] = value
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: asked(address + "/health") == 200, 180, process, every=0.5)
        yield address, environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def asked(url: str, *, way: str = "GET", user: str | None = None, password: str = "") -> int | None:
    """Status of the answer; None without one."""
    headers = {"Content-Type": "application/json"}
    if user is not None:
        word = b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {word}"
    body = None if way in ("GET", "HEAD") else b"{}"
    request = urllib.request.Request(url, data=body, headers=headers, method=way)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return None


def known(environment: dict[str, str]) -> list[tuple[str, str]]:
    """Each way and path, with something in the place of its parameters."""
    done = subprocess.run(
        [sys.executable, "-c", ROUTES], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return [(way, re.sub(r"<[^>]*>|\{[^}]*\}", "1", path)) for way, path in found]


def test_nobody_is_answered_without_the_password(server: tuple[str, dict[str, str]]) -> None:
    address, environment = server
    routes = known(environment)
    assert len({path for _, path in routes}) > 100
    answered, refused = {}, set()
    for way, path in routes:
        if path.startswith(PUBLIC) or way in ("HEAD", "OPTIONS"):
            continue
        for user in (None, "admin", "nobody"):
            status = asked(address + path, way=way, user=user, password="wrong")
            if status == 401:
                refused.add(path)
            elif status not in (404, 405):
                answered[way, path, user] = status
    assert answered == {}
    assert len(refused) > 100


def test_a_run_arrives_with_the_password(
    server: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, _ = server
    build_digits(tmp_path / "digits", Recipe(train=24, val=6, seed=3))
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    words = ("tiny.yaml", "train.max_steps=2", f"tracking.mlflow={address}")
    output = finish(start(tmp_path, *words, surroundings=login))
    assert PASSWORD not in output
    shipped = json.loads((tmp_path / "runs/tiny/mlflow.json").read_text())
    assert shipped["status"] == "FINISHED"
    assert any("weights" in path for path in shipped["artifacts"])
    url = f"{address}/api/2.0/mlflow/runs/get?run_id={shipped['run_id']}"
    assert asked(url, user="admin", password=PASSWORD) == 200
    assert asked(url) == 401
