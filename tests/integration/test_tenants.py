"""Tenants on one real node: whatever one does – guess handles, offer others' digests, come back as somebody else, claim
channels, use up its quota – the others' values are what they were, and theirs alone."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import blake3
import pytest

from genie.errors import AccessDenied, GenieError, NodeError, OutOfMemory, ProtocolError, SessionClosed
from genie.graph import Graph, Input, Ref
from genie.remote import NodeServer, RemoteBackend, RemoteSession, status
from genie.remote.client.access import Access
from genie.remote.client.session import Inlet
from genie.remote.control import ControlClient, ControlPlane
from genie.security import Guard, Scope, TokenFile, tokens
from genie.tenancy.accounts import Tenancy
from genie.tenancy.quotas import TenantsFile
from genie.testing import Caller
from genie.testing.plans import node as step
from genie.testing.plans import pack, spec, unpack
from genie.wire import Kind, messages
from genie.wire.channels import Target
from genie.wire.messages import Back
from genie_backend_local import LocalBackend
from genie_backend_tcp import TcpTransport

FLOATS = 1 << 15  # of 128 KiB, so that contents are offered by digest
DEADLINE = 60.0
ADD_ONE = Graph(
    values=(spec(FLOATS), spec(FLOATS)),
    inputs=(Input(0),),
    steps=(step(0, "aten::add_.Scalar", [Ref(0), 1.0], [1], mutates=[0], aliases=[(1, 0)]),),
    outputs=(),
)


@attrs.define
class Shared:
    """A node for tenants, and how they come in."""

    server: NodeServer
    transport: TcpTransport
    directory: Path
    backends: list[RemoteBackend] = attrs.field(factory=list)

    def access(self, name: str, tenant: str = "", *scopes: Scope) -> Access:
        path = self.directory / name
        if not path.exists():
            path.write_text(tokens.add(self.directory / "tokens.json", name, scopes or (Scope.USE,), tenant=tenant))
        return Access(None, str(path))

    def client(self, name: str, tenant: str = "") -> Caller:
        backend = RemoteBackend(
            "tcp", self.transport, (self.server.address,), timeout=20.0, access=self.access(name, tenant)
        )
        self.backends.append(backend)
        return Caller(backend.connect(backend.devices()[0]))


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    tokens.add(tmp_path / "tokens.json", "nobody")
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(
        """
default: {memory: 64MiB}
tenants:
  small: {memory: 1MiB}
  sharing: {share_weights: true}
  sharing-too: {share_weights: true}
