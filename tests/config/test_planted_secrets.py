"""Twenty secrets where people put them: none appears in anything that a run says or leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.credentials import holds_secret, mask, names_secret
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.errors import ConfigError
from orchestrator.tracking.events import EventLog
from tests.support.small_run import make_run
from tests.support.user_command import finish, result, start

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "experiments" / "quickstart.yaml")
#: No word of any message, and nothing that a file holds by chance.
SECRET = "Zq7Planted"

#: Key and value; every kind of place that can carry a secret.
PLANTED = [
    ("data.train.shards", f"s3://KEY:{SECRET}@bucket/train"),
    ("data.val.shards", f"s3://{SECRET}@bucket/val"),
    ("data.train.shards", f"s3://KEY:{SECRET}/with+slash@bucket/train"),
    ("data.root", f"s3://bucket/x?access_key={SECRET}"),
    ("data.root", f"https://host/x?X-Amz-Signature={SECRET}"),
    ("data.root", f"https://host/x?X-Amz-Credential={SECRET}&X-Amz-Date=1"),
    ("data.classes", f"https://host/names.txt?token={SECRET}"),
    ("data.cache", f"gs://bucket/x?secret_key={SECRET}"),
    ("train.init_from", f"https://{SECRET}@host/weights.pth"),
    ("train.init_from", f"https://account.blob/x?sv=2024&sig={SECRET}"),
    ("storage", f"s3://bucket/runs?AWSAccessKeyId={SECRET}"),
    ("storage", f"s3://bucket/runs?region=eu&session_token={SECRET}"),
    ("scratch", f"file://user:{SECRET}@host/x"),
    ("tracking.mlflow", f"https://{SECRET}@mlflow"),
    ("tracking.mlflow", f"postgresql://mlflow:{SECRET}@db/mlflow"),
    ("tracking.mlflow", f"mysql+pymysql://db/mlflow?password={SECRET}"),
    ("tracking.mlflow", f"https://mlflow/#access_token={SECRET}"),
    ("tracking.experiment", f"see https://me:{SECRET}@wiki"),
    ("cluster.address", f"ray://user:{SECRET}@10.0.0.1:10001"),
    ("cluster.address", f"ray://10.0.0.1:10001?auth_token={SECRET}"),
    ("data.root", f"s3://bucket/x?api-key={SECRET}"),
    ("nokey", f"redis://:{SECRET}@host:6379"),
    ("sweep", f"{{search: grid, space: {{data.root: {{choice: ['s3://K:{SECRET}@b/x', y]}}}}}}"),
]


@pytest.mark.parametrize("verb", [["run"], ["config", "show"], ["check"], ["submit"]], ids=str)
@pytest.mark.parametrize(("key", "value"), PLANTED)
def test_a_secret_is_refused_wherever_it_stands(verb, key, value, capsys):
    assert main([*verb, RECIPE, f"{key}={value}"]) == 64
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.parametrize(("key", "value"), PLANTED)
def test_a_secret_in_a_file_is_refused(key, value, tmp_path, capsys):
    section, _, name = key.partition(".")
    lines = [f"extends: {RECIPE}"]
    lines += [f"{section}: {{{name}: {value!r}}}"] if name else [f"{section}: {value!r}"]
    file = tmp_path / "planted.yaml"
    file.write_text("\n".join(lines).replace("'{", "{").replace("}'", "}"))
    assert main(["run", str(file)]) == 64
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "words",
    [
        ["submit", RECIPE, "--address", f"http://user:{SECRET}@127.0.0.1:1"],
        ["evaluate", f"s3://K:{SECRET}@bucket/run"],
        ["predict", f"s3://K:{SECRET}@bucket/run", "images"],
        ["status", f"s3://K:{SECRET}@bucket/run"],
        ["report", f"s3://K:{SECRET}@bucket/run"],
        ["export", f"s3://K:{SECRET}@bucket/run", "out.onnx"],
        ["run", RECIPE, f"--token={SECRET}"],
        ["run", f"https://me:{SECRET}@host/experiment.yaml"],
        ["check-cluster", f"https://me:{SECRET}@host/cluster.yaml"],
    ],
    ids=lambda words: words[0],
)
def test_no_verb_repeats_what_it_was_given(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) != 0
    assert SECRET not in "".join(capsys.readouterr())


def test_errors_notes_and_warnings_are_masked(tmp_path, capsys):
    address = f"s3://KEY:{SECRET}@bucket"
    assert SECRET not in str(ConfigError(f"cannot read {address}"))
    log = EventLog(tmp_path / "events.jsonl")
    log.note("restart", f"OSError: {address}?x=1", step=0)
    log.close()
    assert SECRET not in (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SECRET@bucket/x", "s3://***@bucket/x"),
        ("a s3://k@b, then ray://u:p@h:1", "a s3://***@b, then ray://***@h:1"),
        ("https://h/p?a=1&X-Amz-Signature=ab&b=2", "https://h/p?a=1&X-Amz-Signature=***&b=2"),
        ("https://h/p#access_token=ab", "https://h/p#access_token=***"),
        ("AWS_SECRET_ACCESS_KEY=ab PATH=/bin", "AWS_SECRET_ACCESS_KEY=*** PATH=/bin"),
        ("Authorization: Bearer abcdefghij", "Authorization: Bearer ***"),
        ("key AKIAIOSFODNN7EXAMPLE here", "key *** here"),
        ("train.optimizer.lr=0.1", "train.optimizer.lr=0.1"),
        ("http://host:5000/a@b?region=eu", "http://host:5000/a@b?region=eu"),
    ],
)
def test_what_is_masked(text, shown):
    assert mask(text) == shown
    assert mask(shown) == shown


def test_names_of_secrets_and_of_where_they_lie():
    secret = ["POSTGRES_PASSWORD", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "api_key", "DB_PWD"]
    plain = ["POSTGRES_PASSWORD_FILE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "monkey", "lr"]
    assert [name for name in secret if not names_secret(name)] == []
    assert [name for name in plain if names_secret(name)] == []
    assert not holds_secret("postgresql://mlflow@db/mlflow")


EXPERIMENT = """\
# Read from s3://KEY:Zq7Planted@bucket once; password=Zq7Planted
name: tiny
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1}
data:
  root: digits
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train: {epochs: 1, batch_size: 4, optimizer: {name: adamw, lr: 0.001}}
tracking: {mlflow: "sqlite:///mlflow.db", experiment: tests}
"""

#: What a run needs for stores and servers, and may find in its surroundings.
VARIABLES = {
    "AWS_ACCESS_KEY_ID": f"{SECRET}1",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}2",
    "AWS_SESSION_TOKEN": f"{SECRET}3",
    "MLFLOW_TRACKING_URI": f"https://me:{SECRET}4@mlflow",
    "MLFLOW_TRACKING_USERNAME": f"{SECRET}5",
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}6",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}7",
    "MLFLOW_RUN_ID": f"https://me:{SECRET}8@host",
    "RAY_AUTH_TOKEN": f"{SECRET}9" + "0" * 32,
    "GOOGLE_API_KEY": f"{SECRET}10",
    "PGPASSWORD": f"{SECRET}11",
    "DATABASE_URL": f"postgresql://u:{SECRET}12@db/x",
    "http_proxy_password": f"{SECRET}13",
    "HF_TOKEN": f"{SECRET}14",
    "WANDB_API_KEY": f"{SECRET}15",
    "AZURE_STORAGE_KEY": f"{SECRET}16",
    "GITHUB_TOKEN": f"{SECRET}17",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": f"{SECRET}18",
}


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_leaves_none_of_them(tmp_path, monkeypatch):
    build_digits(tmp_path / "digits", Recipe(train=8, val=4, seed=3))
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    output = finish(start(tmp_path, "tiny.yaml"))
    assert result(tmp_path, "tiny")["state"] == "done"
    assert SECRET not in output
    assert holding(tmp_path) == []
    for token in tmp_path.rglob("auth_token"):
        assert not token.stat().st_mode & 0o077


def test_a_run_in_this_process_leaves_none_of_them(tmp_path, monkeypatch, capfd):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    shorter = ["epochs=1", "evaluate_every_epochs=1", "checkpoint.every_epochs=1"]
    run = make_run(tmp_path, *(f"train.{each}" for each in shorter))
    assert (run / "result.json").is_file()
    assert SECRET not in "".join(capfd.readouterr())
    assert holding(tmp_path) == []


def holding(folder: Path) -> list[str]:
    """Files below a folder that hold the secret, but for the experiment it was planted in."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "tiny.yaml" and SECRET.encode() in path.read_bytes()
    ]
