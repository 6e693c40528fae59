"""What a frontend may give with a graph: the same program in a form that some nodes can compile.

A graph's steps say all there is to know of a program, and every node can run them. An *artifact* says the same once
more, as bytes of a kind that the graph does not look into: a node that offers to compile that kind may run it in place
of the steps, any other runs the steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Annotated, Final

import msgspec

from genie.errors import GraphError

MAX_ARTIFACTS: Final = 4
MAX_ARTIFACT_BYTES: Final = 32 << 20
_KIND = r"^[a-z][a-z0-9_]{0,31}/[0-9]{1,4}$"


class Abstract(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Shape and dtype of a value, as an artifact has it. It may be another dtype than the graph's, of the same size:
    what a graph carries as ``int32`` an artifact may know as ``uint32``."""

    shape: tuple[int, ...]
    dtype: str


class Artifact(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """One form of a graph's program. ``kind`` names it with its version, as compilers do: ``stablehlo/1``.

    Operand k is the graph's input at position ``takes[k]``; result k is the graph's output k. A ``required`` artifact
    is what has to be run: the steps are not in its place.
    """

    kind: Annotated[str, msgspec.Meta(pattern=_KIND, max_length=40)]
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_ARTIFACT_BYTES)]
    takes: tuple[int, ...]
    operands: tuple[Abstract, ...]
    results: tuple[Abstract, ...]
    required: bool = False

    @property
    def digest(self) -> str:
        """Names the content: bytes and interface."""
        known: str | None = self.__dict__.get("_digest")
        if known is None:
            face = msgspec.msgpack.encode((self.kind, self.operands, self.results))
            known = hashlib.blake2b(face + self.data, digest_size=16).hexdigest()
            self.__dict__["_digest"] = known
        return known

    def __repr__(self) -> str:
        return f"<Artifact {self.kind} {self.digest[:8]}: {len(self.data)} bytes>"


def check(
    artifacts: Collection[Artifact],
    inputs: list[tuple[tuple[int, ...], str]],
    outputs: list[tuple[tuple[int, ...], str]],
    sizes: Mapping[str, int],
) -> None:
    """Raises :class:`GraphError` for artifacts that do not fit a graph with these inputs and outputs (shape, dtype)."""
    if len(artifacts) > MAX_ARTIFACTS or len({each.kind for each in artifacts}) < len(artifacts):
        raise GraphError(f"{len(artifacts)} artifacts, of up to {MAX_ARTIFACTS} kinds")
    for each in artifacts:
        if len(each.data) > MAX_ARTIFACT_BYTES:
            raise GraphError(f"an artifact of {len(each.data)} bytes is larger than {MAX_ARTIFACT_BYTES}")
        if len(set(each.takes)) < len(each.takes) or not all(0 <= at < len(inputs) for at in each.takes):
            raise GraphError(f"the artifact {each.kind} takes inputs that the graph does not have, or one twice")
        for what, made, known in (
            ("operand", each.operands, [inputs[at] for at in each.takes]),
            ("result", each.results, outputs),
        ):
            if len(made) != len(known):
                raise GraphError(f"the artifact {each.kind} has {len(made)} {what}s, the graph {len(known)}")
            for number, (mine, (shape, dtype)) in enumerate(zip(made, known, strict=True)):
                if mine.dtype not in sizes or sizes[mine.dtype] != sizes[dtype] or mine.shape != shape:
                    raise GraphError(
                        f"{what} {number} of the artifact {each.kind} is {mine.dtype}{list(mine.shape)}, "
                        f"in the graph {dtype}{list(shape)}"
                    )