"""
    )
    transport = TcpTransport(stall_timeout=10.0)
    server = NodeServer(
        LocalBackend(),
        transport,
        "127.0.0.1:0",
        devices=["cpu"],
        guard=Guard(TokenFile(tmp_path / "tokens.json")),
        tenancy=Tenancy(TenantsFile(tenants)),
    )
    with server:
        control = ControlPlane(server, lambda seconds: None)
        server.control_port = control.start("127.0.0.1", 0)
        node = Shared(server, transport, tmp_path)
        yield node
        for backend in node.backends:
            backend.close()
        control.close()


def weight(number: int) -> bytes:
    return pack([float(number)] * FLOATS)


def put(caller: Caller, content: bytes) -> int:
    handle = caller.handles()
    caller.session.upload(handle, spec(FLOATS), content, shared=True)
    return handle


def sent(caller: Caller) -> int:
    assert isinstance(caller.session, RemoteSession)
    return caller.session.traffic["bytes_sent"]


def test_a_digest_tells_a_stranger_nothing(shared: Shared) -> None:
    content = weight(1)
    put(first := shared.client("alice"), content)
    first.session.synchronize()
    again, stranger = shared.client("alice-2", "alice"), shared.client("bob")
    for caller, comes_over in ((again, False), (stranger, True)):
        before = sent(caller)
        handle = put(caller, content)
        assert bytes(caller.session.fetch(handle).data) == content
        assert (sent(caller) - before > len(content)) is comes_over
    one, other = shared.client("a", "sharing"), shared.client("b", "sharing-too")
    put(one, content)
    one.session.synchronize()
    before = sent(other)
    put(other, content)
    other.session.synchronize()
    assert sent(other) - before < len(content)


def test_one_who_takes_a_digest_for_the_content_gets_nothing(shared: Shared) -> None:
    content = weight(2)
    put(owner := shared.client("alice"), content)
    owner.session.synchronize()
    thief = shared.client("bob").session
    assert isinstance(thief, RemoteSession)
    talk, digest = thief._conversation, blake3.blake3(content).digest()
    answer, _ = talk.ask(Kind.UPLOAD_BEGIN, messages.put_chunk(digest, len(content)), Kind.HELD)
    assert messages.get_held(answer) == (0, False)
    talk.queue(Kind.UPLOAD_COMMIT, messages.put_commit(digest, 7, spec(FLOATS)))
    with pytest.raises((ProtocolError, NodeError), match="0 of"):
        thief.fetch(7)


def test_a_tenants_memory_is_its_own_matter(shared: Shared) -> None:
    small, other = shared.client("small"), shared.client("other")
    assert small.session.device.memory_bytes == 1 << 20
    values = [put(small, weight(number)) for number in range(8)]
    lost = put(small, weight(9))
    mine = put(other, weight(10))
    with pytest.raises(OutOfMemory, match="the tenant small's quota of 1048576 are in use: session"):
        small.session.fetch(lost)
    assert unpack(other.session.fetch(mine).data) == [10.0] * FLOATS
    assert [unpack(small.session.fetch(value).data)[0] for value in values] == list(range(8))
    small.session.free(values[:1])
    assert unpack(small.session.fetch(put(small, weight(11))).data)[0] == 11.0


def test_nobody_comes_back_as_somebody_else(shared: Shared) -> None:
    mine = shared.client("alice").session
    assert isinstance(mine, RemoteSession)
    (info,) = shared.server.sessions()
    session, _ = shared.server._sessions[info.id]
    assert session.lasting is not None
    for key, error in (("0" * 32, SessionClosed), (session.lasting.key, AccessDenied)):
        with pytest.raises(error):
            shared.access("bob").meet(
                shared.transport,
                shared.server.address,
                -1,
                5.0,
                back=Back(session=info.id, key=key, heard=0, sent=0),
            )
    mine.synchronize()


@attrs.define
class Player:
    """One session in a history of honest and hostile calls; ``owns`` is what it must find at its handles."""

    shared: Shared
    name: str
    tenant: str
    seed: int
    owns: dict[int, float] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)

    def play(self, others: list[Player], contents: list[bytes], start: threading.Barrier) -> None:
        chance = random.Random(self.seed)
        caller = self.shared.client(self.name, self.tenant)
        session = caller.session
        assert isinstance(session, RemoteSession)
        start.wait()
        for turn in range(40):
            act = chance.choice((self.make, self.change, self.look, self.guess, self.offer, self.channel))
            try:
                act(caller, session, chance, others, contents, turn)
            except GenieError as error:
                self.problems.append(f"{act.__name__}: {type(error).__name__}: {error.message}")
        for handle, number in self.owns.items():
            found = set(unpack(session.fetch(handle).data))
            if found != {number}:
                self.problems.append(f"handle {handle} has {sorted(found)[:3]} instead of {number}")

    def make(self, caller: Caller, _: object, chance: random.Random, __: object, ___: object, turn: int) -> None:
        number = float(self.seed * 1000 + turn)
        self.owns[put(caller, pack([number] * FLOATS))] = number

    def change(self, caller: Caller, *_: object) -> None:
        if self.owns:
            handle = next(iter(self.owns))
            caller.run(ADD_ONE, [handle])
            self.owns[handle] += 1.0

    def look(self, _: object, session: RemoteSession, chance: random.Random, *__: object) -> None:
        if self.owns:
            handle = chance.choice(list(self.owns))
            if set(unpack(session.fetch(handle).data)) != {self.owns[handle]}:
                self.problems.append(f"handle {handle} is not {self.owns[handle]}")

    def guess(
        self, _: object, session: RemoteSession, chance: random.Random, others: list[Player], *__: object
    ) -> None:
        """Handles that are others', and none of mine."""
        theirs = [handle for other in others for handle in list(other.owns)]
        handle = chance.choice([*theirs, chance.getrandbits(62) + 1])
        if handle not in self.owns:
            try:
                session.fetch(handle)
            except NodeError:
                return
            self.problems.append(f"handle {handle} was there")

    def offer(
        self, caller: Caller, session: RemoteSession, chance: random.Random, _: object, contents: list[bytes], __: int
    ) -> None:
        """What all tenants have: each a memory of its own, whoever writes into it."""
        number = chance.randrange(len(contents))
        handle = put(caller, contents[number])
        self.owns[handle] = float(number)
        caller.run(ADD_ONE, [handle])
        self.owns[handle] += 1.0
        session.synchronize()

    def channel(self, _: object, session: RemoteSession, chance: random.Random, *__: object) -> None:
        """A channel that nobody opened. What it should bring fails, and nothing else."""
        outlet = session.outlet(
            Inlet(0, Target(token=f"{chance.getrandbits(128):032x}", address=self.shared.server.address))
        )
        if self.owns:
            session.send(outlet, next(iter(self.owns)))


