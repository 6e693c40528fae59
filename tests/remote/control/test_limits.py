"""Clients of the control plane that say nothing, or much."""

from __future__ import annotations

import socket
import time

import pytest
from remote.peers import Node
from security.pki import Pki

from genie.remote import control
from genie.remote.control import ControlClient, ControlPlane
from genie.remote.control import plane as planes
from genie.security import Tls

SECONDS = 30.0


@pytest.mark.parametrize("secret", [False, True], ids=["plain", "tls"])
def test_silent_clients_are_cut_off(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, secret: bool
) -> None:
    limits = dict(planes._OPTIONS) | {"grpc.server_handshake_timeout_ms": 1000}
    monkeypatch.setattr(planes, "_OPTIONS", tuple(limits.items()))
    pki = Pki.make(tmp_path_factory.mktemp("pki")) if secret else None
    tls: Tls | None = pki.node() if pki else None
    plane = ControlPlane(node.server, lambda seconds: None, tls)
    port = plane.start("127.0.0.1", 0)
    started = time.monotonic()
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    try:
        with ControlClient(f"127.0.0.1:{port}", SECONDS, tls=pki.client() if pki else None) as client:
            assert client.healthy()  # beside them
        for sock in silent:
            sock.settimeout(SECONDS)
            while sock.recv(1 << 10):  # what is said before it hangs up
                pass
        assert time.monotonic() - started < SECONDS
    finally:
        for sock in silent:
            sock.close()
        plane.close()


def test_a_request_that_is_too_large_is_refused(node: Node) -> None:
    import grpc

    plane = ControlPlane(node.server, lambda seconds: None)
    port = plane.start("127.0.0.1", 0)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(f"/{control.SERVICE}/Capabilities")
            with pytest.raises(grpc.RpcError) as caught:
                call(bytes(2 << 20), timeout=SECONDS)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=SECONDS, metadata=(("x", "y" * (64 << 10)),))
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=SECONDS)  # no request
        with ControlClient(f"127.0.0.1:{port}", SECONDS) as client:
            assert client.healthy()
    finally:
        plane.close()
