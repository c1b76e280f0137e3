"""One writer per run in a bucket, where nothing can be locked and nothing written conditionally.

Every claim is an object of its own, ``lock/lease-<token>-<claim>.json``: whoever wants the run
writes one with the next token and then lists them all. Object stores list what was written before
(S3 since 2020, Cloud Storage always), so of two who claim at once at least one sees the other, and
whoever sees another withdraws: both may, never do both win. The highest token is the fencing token,
as in :mod:`orchestrator.storage.folder_lock`, and ``lock/beat-<token>-<claim>`` is the holder's
sign of life.
"""

from __future__ import annotations

import logging
import random
import re
import time
import uuid
from dataclasses import dataclass

from orchestrator.errors import StorageError
from orchestrator.storage.bucket import open_storage
from orchestrator.storage.lease import (
    MAX_BYTES,
    RELEASED,
    LivingLock,
    described,
    holder_of,
    shut_out,
    sweep_older,
    write_lease,
)
from orchestrator.storage.local import Storage
from orchestrator.storage.run_files import LOCK

log = logging.getLogger(__name__)

_LEASE = re.compile(r"lease-(\d{9,})-([0-9a-f]{32})\.json")
_NUMBERED = re.compile(r"(?:lease|beat)-(\d{9,})-[0-9a-f]{32}(?:\.json)?")
_TRIES = 8


@dataclass(frozen=True, order=True)
class _Claim:
    """A lease that somebody has written."""

    token: int
    name: str

    @property
    def lease(self) -> str:
        return f"{LOCK}/lease-{self.token:09d}-{self.name}.json"

    @property
    def beat(self) -> str:
        return f"{LOCK}/beat-{self.token:09d}-{self.name}"


@dataclass(frozen=True)
class BucketFence:
    """Raises, when called, if the run has been taken over; can be sent to workers.

    Attributes:
        location: URI of the run, with the options of its store.
        token: of the holder on whose behalf the caller works.
    """

    location: str
    token: int

    def __call__(self) -> None:
        """Return if nobody took the run since ``token``.

        Raises:
            StorageError: somebody did; or the lease is gone, with which somebody could.
        """
        storage = open_storage(self.location)
        newest = max(_claims(storage), default=None)
        if newest is not None and newest.token > self.token:
            who = described(storage, newest.lease)
            raise shut_out(storage.describe(""), self.token, newest.token, who)
        # Whoever starts where there is none begins to count anew, and would never be noticed.
        if newest is None or newest.token < self.token:
            raise StorageError(
                f"{storage.describe(LOCK)}: the lease of this run is gone: the run was deleted or "
                "moved while it went on, or a rule of the bucket deletes old objects. Nothing more "
                "was written. Next: take such a rule away and put back what was deleted, if there "
                "is a copy, then run the same command again"
            )


class BucketLock(LivingLock):
    """Holds a run in a bucket for one process; a context manager.

    Args:
        location: URI of the run, with the options of its store.
        heartbeat: seconds between signs of life.
        patience: seconds without one after which the holder on another machine counts as dead.
    """

    LOOK_SECONDS = 1.0
    THING = "run"
    ADVICE = "the bucket exists and can be written, and that its region and credentials are set"

    def __init__(self, location: str, *, heartbeat: float = 5.0, patience: float = 30.0) -> None:
        super().__init__(heartbeat=heartbeat, patience=patience)
        self.location = location
        self.storage = open_storage(location)
        self._claim: _Claim | None = None

    def fence(self) -> BucketFence:
        """What a worker of this run checks before it changes anything."""
        assert self._claim is not None
        return BucketFence(self.location, self._claim.token)

    def _take(self) -> None:
        self._claim = self._acquire()

    def _take_next(self) -> None:
        assert self._claim is not None
        claim = self._try(self._claim.token + 1)
        if claim is None:
            raise self._refusal(max(_claims(self.storage)).lease)
        self._claim = claim

    def _is_held(self) -> bool:
        return self._claim is not None

    def _forget(self) -> None:
        self._claim = None

    def _write_sign(self, content: bytes) -> None:
        assert self._claim is not None
        self.storage.write_file(self._claim.beat, [content])

    def _acquire(self) -> _Claim:
        for attempt in range(_TRIES):
            if attempt:
                # Two that have seen each other are not to meet again.
                time.sleep(random.uniform(0.0, 0.2 * 2**attempt))
            claims = _claims(self.storage)
            newest = max((claim.token for claim in claims), default=0)
            for holder in (claim for claim in claims if claim.token == newest):
                if not self._is_dead(holder):
                    raise self._refusal(holder.lease)
            claim = self._try(newest + 1)
            if claim is not None:
                return claim
        last = max(_claims(self.storage), default=None)
        raise self._refusal(None if last is None else last.lease)

    def _try(self, token: int) -> _Claim | None:
        """Become the holder with number ``token``, unless somebody else may become it too."""
        claim = _Claim(token, uuid.uuid4().hex)
        self.storage.make_dir(LOCK)
        self.storage.write_file(claim.beat, [b"0"])
        write_lease(self.storage, claim.lease)
        others = [one for one in _claims(self.storage) if one.token >= token and one != claim]
        if others:
            for key in (claim.lease, claim.beat):
                self.storage.unlink(key)
            return None
        sweep_older(self.storage, _NUMBERED, token)
        return claim

    def _is_dead(self, claim: _Claim) -> bool:
        """Whether the holder of a lease gave it back or died."""
        if self._read_beat(claim) == RELEASED:
            return True
        holder = holder_of(self.storage, claim.lease)
        if holder is not None and holder.ended_here():
            return True
        return self._stands_still(
            self.storage.describe(""),
            described(self.storage, claim.lease),
            read=lambda: self._read_beat(claim),
            is_newest=lambda: max(_claims(self.storage), default=claim).token == claim.token,
        )

    def _read_beat(self, claim: _Claim) -> bytes:
        try:
            return self.storage.read_file(claim.beat, limit=MAX_BYTES)
        except FileNotFoundError:
            return b""


def _claims(storage: Storage) -> list[_Claim]:
    found = (_LEASE.fullmatch(entry.name) for entry in storage.list(LOCK))
    return [_Claim(int(match[1]), match[2]) for match in found if match]
