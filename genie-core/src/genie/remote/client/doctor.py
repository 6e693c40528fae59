"""Looks for what is wrong between this side and a node. A finding is one line, and one on what to do."""

from __future__ import annotations

import contextlib
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Final, Literal

import msgspec

import genie
from genie.config import Settings
from genie.device import Device
from genie.errors import AccessDenied, ConfigError, DeadlineExceeded, GenieError, ProtocolError, TlsFailed
from genie.graph import TensorSpec
from genie.interfaces import Diagnosed, Transport, encrypts
from genie.plugins import Registry
from genie.remote.client.access import Access, control_address, is_loopback
from genie.remote.client.backend import RemoteBackend
from genie.remote.client.negotiating import Negotiator
from genie.remote.client.routes import Routes
from genie.remote.greeting import farewell, quicker
from genie.remote.secrecy import AUTHENTICATED
from genie.wire import PROTOCOL
from genie.wire.messages import Welcome

Level = Literal["ok", "warning", "failure"]

_SKEW_SECONDS: Final = 1.0
_SLOW_TRIP_SECONDS: Final = 0.02
_SLOW_BYTES: Final = 50e6  # per second
_TRIPS: Final = 20
_OURS: Final = ("genie-core", "genie-pytorch", "genie-backend-local", "genie-backend-tcp", "torch")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """``node`` is "" for this side, ``todo`` where nothing is wrong. ``value`` is what was measured, in ``unit``."""

    node: str = ""
    check: str
    level: Level
    text: str
    todo: str = ""
    value: float | None = None
    unit: str = ""


def this_side(plugins: Registry, settings: Settings) -> Iterator[Finding]:
    """What can be told without a node."""
    found = _versions()
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    yield Finding(check="versions", level="ok", text=f"Python {platform.python_version()}, {told}")
    broken = [offer for offer in plugins.offers() if offer.error]
    for offer in broken:
        yield Finding(
            check="plugins",
            level="warning",
            text=f"{offer.distribution or offer.name}: {offer.error}",
            todo="reinstall it, or remove it: `genie plugins list` has all of them",
        )
    if not broken:
        yield Finding(check="plugins", level="ok", text="all load")
    yield from _abilities(plugins, settings, {offer.name for offer in broken})
    if not settings.nodes:
        yield Finding(
            check="nodes",
            level="warning",
            text="no nodes are configured: programs run in this process",
            todo="set `nodes` (GENIE_NODES=host:port), or name them: genie doctor HOST:PORT",
        )


def _abilities(plugins: Registry, settings: Settings, told: set[str]) -> Iterator[Finding]:
    for name in plugins.names("transport"):
        if name in told:
            continue
        try:
            transport = plugins.make("transport", name, settings)
        except GenieError as error:
            yield _failed("", name, error, error.hint, level="warning")
            continue
        for what, why_not in transport.abilities().items() if isinstance(transport, Diagnosed) else ():
            yield Finding(check=f"{name}, {what}", level="ok", text=f"no: {why_not}" if why_not else "yes")


def node(address: str, transport: Transport, settings: Settings, *, megabytes: int) -> Iterator[Finding]:
    """All there is to find about one node; ends with the first thing without which nothing else can be asked."""
    start = time.monotonic()
    try:
        access = Access.from_settings(settings, transport)
        met = access.meet(transport, address, -1, settings.connect_timeout, genie=genie.__version__)
    except (AccessDenied, ConfigError, TlsFailed) as error:
        yield _failed(address, "access", error, error.hint or "see docs/security.md")
        return
    except DeadlineExceeded as error:
        todo = "it does not answer: see whether its process is stopped or overloaded; or something drops its packets"
        yield _failed(address, "data port", error, todo)
        return
    except GenieError as error:
        yield _failed(address, "data port", error, "start the node there, or open the port in the firewall")
        return
    farewell(met)
    welcome = met.welcome
    took = time.monotonic() - start
    yield Finding(node=address, check="data port", level="ok", text=f"answers in {took * 1e3:.1f} ms")
    yield _protocol(address, welcome)
    yield from _control(address, welcome, access, settings)
    yield _accelerators(address, welcome)
    yield _way(address, welcome, transport, access, settings)
    best = _best(address, transport, access, settings)
    yield _transport(address, transport, best, settings)
    if isinstance(best, Routes) and access.plain(best.found[0].transport):
        yield _plain_data(address, welcome, best.found[0].name)
    else:
        yield _secrecy(address, welcome, transport)
    if welcome.devices:
        yield from _measured(address, transport, access, settings, megabytes)


