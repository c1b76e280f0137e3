"""The user's commands on shards in a bucket: written, trained on, killed, and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.storage.address import below
from tests.support.buckets import fresh_location
from tests.support.user_command import finish, kill_after, result, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EXPERIMENT = """
name: tiny
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data: %s
train:
  epochs: 6
  batch_size: 4
  optimizer: {name: adamw, lr: 0.001}
  evaluate_every_epochs: 3
  checkpoint: {every_steps: 2, keep_last: 3, keep_best: 2}
  log_every_steps: 1
storage: runs
tracking: {mlflow: null}
"""


def test_a_run_on_shards_in_a_bucket_survives_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_digits(tmp_path / "digits", Recipe(train=24, val=6, seed=3))
    bucket = fresh_location(monkeypatch)
    words = ["shard", "digits", bucket, "--from", "coco", "--images-per-shard", "2"]
    said = finish(start(tmp_path, *words, module="orchestrator.cli.main"))
    assert "train: 24 images in 12 shards" in said
    data = {name: {"shards": below(bucket, name)} for name in ("train", "val")}
    section = json.dumps({**data, "window": 4, "cache": "cache"})
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT % section)
    # Nothing but the bucket knows the images from here on.
    shutil.rmtree(tmp_path / "digits")

    finish(start(tmp_path, "tiny.yaml", "name=whole"))
    whole = result(tmp_path, "whole")
    assert (whole["state"], whole["steps"], whole["resumed_from"]) == ("done", 36, 0)
    log = tmp_path / "runs" / "tiny" / "events.jsonl"
    for step in (5, 17):
        kill_after(start(tmp_path, "tiny.yaml"), log, step)
        # The next start is on a machine that has fetched nothing yet.
        shutil.rmtree(tmp_path / "cache")
    finish(start(tmp_path, "tiny.yaml"))
    ended = result(tmp_path, "tiny")
    assert 14 <= ended["resumed_from"] < 36
    same = ("state", "steps", "weights_sha256", "data_digest", "metrics", "best_metrics")
    assert {name: ended[name] for name in same} == {name: whole[name] for name in same}
    assert list((tmp_path / "cache").glob("*/*.parquet"))
