"""A bucket to test with: of a server in this process, or of the one that ``S3_ENDPOINT`` names.

For the latter, ``pip install 'moto[server]<5.2'; moto_server -p 5000`` is one, MinIO another; later
versions of moto answer pyarrow's multipart uploads with an element that it takes for an error
(getmoto/moto#10055).
"""

from __future__ import annotations

import os
import threading
import uuid
from functools import cache

import pyarrow.fs
import pytest

from tests.support.s3_server import S3Server


@cache
def _endpoint() -> str:
    """Address and port of the server, which is there from now on."""
    named = os.environ.get("S3_ENDPOINT")
    if named:
        return named
    server = S3Server()
    threading.Thread(target=server.serve_forever, name="s3", daemon=True).start()
    return f"127.0.0.1:{server.server_port}"


def fresh_location(monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a prefix of its own in a bucket that is made if need be; sets the keys for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    options = f"region=us-east-1&scheme=http&endpoint_override={_endpoint()}"
    maker, _ = pyarrow.fs.FileSystem.from_uri(f"s3://runs?{options}&allow_bucket_creation=true")
    maker.create_dir("runs")
    return f"s3://runs/{uuid.uuid4().hex}?{options}"