def _protocol(address: str, welcome: Welcome) -> Finding:
    theirs, ours = f"{welcome.major}.{welcome.minor}", f"{PROTOCOL[0]}.{PROTOCOL[1]}"
    same = (welcome.genie, theirs) == (genie.__version__, ours)
    return Finding(
        node=address,
        check="version",
        level="ok" if same else "warning",
        text=f"the node has Genie {welcome.genie or 'of no version'} (protocol {theirs}), "
        f"this side {genie.__version__} ({ours})",
        todo="" if same else "install the same version on both sides",
    )


def _control(address: str, welcome: Welcome, access: Access, settings: Settings) -> Iterator[Finding]:
    if not welcome.control_port:
        yield Finding(
            node=address,
            check="control port",
            level="warning",
            text="the node has no control plane",
            todo="its log says why the port could not be had",
        )
        return
    try:
        control = control_address(address, welcome.control_port)
        with access.control_at(control, settings.connect_timeout) as client:
            healthy = client.healthy()
            versions = client.capabilities().versions
            before = time.time()
            view = client.view()
            after = time.time()
    except AccessDenied as error:
        todo = "ask with a token of scope `admin` for clocks and sessions; programs need none of that"
        yield _failed(address, "control port", error, todo, level="warning")
        return
    except GenieError as error:
        todo = f"open port {welcome.control_port}, too: status, health and drain need it, data does not"
        yield _failed(address, "control port", error, todo, level="warning")
        return
    yield Finding(
        node=address,
        check="control port",
        level="ok" if healthy else "warning",
        text=f"port {welcome.control_port}: {'serving' if healthy else 'not serving'}",
        todo="" if healthy else "the node is draining: use another one",
    )
    yield _torch(address, versions)
    yield _clock(address, view.time, before, after)
    full = len(view.sessions) >= view.max_sessions
    yield Finding(
        node=address,
        check="sessions",
        level="warning" if full else "ok",
        text=f"{len(view.sessions)} of {view.max_sessions}",
        todo="wait until one ends, or use another node: `genie top` shows whose they are" if full else "",
    )


def _torch(address: str, versions: dict[str, str]) -> Finding:
    theirs, ours = versions.get("torch", ""), _versions().get("torch", "")
    release = [version.partition("+")[0] for version in (theirs, ours)]
    differ = bool(theirs and ours and release[0] != release[1])
    return Finding(
        node=address,
        check="torch",
        level="warning" if differ else "ok",
        text=f"the node has torch {theirs or 'not'}, this side {ours or 'none'}",
        todo="install the same release on both sides: operators and their results may differ" if differ else "",
    )


def _clock(address: str, theirs: float, before: float, after: float) -> Finding:
    skew = theirs - (before + after) / 2
    off = abs(skew) > _SKEW_SECONDS + (after - before)
    return Finding(
        node=address,
        check="clock",
        level="warning" if off else "ok",
        text=f"the node's is {skew * 1e3:+.1f} ms from this side's (± {(after - before) * 500:.1f} ms)",
        todo="run NTP on both: logs and traces of the two cannot be put in order" if off else "",
        value=skew,
        unit="s",
    )


def _accelerators(address: str, welcome: Welcome) -> Finding:
    names = [f"{device.id} ({device.memory_bytes / 2**30:.1f} GiB)" for device in welcome.devices]
    some = any(device.kind != "cpu" for device in welcome.devices)
    return Finding(
        node=address,
        check="devices",
        level="ok" if some else "warning",
        text=", ".join(names) or "none",
        todo="" if some else "no accelerator: if there should be one, check its driver and the node's build of torch",
    )


def _way(address: str, welcome: Welcome, transport: Transport, access: Access, settings: Settings) -> Finding:
    local = quicker(welcome)
    if not local:
        return Finding(node=address, check="unix socket", level="ok", text="the node is on another host, or has none")
    if not settings.unix_sockets:
        return Finding(
            node=address,
            check="unix socket",
            level="warning",
            text="the node is on this host, and its socket is not used",
            todo="set `unix_sockets` (GENIE_UNIX_SOCKETS=1): it is quicker than TCP",
        )
    try:
        met = access.meet(transport, local, -1, settings.connect_timeout, node=address, genie=genie.__version__)
        farewell(met)
    except GenieError as error:
        todo = "run both as one user, with the same /tmp and $XDG_RUNTIME_DIR; TCP is used meanwhile"
        return _failed(address, "unix socket", error, todo, level="warning")
    return Finding(node=address, check="unix socket", level="ok", text=f"works: {local}")


