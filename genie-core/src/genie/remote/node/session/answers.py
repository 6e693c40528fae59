"""What a question is answered with: the kind of the record, its payload, and bulk data if any."""

from __future__ import annotations

from typing import TypeAlias

from genie.graph import TensorSpec
from genie.remote.channels.outlets import FEW
from genie.wire import Kind, messages

Answer: TypeAlias = tuple[Kind, bytes, memoryview | None]


def valued(spec: TensorSpec, data: memoryview) -> Answer:
    """A VALUE; few bytes travel in the record."""
    if len(data) <= FEW:
        return Kind.VALUE, messages.put_result(spec, data), None
    return Kind.VALUE, messages.put_result(spec), data
