"""What a node-side compiler implements: it makes programs of artifacts (:mod:`genie.graph.artifacts`).

A backend that runs plans may ask compilers for a program in place of a graph's steps. What they get and give are
tensors as DLPack capsules (``dltensor``), so that neither knows the other's framework, and nothing is copied. Operands
become views first, which serve as long as a value stays where it is: a call does not pay for its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from genie.device import Device
from genie.graph import Artifact

ALIGNMENT = 64


class Program(Protocol):
    """A compiled artifact. ``bytes`` is what a call allocates on the device: results and scratch."""

    @property
    def bytes(self) -> int: ...

    def view(self, operand: Any) -> Any:
        """What a call takes for the operand: the memory of a capsule, contiguous in C order, which begins at a multiple
        of :data:`ALIGNMENT` bytes. A view may serve in many calls, with whatever the memory holds then, and outlive the
        memory: it is looked at in a call alone."""

    def __call__(self, operands: Sequence[Any]) -> Sequence[Any]:
        """One view per operand of the artifact, in the artifact's dtypes. Gives the results as capsules, contiguous,
        in memory of their own. They are done when it returns, or follow in the device's default stream. What it raises
        becomes the error of the results. Any thread may call, several at once."""


@runtime_checkable
class Compiler(Protocol):
    """One that a distribution offers by the hook ``genie_compilers``.

    ``name`` is what users call it, ``kinds`` are those of the artifacts it takes.
    """

    name: str

    @property
    def kinds(self) -> Sequence[str]: ...

    def serves(self, device: Device) -> bool:
        """Whether it makes programs for that device of this process, as far as can be told without a try."""

    def compile(self, artifact: Artifact, device: Device, *, bounded: bool) -> Program:
        """A program, in bounded time and memory. With ``bounded`` one whose run time its text bounds: without loops
        whose number of iterations depends on data.

        Nothing of ``artifact`` is to be trusted but that it is as large as it is. Raises
        :class:`genie.errors.UnsupportedOperation` for what it does not take, :class:`genie.errors.DeadlineExceeded`
        or :class:`genie.errors.OutOfMemory` where compiling takes too much. Any thread may call."""

    def close(self) -> None: ...
