"""What a link really does: an echo and bulk over plain sockets, beside Genie's.

``python -m disaggregation.probe --serve HOST`` is the other end; it prints its address.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time

DEADLINE = 60.0
_ECHOES = 50
_LARGEST = 1 << 27


def measure_link(address: str, seconds: float = 0.5) -> dict[str, float]:
    """Round trip (ms, median) and bandwidth (Mbit/s, up) of a plain socket to the probe at ``address``; bulk grows
    until it takes ``seconds``."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def there_and_back(size: int) -> float:
            data = size.to_bytes(8, "little") + bytes(size)
            start = time.perf_counter()
            sock.sendall(data)
            _exactly(sock, 1)
            return time.perf_counter() - start

        round_trip = statistics.median(there_and_back(1) for _ in range(_ECHOES))
        size, taken = 1 << 18, 0.0
        while taken < seconds and size < _LARGEST:
            size *= 2
            taken = there_and_back(size)
        sock.sendall(bytes(8))
    return {"round trip ms": round_trip * 1e3, "Mbit/s": size * 8 / max(taken - round_trip, 1e-9) / 1e6}


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionError("the probe's other end is gone")
        data += more
    return data


def _serve(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    room = bytearray(1 << 20)
    while left := int.from_bytes(_exactly(sock, 8), "little"):
        while left:
            got = sock.recv_into(room, min(left, len(room)))
            if not got:
                return
            left -= got
        sock.sendall(b"\0")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", required=True)
    host = parser.parse_args().serve
    with socket.create_server((host, 0)) as listener:
        print(json.dumps({"address": f"{host}:{listener.getsockname()[1]}"}), flush=True)
        while True:
            sock, _ = listener.accept()
            with sock:
                try:
                    _serve(sock)
                except OSError:
                    continue  # one that left early; the next is served


if __name__ == "__main__":
    main()
