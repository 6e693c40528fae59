"""A TCP proxy between a client and a node that ill-treats the link."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_RESET = struct.pack("ii", 1, 0)
_PIECE = 1 << 16


@dataclass(frozen=True)
class Faults:
    """Of each piece of a stream, how probable it is that a bit of it flips, that it comes twice, that it comes after
    the next one, that it is lost, and that it is held back, for at most so many ``seconds``."""

    flip: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    lost: float = 0.0
    held: float = 0.0
    seconds: float = 0.0


class Proxy:
    """``budget`` gives, per connection, the bytes (of both directions) after which it is cut, or ``None``: never.

    ``delay`` (s) is how long each piece is held back at most, of a random length. A cut is a reset or, as often, an
    orderly end; the last piece arrives in part. ``faults`` strike at random, and ``struck`` counts them.
    """

    def __init__(
        self,
        target: str,
        *,
        seed: int = 0,
        budget: Iterator[int | None] | None = None,
        faults: Faults | None = None,
    ) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._random = random.Random(seed)
        self._budget = budget
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._closed = threading.Event()
        self.delay = 0.0
        self.trickles = False  # what comes from the node goes on by a byte a second
        self.faults = faults
        self.struck: Counter[str] = Counter()
        self._spoils = ""  # whose next piece arrives with a changed bit
        self.connections = 0
        self.cuts = 0
        self.shut = threading.Event()  # new connections are hung up on
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.shut.is_set():
                client.close()
                continue
            try:
                node = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            node.settimeout(None)
            self.connections += 1
            budget = next(self._budget, None) if self._budget is not None else None
            link = _Link(self, client, node, budget)
            with self._lock:
                self._links.append(link)
            link.start()

    def spoil(self, whose: str) -> None:
        """The next piece that comes from the ``client``, or from the ``node``, has one bit changed."""
        self._spoils = whose

    @property
    def spoilt(self) -> bool:
        """Whether it came."""
        return not self._spoils

    def passed(self, data: bytes, whose: str) -> bytes:
        with self._lock:
            if self._spoils != whose:
                return data
            self._spoils = ""
        return data[:-1] + bytes([data[-1] ^ 1])

    def pieces(self, data: bytes, held: list[bytes]) -> list[bytes]:
        """What goes on of a piece that came, with what was ``held`` of those before."""
        faults = self.faults
        if faults is None:
            return [data]
        with self._lock:
            chance = self._random.random
            if chance() < faults.flip:
                at = self._random.randrange(8 * len(data))
                spoilt = bytearray(data)
                spoilt[at >> 3] ^= 1 << (at & 7)
                data = bytes(spoilt)
                self.struck["flip"] += 1
            if chance() < faults.lost:
                self.struck["lost"] += 1
                return []
            if chance() < faults.late and not held:
                self.struck["late"] += 1
                held.append(data)
                return []
            out = [data, *held]
            held.clear()
            if chance() < faults.twice:
                self.struck["twice"] += 1
                out.append(data)
            if chance() < faults.held:
                self.struck["held"] += 1
                wait = self._random.uniform(0, faults.seconds)
            else:
                wait = 0.0
        if wait:
            self._closed.wait(wait)
        return out

    def pause(self) -> None:
        if self.delay:
            self._closed.wait(self._random.uniform(0, self.delay))

    def tick(self) -> None:
        self._closed.wait(1.0)

    def rudely(self) -> bool:
        return self._random.random() < 0.5

    def swallow(self, *, answers_only: bool = False) -> None:
        """What the present connections carry is taken from now on, and goes nowhere."""
        with self._lock:
            for link in self._links:
                link.swallow(answers_only=answers_only)

    def cut(self) -> None:
        """All connections, now."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.cut()

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join(5)


class _Link:
    def __init__(self, proxy: Proxy, client: socket.socket, node: socket.socket, budget: int | None) -> None:
        self._proxy = proxy
        self._ends = (client, node)
        self._left = budget
        self._mute: tuple[socket.socket, ...] = ()  # what comes from there goes nowhere
        self._lock = threading.Lock()
        self._over = False

    def start(self) -> None:
        client, node = self._ends
        for source, target in ((client, node), (node, client)):
            threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            held: list[bytes] = []
            while data := source.recv(self._bite(source)):
                self._proxy.pause()
                if self._bite(source) == 1:
                    self._proxy.tick()
                if source in self._mute:
                    continue
                data = self._proxy.passed(data, "client" if source is self._ends[0] else "node")
                if not all(self._pass_on(piece, target) for piece in self._proxy.pieces(data, held)):
                    break
        except OSError:
            pass
        self.cut()

    def _bite(self, source: socket.socket) -> int:
        return 1 if self._proxy.trickles and source is self._ends[1] else _PIECE

    def _pass_on(self, data: bytes, target: socket.socket) -> bool:
        """Whether all of it was within the budget."""
        with self._lock:
            allowed = len(data) if self._left is None else min(len(data), self._left)
            if self._left is not None:
                self._left -= allowed
        target.sendall(data[:allowed])
        if allowed < len(data):
            self._proxy.cuts += 1
        return allowed == len(data)

    def swallow(self, *, answers_only: bool) -> None:
        self._mute = self._ends[1:] if answers_only else self._ends

    def cut(self) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
        rudely = self._proxy.rudely()
        for end in self._ends:
            with contextlib.suppress(OSError):
                if rudely:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RD if rudely else socket.SHUT_RDWR)
        for end in self._ends:
            end.close()