def test_a_history_of_tenants_that_try_each_others_things(shared: Shared) -> None:
    names = [("alice", "alice"), ("alice-2", "alice"), ("bob", "bob"), ("carol", "carol")]
    players = [Player(shared, name, tenant, seed) for seed, (name, tenant) in enumerate(names, 1)]
    for player in players:  # tokens, before anybody needs them at once
        shared.access(player.name, player.tenant)
    contents = [pack([float(number)] * FLOATS) for number in range(4)]
    start = threading.Barrier(len(players), timeout=DEADLINE)
    threads = [
        threading.Thread(target=player.play, args=([p for p in players if p is not player], contents, start))
        for player in players
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert [player.problems for player in players] == [[]] * len(players)
    assert all(player.owns for player in players)


def test_status_tells_a_tenant_of_itself_and_the_operator_of_all(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, _ = shared.client("alice"), shared.client("bob")
    put(alice, weight(1))
    alice.session.synchronize()
    monkeypatch.setenv("GENIE_TOKEN_FILE", str(shared.directory / "alice"))
    known = status(shared.server.address, transport=shared.transport)
    assert known.account is not None
    assert (known.account.tenant, known.account.sessions, known.account.memory_quota) == ("alice", 1, 64 << 20)
    assert known.account.memory_bytes == 4 * FLOATS
    assert {info.tenant for info in known.sessions} == {"alice"}
    assert all(device.memory_bytes == 64 << 20 for device in known.devices)
    access = shared.access("boss", "", Scope.ADMIN)
    control = f"127.0.0.1:{shared.server.control_port}"
    with ControlClient(control, 20.0, token=access.token(control)) as client:
        accounts = {account.tenant: account for account in client.view().reception.accounts}
    assert accounts["alice"].memory_bytes == 4 * FLOATS
    assert accounts["bob"].sessions == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tenants: {alice: {memory: 1GiB}}\nmodel: 2GiB", "alice: a memory quota of 1073741824 bytes has no room"),
        ("tenants: {alice: {memory: 1G", "malformed"),
        ("tenants: {alice: {reserved: 1000}}", "1000 sessions are reserved of the 64"),
        (None, "cannot read the tenants file"),
    ],
)
def test_what_a_node_does_not_start_with(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "tenants.yaml").write_text(text)
    genie = [sys.executable, "-c", "import sys; from genie.cli import main; sys.exit(main())"]
    command = [*genie, "serve", "--port", "0", "--json", "--tenants", "tenants.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    first, *rest = done.stderr.strip().splitlines()
    assert reason in first, done.stderr
    assert all(line.startswith(("  where:", "  hint:")) for line in rest), done.stderr
