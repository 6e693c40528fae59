"""Nodes whose device is short of memory: weights and states leave, come back, and nobody sees a difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import attrs
import numpy as np
import pytest

from genie.device import Device
from genie.errors import OutOfMemory
from genie.remote import NodeServer, RemoteBackend
from genie.remote.abilities import Accounting
from genie.remote.control import ControlClient, ControlPlane
from genie.remote.node import meters
from genie.remote.seen.holdings import holdings
from genie.remote.seen.metrics import Metrics
from genie.security import Guard, Scope, TokenFile, tokens
from genie.testing import Caller
from genie.testing.plans import single, spec
from genie_backend_local import LocalBackend
from genie_backend_tcp import TcpTransport

from .conftest import Node as Served
from .conftest import command

SIZE = 1 << 18  # of a value, in bytes
DEVICE = Device(id="gpu:0", type="GPU", memory_gb=8 * SIZE / (1 << 30), compute_tflops=1)


@attrs.define
class Short:
    """A node with one device of eight values' memory, which is no CPU as far as anyone is told."""

    server: NodeServer
    backend: Accounting
    clients: list[RemoteBackend] = attrs.field(factory=list)

    def client(self) -> Caller:
        self.clients.append(RemoteBackend("tcp", TcpTransport(), (self.server.address,), timeout=20.0))
        return Caller(self.clients[-1].connect(self.clients[-1].devices()[0]))

    def leave(self) -> None:
        """The last client."""
        before = len(self.server.sessions())
        self.clients.pop().close()
        assert self.server.wait_for_sessions(before - 1, 10.0)

    def told(self, name: str) -> int:
        return self.backend.memory()[DEVICE.id][name]


@pytest.fixture
def make_short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Short]]:
    monkeypatch.setattr(meters, "_LOOK_SECONDS", 10.0)  # a session that has answered is done a moment later
    made: list[tuple[Short, LocalBackend]] = []

    def make(swap_bytes: int = 64 * SIZE, **options: object) -> Short:
        local = LocalBackend(swap_bytes=swap_bytes)
        host = local.stand_in(local.devices()[-1], DEVICE)
        server = NodeServer(host, TcpTransport(), "127.0.0.1:0", local=False, **options)  # type: ignore[arg-type]
        server.start()
        made.append((Short(server, host), local))
        return made[-1][0]

    yield make
    for short, local in made:
        for client in short.clients:
            client.close()
        short.server.close()
        local.close()


@pytest.fixture
def short(make_short: Callable[..., Short]) -> Short:
    return make_short()


def content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


def put(caller: Caller, data: bytes, shared: bool = True) -> int:
    handle = caller.handles()
    caller.session.upload(handle, spec(len(data), dtype="uint8"), data, shared=shared)
    if shared:
        caller.session.synchronize()  # or the next would be offered before this one is there
    return handle


def holds(caller: Caller, handle: int, data: bytes) -> bool:
    return bytes(caller.session.fetch(handle).data) == data


def test_weights_stay_for_the_next_client(short: Short) -> None:
    first = short.client()
    assert holds(first, put(first, content(1)), content(1))
    short.leave()
    assert short.told("contents") == short.told("live") == SIZE
    second = short.client()
    assert holds(second, put(second, content(1)), content(1))
    assert second.session.stats()["bytes_sent"] < SIZE // 2  # not sent again
    assert short.told("live") == SIZE


def test_weights_nobody_uses_make_room(short: Short) -> None:
    first = short.client()
    for number in range(6):
        put(first, content(number))
    first.session.synchronize()
    short.leave()
    second = short.client()
    mine = [put(second, content(100 + number), shared=False) for number in range(7)]
    assert all(holds(second, handle, content(100 + number)) for number, handle in enumerate(mine))
    assert short.told("evicted") >= 5
    assert short.told("swapped_out") == 0  # they are on the host already
    again = [put(second, content(number)) for number in range(6)]
    assert all(holds(second, handle, content(number)) for number, handle in enumerate(again))
    assert all(holds(second, handle, content(100 + number)) for number, handle in enumerate(mine))
    assert short.told("restored") + short.told("swapped_in") >= 5  # 13 values where 8 fit
    assert short.told("live") <= 8 * SIZE


