"""Ray's workers as forks of one process that has imported what they need, so that hundreds fit.

Ray's nodes start ``forked.py`` where they would start Ray's own ``setup_worker.py``. It asks the
process of :func:`serve`, over the socket that ``FORKED_SOCKET`` names, for a fork that has the
arguments, variables and outputs it was given itself.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

SOCKET = "FORKED_SOCKET"
#: Of Ray, on the command line of a worker with a runtime environment.
CONTEXT = "--serialized-runtime-env-context="
LANGUAGE = "--language="
HANDLES = (1, 2)


def ask(arguments: list[str]) -> None:
    """Have a worker forked that gets these arguments."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SOCKET])
    wanted = {"arguments": arguments, "variables": dict(os.environ)}
    socket.send_fds(connection, [b"\n"], HANDLES)
    connection.sendall(json.dumps(wanted).encode())


def start(path: str, modules: list[str]) -> subprocess.Popen[bytes]:
    """Start the process that forks workers; it can be asked once its socket is there."""
    import subprocess

    command = [sys.executable, __file__, "serve", path, *modules]
    # Ray's library takes these two from the environment when it is loaded. The job is the first one
    # of its cluster; workers end once this process is gone, where others end with their node.
    variables = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": str(os.getpid())}
    return subprocess.Popen(command, env={**os.environ, **variables})


def serve(path: str, modules: list[str]) -> None:
    """Import modules, then fork a worker for whoever asks, until killed."""
    # Imported here since the short-lived process that asks needs none of it.
    import gc
    import importlib
    import signal

    from ray._private.workers import default_worker

    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # Or each collection would write into pages that forks share.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Ray's nodes watch the connections of workers.
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4096)
    while True:
        connection, _ = listener.accept()
        with connection:
            _, handles, _, _ = socket.recv_fds(connection, 1, len(HANDLES))
            wanted = json.loads(connection.makefile("rb").read())
        if not os.fork():
            listener.close()
            become(default_worker.__file__, wanted, handles)
        for handle in handles:
            os.close(handle)


def become(program: str, wanted: dict[str, Any], handles: list[int]) -> None:
    """What the fork does for the rest of its life."""
    import runpy
    import signal
    import traceback

    from ray._private.utils import update_envs

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for handle, number in zip(handles, HANDLES, strict=True):
        os.dup2(handle, number)
    os.environ.clear()
    os.environ.update(wanted["variables"])
    sys.argv = [program]
    for word in wanted["arguments"]:
        if word.startswith(CONTEXT):
            update_envs(json.loads(word.removeprefix(CONTEXT)).get("env_vars"))
        elif not word.startswith(LANGUAGE):
            sys.argv.append(word)
    try:
        runpy.run_path(program, run_name="__main__")
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        ask([word for word in sys.argv[1:] if word != __file__])