def _best(address: str, transport: Transport, access: Access, settings: Settings) -> Routes | GenieError:
    """The ways that the backend ``auto`` finds between here and there, whatever the backend is."""
    try:
        return Negotiator.from_settings(settings, transport, access).routes(address, settings.connect_timeout)
    except GenieError as error:
        return error


def _transport(address: str, transport: Transport, routes: Routes | GenieError, settings: Settings) -> Finding:
    if isinstance(routes, GenieError):
        return _failed(address, "transport", routes, routes.hint or "see the setting `transports`", level="warning")
    reasons = "".join(f"; {name}: {why}" for name, why in routes.passed_over.items())
    text = f"{routes.found[0].name} is the best of {', '.join(settings.transport_names)}{reasons}"
    used = settings.backend == "auto" or routes.found[0].transport is transport
    return Finding(
        node=address,
        check="transport",
        level="ok",
        text=text,
        todo="" if used else "set the backend to `auto`, and programs use it",
    )


def _secrecy(address: str, welcome: Welcome, transport: Transport) -> Finding:
    who = "asks who comes" if welcome.tickets else "serves whoever comes"
    if encrypts(transport):
        return Finding(node=address, check="secrecy", level="ok", text=f"TLS; the node {who}")
    near = is_loopback(address)
    return Finding(
        node=address,
        check="secrecy",
        level="ok" if near else "warning",
        text=f"no TLS{', and nothing leaves this host' if near else ': who is on the way can read and change it'}; "
        f"the node {who}",
        todo="" if near else "serve with a certificate (`genie certs init`) and set `ca` here: docs/security.md",
    )


def _plain_data(address: str, welcome: Welcome, name: str) -> Finding:
    """As `plain_data` allows it."""
    near = is_loopback(address)
    who = "asks who comes" if welcome.tickets else "asks for certificates alone"
    return Finding(
        node=address,
        check="secrecy",
        level="ok" if near else "warning",
        text=f"what {name} carries is {AUTHENTICATED}; all else goes by TLS; the node {who}",
        todo="" if near else "unset `plain_data` unless all who are on that network may read it: docs/security.md",
    )


def _measured(
    address: str, transport: Transport, access: Access, settings: Settings, megabytes: int
) -> Iterator[Finding]:
    """With real bytes, over the network even where there is a shorter way, in a session of its own."""
    backend = RemoteBackend("doctor", transport, (address,), timeout=settings.timeout, shortcut=False, access=access)
    try:
        yield from _session(address, backend, backend.devices()[0], megabytes)
    except GenieError as error:
        yield _failed(address, "session", error, error.hint or "the node's log has more")
    finally:
        backend.close()


def _session(address: str, backend: RemoteBackend, device: Device, megabytes: int) -> Iterator[Finding]:
    session = backend.connect(device)
    session.synchronize()
    trip = min(_timed(session.synchronize) for _ in range(_TRIPS))
    slow = trip > _SLOW_TRIP_SECONDS
    yield Finding(
        node=address,
        check="round trip",
        level="warning" if slow else "ok",
        text=f"{trip * 1e3:.3f} ms, the shortest of {_TRIPS}",
        todo="let the node run loops (genie.generate): programs that look at each token wait that long" if slow else "",
        value=trip,
        unit="s",
    )
    size = megabytes << 20
    data = secrets.token_bytes(size)
    spec = TensorSpec((size,), "uint8")
    back = memoryview(bytearray(size))

    def up() -> None:
        session.upload(1, spec, data)
        session.synchronize()

    def down() -> None:
        session.fetch(1, back)

    for check, action in (("bandwidth up", up), ("bandwidth down", down)):
        speed = size / max(_timed(action), 1e-9)
        slow = speed < _SLOW_BYTES
        yield Finding(
            node=address,
            check=check,
            level="warning" if slow else "ok",
            text=f"{speed / 1e6:,.0f} MB/s, {megabytes} MiB",
            todo="check the link's speed and what else uses it: weights take long over it, once" if slow else "",
            value=speed,
            unit="B/s",
        )
    if back != data:
        raise ProtocolError("what came back is not what was sent", where=address, hint="check memory and network cards")
    yield Finding(node=address, check="content", level="ok", text="what came back is what was sent")
    session.close()


def _timed(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _versions() -> dict[str, str]:
    found = {}
    for package in _OURS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _failed(address: str, check: str, error: GenieError, todo: str, level: Level = "failure") -> Finding:
    return Finding(node=address, check=check, level=level, text=error.message, todo=todo)