def test_two_clients_take_turns(short: Short) -> None:
    callers = [short.client(), short.client()]
    handles = [[put(each, content(10 * k + n), shared=False) for n in range(6)] for k, each in enumerate(callers)]
    for _ in range(3):
        for k, each in enumerate(callers):
            for n, handle in enumerate(handles[k]):
                assert holds(each, handle, content(10 * k + n))
    assert short.told("swapped_in") > 0


def test_contents_that_a_weight_comes_back_from_stay(make_short: Callable[..., Short]) -> None:
    short = make_short(content_bytes=2 * SIZE)
    caller = short.client()
    kept = [put(caller, content(number)) for number in range(2)]
    filler = [put(caller, content(100 + number), shared=False) for number in range(8)]
    caller.session.synchronize()
    assert short.told("evicted") == 2
    more = put(caller, content(50))  # has no place among the contents, and comes all the same
    assert holds(caller, more, content(50))
    for number, handle in enumerate(kept):
        assert holds(caller, handle, content(number))
    assert all(holds(caller, handle, content(100 + number)) for number, handle in enumerate(filler))


def test_contents_that_nobody_needs_go_with_their_weights(make_short: Callable[..., Short]) -> None:
    short = make_short(content_bytes=2 * SIZE)
    caller = short.client()
    first = put(caller, content(1))
    caller.session.free([first])
    held = put(caller, content(2))
    more = [put(caller, content(number)) for number in (3, 4)]  # both older contents leave the host
    assert holds(caller, held, content(2))
    assert [holds(caller, handle, content(number)) for handle, number in zip(more, (3, 4), strict=True)] == [True, True]
    assert short.told("live") == 3 * SIZE  # the first is gone from the device, too
    filler = [put(caller, content(100 + number), shared=False) for number in range(8)]
    caller.session.synchronize()
    assert short.told("swapped_out") > 0  # the second has no other place to come back from
    assert holds(caller, held, content(2))
    assert all(holds(caller, handle, content(100 + number)) for number, handle in enumerate(filler))


def test_an_error_says_who_has_the_memory(make_short: Callable[..., Short]) -> None:
    short = make_short(swap_bytes=0)
    one, two = short.client(), short.client()
    for number in range(5):
        put(one, content(number), shared=False)
    one.session.synchronize()
    handles = [put(two, content(number), shared=False) for number in range(5)]
    with pytest.raises(
        OutOfMemory, match=r"session [0-9a-f]+-1 has 1\.3 MB \(1\.3 MB input\); this session has 786\.4 KB"
    ):
        two.session.fetch(handles[-1])
    assert holds(two, handles[0], content(0))


def test_what_was_used_last_is_prefetched_beside_an_upload(short: Short) -> None:
    """The client's first word after a while is an upload: what its last execution used is back before the next."""
    one, two = short.client(), short.client()
    count = SIZE // 4
    used = [one.put([float(number)] * count, shared=False) for number in range(2)]
    unused = put(one, content(2), shared=False)
    made = one.run(single("aten::maximum", [spec(count)] * 2, spec(count)), used)
    expected = bytes(one.session.fetch(made).data)
    one.session.synchronize()  # what is being sent stays: it has been
    hers = [put(two, content(100 + number), shared=False) for number in range(8)]
    two.session.synchronize()
    assert short.told("swapped_out") == 4
    two.session.free(hers)
    two.session.synchronize()
    large = one.handles()
    one.session.upload(large, spec(SIZE, dtype="uint8"), content(9))
    one.session.synchronize()
    ((session, _),) = [its for name, its in short.server._sessions.items() if name.endswith("-1")]
    assert session.prefetch.wait(10.0)
    assert short.told("swapped_in") == 3  # both operands and the result, not the value it did not use
    assert bytes(one.session.fetch(made).data) == expected
    assert short.told("swapped_in") == 3
    assert holds(one, unused, content(2))


