"""Which part of a step takes the time, also where a bare machine lacks Ray and MLflow."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.accelerators import Accelerator


class Clock:
    """Seconds by name; what is timed inside something else does not count there."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._accelerator = accelerator
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        self._accelerator.synchronize()
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            self._accelerator.synchronize()
            spent = time.perf_counter() - started
            self.seconds[name] += spent - self._inner.pop()
            self._inner[-1] += spent

    @contextmanager
    def inside(self, owner: Any, attribute: str, name: str) -> Iterator[None]:
        """Time every call of a method of ``owner`` while this lasts."""
        true: Callable[..., Any] = getattr(owner, attribute)
        own = attribute in vars(owner)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return true(*arguments, **keywords)

        setattr(owner, attribute, timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, attribute, true)
            else:
                delattr(owner, attribute)
