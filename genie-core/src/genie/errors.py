"""Every error Genie raises. Each says what happened, where, and what to do about it.

::

    GenieError
    │
    │   we erred: the program, its configuration or its installation
    ├── ConfigError            (ValueError)           a setting is wrong; the message names its key
    ├── PluginError
    │   ├── PluginNotFound     (LookupError)          no plugin of that kind has the name
    │   ├── PluginFailed                              a plugin is installed but could not be imported or built
    │   └── PluginConflict                            two distributions offer one name
    ├── TorchMismatch          (ImportError)          native code was built with another torch
    ├── CaptureError           (RuntimeError)         a program could not be captured
    │   └── UnsupportedOperation (NotImplementedError)
    ├── GraphError             (ValueError)           a graph breaks a rule of ``graph.verify``
    ├── PlanError              (ValueError)           a plan breaks a rule of ``plan.verify``
    ├── CodecError             (ValueError)           bytes are no graph or plan
    ├── VersionMismatch        (ValueError)           bytes or a peer speak another major version
    ├── SchedulingError        (RuntimeError)         nothing feasible: needs more than the devices have
    ├── CheckpointError        (RuntimeError)         a state could not be kept, or what was kept is gone or damaged
    ├── LocalProtocolError     (RuntimeError)         we were about to break the protocol: a bug of ours
    │
    │   the other side erred, or could not be asked
    └── BackendError
        ├── BackendUnavailable (ConnectionError)      nobody answers there
        ├── TlsFailed          (ConnectionError)      no connection that is secret and with whom it should be
        ├── ConnectionLost     (ConnectionError)      somebody did, and does no more
        ├── DeadlineExceeded   (TimeoutError)         no answer in time
        ├── ProtocolError                             the peer sent what the protocol forbids
        └── NodeError                                 the node understood, and refused or failed
            ├── RemoteOpError  (RuntimeError)         an operator failed
            │   ├── OutOfMemory (MemoryError)         … for want of memory
            │   ├── Cancelled                         … or was not run: somebody stopped the work
            │   └── ExecutionTimedOut (DeadlineExceeded)  … or the work took longer than the node allows
            ├── AccessDenied       (PermissionError)      the node does not know who asks, or they may not
            ├── LimitExceeded                         a quota or bound of the node forbids the request
            └── SessionClosed  (RuntimeError)         the session ended: closed, expired or drained

The class in brackets is a base too, so that ``except ValueError`` and the like catch what users expect.
``GenieError.peer`` tells the two halves apart.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Stage(StrEnum):
    """What was waited for when time was up: see :class:`DeadlineExceeded`, and docs/deadlines.md for each one's
    bound."""

    CONNECT = "connect"  # for somebody to come, or to answer
    TLS = "tls handshake"
    TICKET = "ticket"
    CONTROL = "control plane"  # whatever else it is asked
    GREETING = "greeting"
    SEND = "send"  # the peer takes nothing
    ANSWER = "answer"  # the node computes
    COMPILE = "compile"  # longer than the node allows
    EXECUTE = "execute"  # the same
    RECEIVE = "receive"  # the peer says nothing, or not the rest
    TRANSFER = "transfer"  # from node to node


class GenieError(Exception):
    """Base of all. ``where`` is a place (``file:line``, key, address, node), ``hint`` what to do."""

    peer: ClassVar[bool] = False

    def __init__(self, message: str = "", *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = self.message or type(self).__name__
        if self.where:
            text += f"\n  where: {self.where}"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


# --- we erred ------------------------------------------------------------------------------------


class ConfigError(GenieError, ValueError):
    """A setting is wrong; the message names its key."""


class PluginError(GenieError):
    """Something about a plugin."""


class PluginNotFound(PluginError, LookupError):
    """No plugin of that kind has the name."""


class PluginFailed(PluginError):
    """A plugin is installed but could not be imported or built."""


class PluginConflict(PluginError):
    """Two distributions offer one name."""


class TorchMismatch(GenieError, ImportError):
    """Native code was built with another torch than the one installed."""


class CaptureError(GenieError, RuntimeError):
    """A program could not be captured."""


class UnsupportedOperation(CaptureError, NotImplementedError):
    """An operator or a feature of one that Genie does not carry out."""


class GraphError(GenieError, ValueError):
    """A graph breaks a rule of ``graph.verify``."""


class PlanError(GenieError, ValueError):
    """A plan breaks a rule of ``plan.verify``."""


class CodecError(GenieError, ValueError):
    """Bytes are no graph or plan."""


class VersionMismatch(GenieError, ValueError):
    """Bytes or a peer speak another major version."""


class SchedulingError(GenieError, RuntimeError):
    """No feasible plan."""


class CheckpointError(GenieError, RuntimeError):
    """A state could not be kept, or what was kept is gone or damaged."""


class LocalProtocolError(GenieError, RuntimeError):
    """We were about to break the protocol: a bug on this side."""


# --- the other side erred ------------------------------------------------------------------------


class BackendError(GenieError):
    """Work could not be carried out where it was sent."""

    peer = True


class BackendUnavailable(BackendError, ConnectionError):
    """Nobody answers there. ``refused``: the host says that nobody listens. ``transient``: somebody does, and hung up;
    another attempt may do better."""

    refused: bool = False
    transient: bool = False


class TlsFailed(BackendError, ConnectionError):
    """The peer has no certificate to be believed, refuses ours, or one side speaks TLS and the other does not."""


class ConnectionLost(BackendError, ConnectionError):
    """The link to a peer broke."""


class DeadlineExceeded(BackendError, TimeoutError):
    """No answer in time: ``stage`` was not over after ``seconds``, which ``setting`` bounds (0 and "": not known).
    ``midway``: part of a message had come, which is lost."""

    midway: bool = False
    always: ClassVar[Stage | None] = None  # the stage of a class that has but one,
    bound_by: ClassVar[str] = ""  # and its setting

    def __init__(
        self,
        message: str = "",
        *,
        stage: Stage | None = None,
        seconds: float = 0.0,
        setting: str = "",
        where: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.stage = stage or self.always
        self.seconds = seconds
        self.setting = setting or self.bound_by

    def __str__(self) -> str:
        text = super().__str__()
        if self.stage is None:
            return text
        told = f"\n  stage: {self.stage}"
        if self.seconds:
            told += f", {self.seconds:.4g} s"
        if self.setting:
            told += f" (by `{self.setting}`)"
        line, rest, more = text.partition("\n")
        return line + told + rest + more


class ProtocolError(BackendError):
    """The peer sent what the protocol forbids."""


class NodeError(BackendError):
    """The node understood the request, and refused it or failed."""


class RemoteOpError(NodeError, RuntimeError):
    """An operator failed on a node. ``message`` is the kernel's own.

    ``kind`` is the name of the exception type there, ``step`` the index in ``plan`` (-1 where there is none),
    ``source`` the line of the user's program that issued the operator.
    """

    def __init__(
        self,
        message: str = "",
        *,
        op: str = "",
        plan: int = -1,
        step: int = -1,
        kind: str = "",
        device: str = "",
        source: str = "",
        where: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.op = op
        self.plan = plan
        self.step = step
        self.kind = kind
        self.device = device
        self.source = source

    def __str__(self) -> str:
        text = f"{self.message or type(self).__name__}"
        what = self.op
        if self.step >= 0:
            what += f"{', ' if what else ''}step {self.step}"
            if self.plan >= 0:
                what += f" of plan {self.plan}"
        if self.device:
            what += f"{' ' if what else ''}on {self.device}"
        if self.kind and what:
            what += f" ({self.kind})"
        if what:
            text += f"\n  {'operator' if self.op or self.step >= 0 else 'device'}: {what.removeprefix('on ')}"
        if self.source:
            text += f"\n  issued at: {self.source}"
        if self.where:
            text += f"\n  where: {self.where}"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


class OutOfMemory(RemoteOpError, MemoryError):
    """A device had too little memory for an operator or a value."""


class Cancelled(RemoteOpError):
    """The work was stopped before this operator, by its client or by the node's operator. What it would have made or
    written to is lost; the session goes on."""


class ExecutionTimedOut(RemoteOpError, DeadlineExceeded):
    """One execution took longer than the node allows. The operator is the one that ran when the time was up."""

    always = Stage.EXECUTE
    bound_by = "execution_seconds"


class AccessDenied(NodeError, PermissionError):
    """The node does not know who asks, or they may not do that."""


class LimitExceeded(NodeError):
    """A quota or bound of the node forbids the request."""


class SessionClosed(NodeError, RuntimeError):
    """The session ended: closed, expired or drained."""