def test_holdings_and_metrics(short: Short) -> None:
    one, two = short.client(), short.client()
    handles = [put(each, content(1)) for each in (one, two)]
    put(two, content(2), shared=False)
    assert all(holds(each, handle, content(1)) for each, handle in zip((one, two), handles, strict=True))
    told = holdings(short.server)
    (device,) = told.devices
    assert (device.limit, device.live, device.contents, device.others) == (8 * SIZE, 2 * SIZE, SIZE, 0)
    assert [(its.kinds["weight"], its.kinds["input"]) for its in told.sessions] == [(SIZE, SIZE), (SIZE, 0)]
    assert told.content == SIZE
    text = Metrics(short.server).text().decode()
    for line in (
        f'genie_memory_bytes{{device="gpu:0",kind="weight"}} {2.0 * SIZE}',
        f'genie_memory_bytes{{device="gpu:0",kind="contents"}} {float(SIZE)}',
        f'genie_memory_bytes{{device="gpu:0",kind="live"}} {2.0 * SIZE}',
        'genie_memory_moves_total{device="gpu:0",move="evicted"} 0.0',
        f"genie_swap_limit_bytes {64.0 * SIZE / 1e7}e+07",
    ):
        assert line in text


def test_tenants_see_their_own(make_short: Callable[..., Short], tmp_path: object) -> None:
    from pathlib import Path

    directory = Path(str(tmp_path))
    file = directory / "tokens.json"
    texts = {
        name: tokens.add(file, name, scopes, tenant=tenant)
        for name, tenant, scopes in (
            ("a", "us", (Scope.USE,)),
            ("b", "them", (Scope.USE,)),
            ("boss", "ops", (Scope.USE, Scope.ADMIN)),
        )
    }
    from genie.remote.client.access import Access

    short = make_short(guard=Guard(TokenFile(file)))
    control = ControlPlane(short.server, lambda seconds: None)
    short.server.control_port = control.start("127.0.0.1", 0)
    address = f"127.0.0.1:{short.server.control_port}"
    try:
        for name, count in (("a", 1), ("b", 3)):
            (directory / name).write_text(texts[name])
            access = Access(None, str(directory / name))
            short.clients.append(RemoteBackend("tcp", TcpTransport(), (short.server.address,), access=access))
            caller = Caller(short.clients[-1].connect(short.clients[-1].devices()[0]))
            for number in range(count):
                put(caller, content(number), shared=False)
            caller.session.synchronize()
        for name, seen, others in (("a", ["us"], 3), ("b", ["them"], 1), ("boss", ["them", "us"], 0)):
            with ControlClient(address, token=texts[name]) as client:
                told = client.memory()
            assert [its.tenant for its in told.sessions] == seen
            assert told.devices[0].others == others * SIZE
            assert told.devices[0].live == 4 * SIZE
    finally:
        control.close()


def test_the_command(node: Served) -> None:
    backend = RemoteBackend("tcp", TcpTransport(), (node.address,), timeout=20.0)
    try:
        caller = Caller(backend.connect(backend.devices()[0]))
        caller.get(caller.put([1, 2]))
        done = command("node", "memory", node.address, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        (session,) = told["sessions"]
        assert session["kinds"]["input"] == session["live"] > 0
        device = told["devices"][0]
        assert device["live"] - device["contents"] == session["live"]  # weights of clients before it stay
        done = command("node", "memory", node.address, COLUMNS="160")
        assert done.returncode == 0, done.stderr
        assert session["id"] in done.stdout
        assert "host: " in done.stdout
    finally:
        backend.close()
    done = command("node", "memory", "127.0.0.1:1")
    assert done.returncode == 1
    assert "no node answers" in done.stderr
