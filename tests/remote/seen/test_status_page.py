"""Metrics and status over HTTP: right, for one node alone, and unmoved by clients that are slow, many or rude."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from remote.peers import Node

from genie.errors import ConfigError
from genie.remote.node import meters
from genie.remote.node.exposure import check_metrics
from genie.remote.seen import status_page
from genie.remote.seen.observed import NodeView, observe
from genie.remote.seen.status_page import StatusPage
from genie.security import Guard, Scope, TokenFile, tokens
from genie.testing import single
from genie.testing.plans import spec

ADD = single("aten::add.Tensor", [spec(2)] * 2, spec(2))


@pytest.fixture
def page(node: Node) -> Iterator[StatusPage]:
    page = StatusPage(node.server)
    page.start("127.0.0.1", 0)
    yield page
    page.close()


def get(page: StatusPage, path: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://{page.address}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


@pytest.fixture
def open_page(node: Node, tmp_path: Path) -> Iterator[tuple[StatusPage, Path]]:
    """Where others reach it; and the tokens file."""
    path = tmp_path / "tokens.json"
    tokens.add(path, "nobody")
    node.server.guard = Guard(TokenFile(path))
    page = StatusPage(node.server)
    page.start("0.0.0.0", 0)
    page.address = f"127.0.0.1:{page.address.rpartition(':')[2]}"
    yield page, path
    page.close()


def ask(page: StatusPage, authorization: str, path: str = "/metrics") -> int:
    request = urllib.request.Request(f"http://{page.address}{path}", headers={"Authorization": authorization})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        assert error.headers["WWW-Authenticate"]
        return error.code


def test_who_reaches_it_from_elsewhere_needs_a_token(open_page: tuple[StatusPage, Path]) -> None:
    page, path = open_page
    scraper = tokens.add(path, "prometheus", [Scope.METRICS])
    user = tokens.add(path, "alice", [Scope.USE, Scope.METRICS])
    for where in ("/metrics", "/status.json", "/"):
        assert ask(page, "", where) == 401
        assert ask(page, f"Bearer {scraper}", where) == 200
    basic = base64.b64encode(f"anything:{scraper}".encode()).decode()
    assert ask(page, f"Basic {basic}") == 200
    assert ask(page, f"Bearer {user}") == 401  # it opens more, and whoever listens has it now
    for wrong in ("Bearer genie_no", "Basic ????", "Bearer", "Digest x", f"Basic {base64.b64encode(b'x').decode()}"):
        assert ask(page, wrong) == 401
    assert ask(page, "", "/healthz") == 200  # for probes


def test_metrics_that_others_reach_are_told_to_nobody_by_default() -> None:
    with pytest.raises(ConfigError, match="others reach the metrics"):
        check_metrics("0.0.0.0", False, insecure=False)
    check_metrics("0.0.0.0", True, insecure=False)
    check_metrics("0.0.0.0", False, insecure=True)
    check_metrics("127.0.0.1", False, insecure=False)


def samples(page: StatusPage) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    status, kind, body = get(page, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_metrics_are_what_was_done(node: Node, page: StatusPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "_LOOK_SECONDS", 10.0)  # a session that has answered is done a moment later
    caller = node.client()
    caller.get(caller.run(ADD, [caller.put([1, 2]), caller.put([3, 4])]))
    found = samples(page)
    assert found["genie_requests_total", (("kind", "EXECUTE"),)] == 1
    assert found["genie_stage_seconds_count", (("stage", "execute"),)] == 1
    assert found["genie_stage_seconds_bucket", (("le", "+Inf"), ("stage", "execute"))] == 1
    assert found["genie_sessions", (("device", "null:0"),)] == 1
    assert found["genie_memory_used_bytes", (("device", "null:0"), ("kind", "values"))] > 0
    assert found["process_cpu_seconds_total", ()] > 0
    # Buckets only grow, from le to le.
    stages = {}
    for (name, labels), value in found.items():
        if name == "genie_stage_seconds_bucket":
            of = dict(labels)
            stages.setdefault(of["stage"], []).append((float(of["le"]), value))
    for buckets in stages.values():
        values = [value for _, value in sorted(buckets)]
        assert values == sorted(values)


def test_nothing_is_registered_with_the_process(node: Node, page: StatusPage) -> None:
    samples(page)
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("genie")]


def test_the_status_is_the_view(node: Node, page: StatusPage) -> None:
    status, kind, body = get(page, "/status.json")
    assert (status, kind) == (200, "application/json")
    told = json.loads(body)
    assert told["address"] == node.server.address
    assert set(told) == set(NodeView.__struct_fields__)
    assert told["max_sessions"] == observe(node.server).max_sessions


def test_health_ends_with_draining(node: Node, page: StatusPage) -> None:
    assert get(page, "/healthz")[::2] == (200, b"ok\n")
    assert node.server.drain(1.0)
    assert get(page, "/healthz")[::2] == (503, b"draining\n")


def test_there_is_nothing_else(page: StatusPage) -> None:
    for path in ("/etc/passwd", "/../status.json", "/metrics/"):
        assert get(page, path)[0] == 404
    request = urllib.request.Request(f"http://{page.address}/", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 501


def test_a_port_that_is_taken(page: StatusPage, node: Node) -> None:
    with pytest.raises(ConfigError, match="cannot serve metrics") as caught:
        StatusPage(node.server).start("127.0.0.1", int(page.address.rpartition(":")[2]))
    assert caught.value.hint


def _raw(page: StatusPage) -> socket.socket:
    host, _, port = page.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_slow_and_long_requests_are_cut_off(page: StatusPage, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hasty, _raw(page) as slow:
        hasty.setattr(status_page, "_SECONDS", 0.3)
        slow.sendall(b"GET / HTTP/1.0\r\n")  # and no end
        assert slow.recv(100) == b""
    with _raw(page) as long:
        long.sendall(b"GET / HTTP/1.0\r\nX: " + b"y" * (16 << 10))
        with contextlib.suppress(ConnectionResetError):
            assert long.recv(100) == b""
    with _raw(page) as rude:
        rude.sendall(b"\x00\xff\r\n\r\n")
        assert b"400" in rude.recv(1000)
    assert get(page, "/healthz")[0] == 200


def test_idle_clients_do_not_pile_up(page: StatusPage, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    with monkeypatch.context() as hasty:
        hasty.setattr(status_page, "_SECONDS", 0.5)
        idle = [_raw(page) for _ in range(40)]
        assert [each.recv(1) for each in idle] == [b""] * 40  # those beyond the room at once, the others in time
    for each in idle:
        each.close()
    assert threading.active_count() <= before + 8
    deadline = time.monotonic() + 10
    while True:
        try:
            assert get(page, "/healthz")[0] == 200
            break
        except (urllib.error.URLError, ConnectionError):  # their threads give back the room a moment later
            assert time.monotonic() < deadline
