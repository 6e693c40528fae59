"""Clients nobody wants beside them: they ask for much and read a byte a second or, stopped from outside, nothing.

``python -m campaigns.neighbours ADDRESS TOKEN COUNT``; says "ready" when all of them are at it.
"""

from __future__ import annotations

import sys
import threading

from campaigns.proxy import Proxy
from campaigns.serving import client
from genie import telemetry
from genie.graph import TensorSpec
from genie.remote import RemoteSession

_BYTES = 32 << 20  # more than the kernel keeps for a connection


def main() -> None:
    telemetry.configure("CRITICAL", False)
    address, token, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    proxy = Proxy(address)
    sessions = []
    data = bytes(_BYTES)
    for _ in range(count):
        backend = client(proxy.address, token, timeout=3600.0)
        session = backend.connect(backend.devices()[0])
        session.upload(1, TensorSpec((_BYTES,), "uint8"), data)
        session.synchronize()
        sessions.append(session)
    proxy.trickles = True

    def read(session: RemoteSession) -> None:
        session.fetch(1)

    threads = [threading.Thread(target=read, args=(session,), daemon=True) for session in sessions]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
