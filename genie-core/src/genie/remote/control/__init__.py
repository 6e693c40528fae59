"""The control plane of a node, over gRPC: capabilities, sessions, drain, and the standard health service.

The messages are this package's own structs in msgpack, sent through gRPC's generic handlers: they are few and only
Genie speaks them, so generated code would add a build step and a second schema, and nothing else. Health is the
standard service with its standard messages, for the tools that ask it.
"""

from genie.remote.control.client import ControlClient
from genie.remote.control.messages import Capabilities, Drain, Nothing, Open
from genie.remote.control.plane import ControlPlane, check_free
from genie.security.rpc import SERVICE

__all__ = ["SERVICE", "Capabilities", "ControlClient", "ControlPlane", "Drain", "Nothing", "Open", "check_free"]
