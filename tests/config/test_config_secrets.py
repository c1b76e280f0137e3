"""Keys in addresses: refused wherever an address stands, and never printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.config.resolve import load_experiment
from orchestrator.credentials import holds_secret, mask
from orchestrator.errors import ConfigError

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "experiments" / "quickstart.yaml")

SECRETS = [
    "s3://KEY:S3CR3T@bucket/x",
    "s3://S3CR3T@bucket/x",
    "gs://bucket/x?secret_key=S3CR3T",
    "s3://bucket/x?region=eu&access_key=S3CR3T",
    "http://S3CR3T@host:5000",
    "https://user:S3CR3T@host",
    "https://host/?token=S3CR3T",
    "postgresql://user:S3CR3T@db/mlflow",
    "postgresql+psycopg2://db/mlflow?user=u&password=S3CR3T",
    "mysql://db/mlflow?PassWord=S3CR3T&x=1",
    # Signs that should have been escaped: databases are reached by such addresses all the same.
    "postgresql://user:a#S3CR3T@db/mlflow",
    "mysql+pymysql://user:a?S3CR3T@db/mlflow",
    "postgresql://user:it's-S3CR3T@db/mlflow",
    "postgresql://user:p@S3CR3T@db/mlflow",
    "postgresql://user:a/b#S3CR3T@db/mlflow",
    "s3://KEY:a/p@S3CR3T@bucket/x",
    "redis://:#S3CR3T@host",
    # As SQLAlchemy writes the addresses of SQL Server.
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dsa%3BPWD%3DS3CR3T",
    "mssql+pyodbc:///?odbc_connect=pwd%3dS3CR3T%3buid%3dsa",
    # Without a scheme it is no address, and is shown to say so.
    "mlflow:S3CR3T@db.example.org/mlflow",
    "user:S3CR3T@10.0.0.1:5432",
]


@pytest.mark.parametrize("address", SECRETS)
@pytest.mark.parametrize(
    "key", ["data.train.shards", "data.root", "train.init_from", "storage", "tracking.mlflow"]
)
def test_a_key_in_an_address_is_refused_and_not_repeated(key, address, capsys):
    assert main(["config", "show", RECIPE, f"{key}={address}"]) == 64
    assert "S3CR3T" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("address", SECRETS)
def test_usage_errors_and_variables_do_not_repeat_it_either(address, capsys, monkeypatch):
    assert main(["run", RECIPE, f"--data.root={address}"]) == 64
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert main(["config", "show", RECIPE]) == 0  # The file says where to.
    assert main(["config", "show", RECIPE, "data.root=x", f"nokey={address}"]) == 64
    assert "S3CR3T" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user@db/mlflow",
        "mysql+pymysql://user@db/mlflow",
        "sqlite:///runs/mlflow.db?timeout=60",
        "https://host:5000/path?workspace=a",
        "s3://bucket/x?region=eu-central-1&endpoint_override=host:9000",
        "/data/a@b/x?key",
        "user@host:/folder",
        "name:tag@sha256:0123abcd",
        "mailto:me@example.org",
        "user@host.org:folder/a:b@c",
        "http://host:5000?mail=a@b",
        "https://host?mail=a@b",
        "http://[::1]:5000/a@b",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dsa",
    ],
)
def test_an_address_without_a_key_is_one(address):
    assert not holds_secret(address)
    assert mask(address).replace("***", "user") == address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"a":"s3://x","b":"s3://K:S3CR3T@b"}', '{"a":"s3://x","b":"s3://***@b"}'),
        ("s3://a, s3://K:S3CR3T@b/x@2x.png", "s3://a, s3://***@b/x@2x.png"),
        ("found 'mysql://u:a#b@db/x', allowed", "found 'mysql://***@db/x', allowed"),
        ("'http://host:5000','me@there'", "'http://host:5000','me@there'"),
    ],
)
def test_what_stands_beside_an_address_is_shown(text, shown):
    assert mask(text) == shown


def test_the_environment_says_where_to_unless_the_experiment_does(tmp_path, monkeypatch):
    lines = Path(RECIPE).read_text().splitlines(keepends=True)
    silent = tmp_path / "silent.yaml"
    silent.write_text("".join(line for line in lines if not line.startswith("tracking:")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    found = load_experiment(silent)
    assert found.experiment.tracking.mlflow == "http://host:5000"
    assert found.experiment.tracking.experiment == "theirs"
    assert found.origins["tracking.mlflow"] == "environment MLFLOW_TRACKING_URI"
    assert load_experiment(silent, ["tracking.mlflow=null"]).experiment.tracking.mlflow is None
    assert load_experiment(RECIPE).experiment.tracking.mlflow == "sqlite:///runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:S3CR3T@host")
    with pytest.raises(ConfigError, match=r"environment MLFLOW_TRACKING_URI .*holds a password"):
        load_experiment(silent)
