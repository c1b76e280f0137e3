"""Operators of our own, and what torch would import its compiler for, two seconds a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._library.custom_ops import CustomOpDef


def operator(
    name: str, device_types: str | None = None
) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """``torch.library.custom_op``, for functions that change none of their arguments.

    A compiler or exporter takes it as it is instead of looking inside.

    Args:
        name: of the operator, ``NAMESPACE::NAME``.
        device_types: kinds of device it is for; None for all.
    """

    def defined(function: Callable[..., Any]) -> CustomOpDef:
        found = torch.library.custom_op(name, function, mutates_args=(), device_types=device_types)
        for kernel in getattr(found, "_backend_fns", {}).values():
            call_without_compiler(kernel)
        return found

    return defined


def call_without_compiler(function: Any) -> None:
    """Have a function that torch keeps from its compiler called without importing that first.

    Torch does so the first time, to have the compiler told. One that is imported later by whoever
    compiles leaves such functions alone as well.

    Args:
        function: wrapped by ``torch._disable_dynamo``; others are left as they are.
    """
    plain = getattr(function, "__wrapped__", None)
    if plain is not None and not hasattr(plain, "__dynamo_disable"):
        plain.__dynamo_disable = plain
