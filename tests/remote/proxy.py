"""The campaigns' proxy, for tests."""

from campaigns.proxy import Faults as Faults
from campaigns.proxy import Proxy as Proxy
