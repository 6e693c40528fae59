"""Network namespaces of a test's own, joined by a veth pair. Where they can't be made, the test is skipped."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

_numbers = itertools.count()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


@contextmanager
def _namespace() -> Iterator[str]:
    name = f"genie-{os.getpid()}-{next(_numbers)}"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces can be made here: {error.stderr.strip()}")
    try:
        yield name
    finally:
        _ip("netns", "delete", name)


def _needs() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces are made by root")
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (iproute2) to make network namespaces with")


def _up(namespace: str, interface: str, address: str, mtu: int) -> None:
    _ip("-n", namespace, "link", "set", interface, "up", "mtu", str(mtu))
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", interface)


@contextmanager
def one(mtu: int) -> Iterator[str]:
    """A namespace with both ends: ``node0`` at 10.71.0.1 and ``client0`` at 10.71.0.2."""
    _needs()
    with _namespace() as name:
        _ip("-n", name, "link", "add", "node0", "type", "veth", "peer", "name", "client0")
        _up(name, "node0", "10.71.0.1", mtu)
        _up(name, "client0", "10.71.0.2", mtu)
        # The kernel would drop what comes from an address of its own, and with it what wakes a port.
        for interface in ("all", "node0", "client0"):
            for setting in ("accept_local=1", "rp_filter=0"):
                subprocess.run(
                    inside(name, "sysctl", "-qw", f"net.ipv4.conf.{interface}.{setting}"), check=True, timeout=20
                )
        yield name


@contextmanager
def two(mtu: int = 1500) -> Iterator[tuple[str, str]]:
    """Two namespaces: ``node0`` at 10.71.0.1 in the first, ``client0`` at 10.71.0.2 in the second."""
    _needs()
    with _namespace() as node, _namespace() as client:
        _ip("-n", node, "link", "add", "node0", "type", "veth", "peer", "name", "client0", "netns", client)
        _up(node, "node0", "10.71.0.1", mtu)
        _up(client, "client0", "10.71.0.2", mtu)
        yield node, client


def inside(namespace: str, *command: str) -> Sequence[str]:
    return ["ip", "netns", "exec", namespace, *command]
