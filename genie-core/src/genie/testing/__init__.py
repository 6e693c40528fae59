"""What a plugin's tests need: conformance suites, and small real twins of a backend and a transport.

A new backend's whole test file::

    from genie.testing import BackendSuite

    class TestMyBackend(BackendSuite):
        @pytest.fixture
        def backend(self):
            backend = MyBackend()
            yield backend
            backend.close()
"""

from genie.testing.backend_suite import BackendSuite
from genie.testing.memory import MemoryTransport
from genie.testing.null import NullBackend, NullSession
from genie.testing.plans import Caller, single
from genie.testing.transport_suite import TransportSuite

__all__ = ["BackendSuite", "Caller", "MemoryTransport", "NullBackend", "NullSession", "TransportSuite", "single"]
