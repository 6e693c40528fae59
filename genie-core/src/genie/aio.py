"""The verbs that wait, for asyncio programs: each runs in a worker thread, so the event loop goes on.

What a framework keeps per thread (PyTorch's grad mode, say) is not carried along: set it inside the program given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from genie import api
from genie.device import Device
from genie.plan import ExecutionPlan

_T = TypeVar("_T")


async def init(**settings: Any) -> None:
    """:func:`genie.init`."""
    await asyncio.to_thread(api.init, **settings)


async def run(
    program: Callable[..., _T],
    *args: Any,
    backend: str | None = None,
    devices: Sequence[Device] | None = None,
    policy: str | None = None,
    frontend: str | None = None,
    **kwargs: Any,
) -> _T:
    """:func:`genie.run`."""

    def call() -> _T:
        return api.run(program, *args, backend=backend, devices=devices, policy=policy, frontend=frontend, **kwargs)

    return await asyncio.to_thread(call)


async def execute(plan: ExecutionPlan, inputs: Sequence[Any], frontend: str | None = None) -> list[Any]:
    """:func:`genie.execute`."""
    return await asyncio.to_thread(api.execute, plan, inputs, frontend)


async def execute_local(plan: ExecutionPlan, inputs: Sequence[Any], frontend: str | None = None) -> list[Any]:
    """:func:`genie.execute_local`."""
    return await asyncio.to_thread(api.execute_local, plan, inputs, frontend)
