"""A process at the other end of a transport.

``peer.py listen|connect ADDRESS receive|send|send_some [[nic:]INTERFACE]``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from genie.wire import Kind, frames
from genie_backend_dpdk import DpdkTransport
from genie_backend_dpdk.device import Device, Nic

SIZE = 4 << 20
SOME = 8  # messages


def header(seq: int) -> bytes:
    return frames.message(seq, 1, frames.record(Kind.UPLOAD), (SIZE,))


def main(role: str, address: str, work: str, interface: str = "") -> None:
    _, driven, name = interface.rpartition("nic:")
    device = Device(nic=Nic("net_af_packet999", bus="vdev", arguments=f"iface={name}", interface=name))
    transport = DpdkTransport(device if driven else Device(interface), stall_timeout=10.0)
    if role == "listen":
        listener = transport.listen(address)
        print(listener.address, flush=True)
        connection = listener.accept(30.0)
    else:
        connection = transport.connect(address, 30.0)
    memory = memoryview(bytearray(SIZE))

    def allocate(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
        return [memory]

    seq = 0
    while True:
        if work == "send_some" and seq == SOME:
            print("sent")
            return connection.close()
        if work.startswith("send"):
            connection.send(header(seq), (memory,))
            seq += 1
        else:
            connection.receive(allocate)


if __name__ == "__main__":
    main(*sys.argv[1:])
