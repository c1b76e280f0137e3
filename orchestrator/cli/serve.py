"""``orchestrator serve``: detections over HTTP."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.cli._shared.detector import (
    add_detect_options,
    add_source_options,
    detect_options,
    load,
    require_source,
    split_overrides,
)
from orchestrator.cli._shared.parser import COUNT, Parser, number_between
from orchestrator.errors import ConfigError, SecurityError

_TOKEN_VARIABLE = "ORCHESTRATOR_SERVE_TOKEN"
_MIB = 2**20


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop."""
    parser = Parser(
        prog="orchestrator serve",
        description="answer POST /predict, whose body is an image file, with its detections; and "
        "GET /health, /metrics and /about. Ctrl-C or SIGTERM ends it",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|CHECKPOINT|WEIGHTS [key.path=value ...]",
        help="the detector",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="to listen at; one that other machines reach needs a token (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        type=number_between(0, 65535, whole=True),
        default=8000,
        metavar="N",
        help="0: any free one (default: 8000)",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the token that clients send as `Authorization: Bearer TOKEN` (default: the variable "
        f"{_TOKEN_VARIABLE})",
    )
    parser.add_argument(
        "--workers", type=COUNT, default=1, metavar="N", help="processes (default 1)"
    )
    parser.add_argument(
        "--threads", type=COUNT, default=1, metavar="N", help="CPU threads of each (default 1)"
    )
    parser.add_argument("--batch", type=COUNT, default=8, metavar="N", help="images at a time")
    parser.add_argument(
        "--wait-ms",
        type=number_between(0, 10_000),
        default=10.0,
        metavar="MS",
        help="for a batch to become full (default: 10)",
    )
    limits = parser.add_argument_group("limits, beyond which a request is refused")
    for name, default, text in (
        ("image-mib", 16, "bytes of an image, in MiB"),
        ("megapixels", 32, "pixels of an image, in millions"),
        ("pending", 4096, "requests that wait"),
        ("pending-mib", 512, "bytes of all images that wait, in MiB"),
    ):
        limits.add_argument(
            f"--max-{name}", type=COUNT, default=default, metavar="N", help=f"{text} ({default})"
        )
    add_source_options(parser)
    add_detect_options(parser)
    arguments = parser.parse_args(argv)
    overrides, words = split_overrides(arguments.words)
    if len(words) != 1:
        raise ConfigError(f"{parser.prog}: expected one detector, found {len(words)}")
    return _serve(words[0], overrides, arguments)


def _serve(source: str, overrides: list[str], arguments: Any) -> int:
    from orchestrator.serving.service import Limits, token_digest

    host = "127.0.0.1" if arguments.host == "localhost" else arguments.host
    token_sha256 = token_digest(_token(arguments.token_file), host)
    require_source(source)

    from orchestrator.serving.serving import ServeJob, require_serve_packages, serve_detector

    require_serve_packages()
    loaded = load(source, overrides, arguments)
    job = ServeJob(
        loaded=loaded,
        how=detect_options(loaded, arguments),
        batch_size=arguments.batch,
        wait_seconds=arguments.wait_ms / 1000,
        threads=arguments.threads,
        limits=Limits(
            max_bytes=arguments.max_image_mib * _MIB,
            max_pixels=arguments.max_megapixels * 1_000_000,
            max_pending=arguments.max_pending,
            max_pending_bytes=arguments.max_pending_mib * _MIB,
        ),
        token_sha256=token_sha256,
    )
    serve_detector(
        job,
        host,
        arguments.port,
        workers=arguments.workers,
        on_ready=lambda url: print(f"serving {loaded.title}\nat {url}", flush=True),
    )
    return 0


def _token(file: Path | None) -> str | None:
    """What the file or the variable holds; None where there is neither.

    Raises:
        ConfigError: the file cannot be read.
        SecurityError: others may read it.
    """
    if file is None:
        return os.environ.get(_TOKEN_VARIABLE) or None
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SecurityError(
                    f"--token-file {file}: other users of this machine may read or change it (mode "
                    f"{stat.S_IMODE(mode):04o}). Next: chmod 600 {file}"
                )
            return opened.read().decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {file}: cannot be read ({error})") from error
