"""The control plane's credentials: gRPC's, made of the same files as the data plane's."""

from __future__ import annotations

import json
import threading
from typing import Any

import grpc

from genie.security.tls import Pems, Tls

SERVICE = "genie.control.v1.Node"
# Tried again by gRPC, with back-off and jitter, within the call's time: what only asks, and tickets.
_ASKS = ("Open", "Capabilities", "Sessions", "View", "Memory")
_RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": SERVICE, "method": method} for method in _ASKS],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


def server_credentials(tls: Tls) -> Any:
    """Asked for their files again at each handshake, so that changed ones are used without a restart."""
    lock = threading.Lock()
    given = tls.pems()

    def fetch() -> Any:
        nonlocal given
        now = tls.pems()
        with lock:
            if now == given:
                return None
            given = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given), fetch, require_client_authentication=tls.asks_for_certificates
    )


def _configuration(pems: Pems) -> Any:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.cert)], root_certificates=pems.client_ca)


def channel(address: str, tls: Tls | None) -> Any:
    """To a node's control plane; secure where ``tls`` says that we connect so."""
    options = (("grpc.service_config", _RETRIES),)
    if tls is None or not tls.connects:
        return grpc.insecure_channel(address, options)
    tls.client()  # raises where there is nobody to believe
    pems = tls.pems()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=pems.ca or pems.client_ca, private_key=pems.key, certificate_chain=pems.cert
    )
    return grpc.secure_channel(address, credentials, options)
