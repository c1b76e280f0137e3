"""A link that takes its time: frames go from one network namespace to another after a while.

    python -m tests.support.delayed_link HUB PORT NAMESPACE INTERFACE SECONDS

makes a TAP device ``PORT`` in the namespace ``HUB`` and one ``INTERFACE`` in ``NAMESPACE``, prints
"ready", and passes each frame on ``SECONDS`` after it came, in order, either way, until it is
ended. The devices go with it. ``tc``'s netem does the same where the kernel has it; many have not.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import selectors
import struct
import sys
import time
from collections import deque
from pathlib import Path

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
# The largest frame of a device with the usual MTU of 1500, with a VLAN tag.
_LARGEST = 1522


def _tap(namespace: str, name: str) -> int:
    """Make a TAP device in a namespace; the file that its frames are read from and written to."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{namespace}").open() as place:
        if libc.setns(place.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


def pass_on(one: int, other: int, seconds: float) -> None:
    """Pass frames between two devices, each ``seconds`` after it came, for ever."""
    waiting: dict[int, deque[tuple[float, bytes]]] = {one: deque(), other: deque()}
    opposite = {one: other, other: one}
    with selectors.DefaultSelector() as selector:
        for device in waiting:
            selector.register(device, selectors.EVENT_READ)
        while True:
            due = min((queue[0][0] for queue in waiting.values() if queue), default=None)
            patience = None if due is None else max(0.0, due - time.monotonic())
            for key, _ in selector.select(patience):
                device = int(key.fd)
                try:
                    frame = os.read(device, _LARGEST)
                except OSError:  # the device is not up yet
                    time.sleep(0.01)
                    continue
                waiting[opposite[device]].append((time.monotonic() + seconds, frame))
            for device, queue in waiting.items():
                while queue and queue[0][0] <= time.monotonic():
                    try:
                        os.write(device, queue.popleft()[1])
                    except OSError:  # not up, or full: as on any network, the frame is lost
                        continue


if __name__ == "__main__":
    _, _hub, _port, _namespace, _interface, _seconds = sys.argv
    _ends = (_tap(_hub, _port), _tap(_namespace, _interface))
    print("ready", flush=True)
    pass_on(*_ends, float(_seconds))
