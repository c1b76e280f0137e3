"""A server that speaks as much S3 as Arrow's client asks for; it keeps everything in memory.

``python -m tests.support.s3_server ADDRESS PORT`` runs one. Signatures are not looked at.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

_PAGE = 1000
_DATE = "2026-01-01T00:00:00.000Z"
_HTTP_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


class S3Server(ThreadingHTTPServer):
    """Buckets by name, each a dict of objects by key."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((address, port), _Handler)
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed leave without a word."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def setup(self) -> None:
        super().setup()
        # Small answers are not to wait for the acknowledgement of what went before.
        self.connection.setsockopt(6, 1, 1)

    def _place(self) -> tuple[str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        return bucket, key, dict(parse_qsl(parts.query, keep_blank_values=True))

    def _body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            pieces = []
            while size := int(self.rfile.readline().strip(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            data = b"".join(pieces)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return data
        content = bytearray()
        while True:
            line, _, data = data.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            if not size:
                return bytes(content)
            content += data[:size]
            data = data[size + 2 :]

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, text: str, status: int = 200) -> None:
        head = '<?xml version="1.0" encoding="UTF-8"?>'
        self._answer(status, f"{head}{text}".encode(), Content_Type="application/xml")

    def _missing(self, code: str) -> None:
        self._xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", 404)

    def _objects(self, bucket: str) -> dict[str, bytes] | None:
        return self.server.buckets.get(bucket)

    def do_PUT(self) -> None:
        bucket, key, query = self._place()
        body = self._body()
        with self.server.lock:
            if not key:
                self.server.buckets.setdefault(bucket, {})
            elif "partNumber" in query:
                self.server.uploads[query["uploadId"]][int(query["partNumber"])] = body
            elif (objects := self._objects(bucket)) is None:
                return self._missing("NoSuchBucket")
            else:
                objects[key] = body
        return self._answer(200, ETag=_etag(body))

    def do_POST(self) -> None:
        bucket, key, query = self._place()
        body = self._body()
        with self.server.lock:
            objects = self._objects(bucket)
            if objects is None:
                return self._missing("NoSuchBucket")
            if "uploads" in query:
                number = uuid.uuid4().hex
                self.server.uploads[number] = {}
                return self._xml(
                    f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}"
                    f"</Key><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
                )
            if "delete" in query:
                for found in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                    objects.pop(found, None)
                return self._xml("<DeleteResult></DeleteResult>")
            parts = self.server.uploads.pop(query["uploadId"])
            objects[key] = b"".join(parts[number] for number in sorted(parts))
        return self._xml(
            f"<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
            '<ETag>"done"</ETag></CompleteMultipartUploadResult>'
        )

    def do_DELETE(self) -> None:
        bucket, key, query = self._place()
        with self.server.lock:
            if "uploadId" in query:
                self.server.uploads.pop(query["uploadId"], None)
            else:
                (self._objects(bucket) or {}).pop(key, None)
        self._answer(204)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        bucket, key, query = self._place()
        with self.server.lock:
            objects = dict(self._objects(bucket) or {})
            if self._objects(bucket) is None:
                return self._missing("NoSuchBucket")
        if not key:
            return self._answer(200) if self.command == "HEAD" else self._list(objects, query)
        if key not in objects:
            return self._missing("NoSuchKey")
        data = objects[key]
        common = {"ETag": _etag(data), "Last_Modified": _HTTP_DATE, "Accept_Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            return self._answer(200, data, **common)
        start, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        where = f"bytes {start}-{last}/{len(data)}"
        return self._answer(206, data[start : last + 1], Content_Range=where, **common)

    def _list(self, objects: dict[str, bytes], query: dict[str, str]) -> None:
        prefix, mark = query.get("prefix", ""), query.get("delimiter", "")
        rows: dict[str, str] = {}
        for key in sorted(objects):
            if not key.startswith(prefix):
                continue
            inner, found, _ = key[len(prefix) :].partition(mark) if mark else (key, "", "")
            if found:
                name = prefix + inner + mark
                rows[name] = f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            else:
                rows[key] = (
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{_DATE}</LastModified>"
                    f"<ETag>{_etag(objects[key])}</ETag><Size>{len(objects[key])}</Size>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
        after = query.get("continuation-token", "")
        names = [name for name in sorted(rows) if name > after]
        most = int(query.get("max-keys", _PAGE))
        page, more = names[:most], len(names) > most
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self._xml(
            f"<ListBucketResult><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>{most}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{''.join(rows[name] for name in page)}</ListBucketResult>"
        )


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


if __name__ == "__main__":
    S3Server(sys.argv[1], int(sys.argv[2])).serve_forever()
