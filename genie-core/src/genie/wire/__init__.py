"""The protocol between a client and a node: bytes in, messages out; no input or output of its own."""

from genie.wire.frames import Allocate, Assembler, Buffer, Limits, Message
from genie.wire.kinds import PROTOCOL, RESUMING, Dialogue, Kind, State

__all__ = ["PROTOCOL", "RESUMING", "Allocate", "Assembler", "Buffer", "Dialogue", "Kind", "Limits", "Message", "State"]
