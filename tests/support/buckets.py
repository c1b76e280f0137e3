"""A bucket to test with: a server on loopback that speaks S3, named by ``S3_ENDPOINT``.

``python -m tests.support.s3_server 127.0.0.1 5000`` is one that needs nothing else.
``pip install 'moto[server]<5.2'; moto_server -p 5000`` is another, MinIO a third; later versions of
moto answer pyarrow's multipart uploads with an element that it takes for an error
(getmoto/moto#10055).
"""

from __future__ import annotations

import os
import uuid

import pyarrow.fs
import pytest

ENDPOINT = os.environ.get("S3_ENDPOINT")
needs_bucket = pytest.mark.skipif(ENDPOINT is None, reason="S3_ENDPOINT names no server")


def fresh_location(monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a prefix of its own in a bucket that is made if need be; sets the keys for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    options = f"region=us-east-1&scheme=http&endpoint_override={ENDPOINT}"
    maker, _ = pyarrow.fs.FileSystem.from_uri(f"s3://runs?{options}&allow_bucket_creation=true")
    maker.create_dir("runs")
    return f"s3://runs/{uuid.uuid4().hex}?{options}"
