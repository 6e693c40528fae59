"""What a plugin implements. Each protocol's docstring says what its caller relies on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from genie.device import Device
from genie.errors import GenieError
from genie.graph import Graph, Node, Semantics, TensorSpec
from genie.loops import Loop
from genie.plan import ExecutionPlan
from genie.snapshots import MemoryState, Snapshot
from genie.timing import Timing

Buffer = bytes | bytearray | memoryview
_T = TypeVar("_T")


class Fetched(Protocol):
    """A value brought home: its spec (contiguous) and its bytes in C order, little-endian."""

    spec: TensorSpec
    data: memoryview


@runtime_checkable
class Session(Protocol):
    """One ordered stream of work on one device.

    Calls return before the work is done, except those that return a value. Work happens in the order of the
    calls. Handles are positive 63-bit integers chosen by the caller, never reused within a session. A failed
    step poisons what depends on it; the error is raised (``genie.errors.RemoteOpError``) by the next call that
    looks at a poisoned handle, and the session lives on. All methods may be called from any thread, one at a
    time.
    """

    device: Device

    def load(self, plan: ExecutionPlan) -> int:
        """Verify and prepare a plan; returns its id in this session. The same plan twice is the same id."""

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        """Run a loaded plan. ``bindings`` as in :mod:`genie.bindings`: output k of the plan becomes the handle
        ``first output handle + k``; donated inputs are gone afterwards. ``more`` says that a look follows at once:
        the execution may wait for it, to travel in one message."""

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        """A new value from host bytes in C order, which the callee has taken when the call returns. It is laid out by
        the spec's strides, where the device can; contiguous without.
        ``shared`` marks content likely to be known already (weights): it is offered by digest first."""

    def fetch(self, handle: int, out: memoryview | None = None) -> Fetched:
        """The value's elements in C order, into ``out`` when given (its size must match)."""

    def describe(self, handle: int) -> TensorSpec:
        """The value's shape, dtype and exact strides, as the device made it."""

    def free(self, handles: Sequence[int]) -> None: ...

    def seed(self, generator: int, seed: int) -> None:
        """Seed a random generator of the session; 0 is the default one."""

    def generator_state(self, generator: int) -> bytes: ...

    def set_generator_state(self, generator: int, state: Buffer) -> None: ...

    def synchronize(self) -> None:
        """Wait until everything asked so far is done (errors stay with their handles)."""

    def stats(self) -> Mapping[str, int]:
        """Counters: bytes_sent, bytes_received, round_trips, plans, memory_bytes, peak_memory_bytes …"""

    def close(self) -> None: ...


@runtime_checkable
class TakesWords(Protocol):
    """What a session may be besides: one that wants the words of a binding (:mod:`genie.bindings`), not their bytes."""

    def execute_words(self, plan: int, words: Sequence[int], *, more: bool = False) -> None: ...

    def loop_words(
        self, plan: int, words: Sequence[int], loop: Loop, times: int
    ) -> Iterator[tuple[Buffer, ...]] | None:
        """As :meth:`Looping.loop`, or ``None`` when the plan, with these words, can't be repeated in one place."""


@runtime_checkable
class Linked(Protocol):
    """What a session may be besides: one that sends values to others of its kind directly. An inlet of one session is
    where values arrive that another, given it, sends. Errors arrive in place of values."""

    def inlet(self, source: str) -> Any: ...

    def outlet(self, inlet: Any) -> int: ...

    def send(self, outlet: int, handle: int) -> None:
        """What ``handle`` is at this point of the session's work goes on its way; the work goes on."""

    def receive(self, inlet: Any, position: int, handle: int) -> None:
        """What was sent at ``position`` (from 0) is ``handle``; what follows in the session waits for it."""


@runtime_checkable
class Abandoning(Protocol):
    """What a linked session may be besides: one that need not wait for a sender that cannot come. Its sender's
    ``synchronize`` says so."""

    def abandon(self, inlet: Any, reason: GenieError) -> None:
        """From any thread, at any time: who waits for the next value of ``inlet`` is told this, unless its sender
        connected. Does not raise."""


@runtime_checkable
class Snapshotting(Protocol):
    """What a session may be besides: one whose state can be told and given to another (:mod:`genie.snapshots`)."""

    def snapshot(self) -> Snapshot:
        """The state at this point of the session's work. It is no look: errors stay with their handles. Raises
        :class:`genie.errors.NodeError` if there is a value that has no plain memory (sparse, quantized)."""

    def read_memory(
        self, id: int, out: memoryview | None = None, offset: int = 0, size: int | None = None, *, version: int = 0
    ) -> memoryview:
        """Bytes of one memory as it is now, ``size`` of them (all that are left) from ``offset`` on; into ``out`` when
        given, whose size they then must have. Raises :class:`genie.errors.NodeError` for one that is gone or, if a
        ``version`` is asked for, has another."""

    def restore(self, snapshot: Snapshot, memories: Callable[[MemoryState], Buffer | None]) -> None:
        """Make this session, which holds no values, what the other was; handles, ids and versions are the same then.
        Failures other than operators' become :class:`genie.errors.RemoteOpError` of their ``kind``. ``memories`` is
        asked for the bytes of what is not known here by its digest, once per memory; ``None`` where it has none, which
        is a :class:`genie.errors.NodeError`. After an error the session is of no use."""

    def restore_staged(self, snapshot: Snapshot, staged: Mapping[int, int]) -> None:
        """The same where the bytes are here: memory → the handle of a value with just these bytes, which it takes.
        Such are the only values of the session. Raises :class:`genie.errors.NodeError` if something does not fit or
        is missing; the values are as they were then."""


@runtime_checkable
class Replicating(Protocol):
    """What a session that is :class:`Linked` and :class:`Snapshotting` may be besides: one whose memories reach others
    of its kind directly."""

    def send_memory(self, outlet: int, id: int, version: int) -> None:
        """As :meth:`Linked.send`, of a memory's bytes: they arrive as a value of that many ``uint8``. An error arrives
        if the memory is gone or has another version."""

    def stage(self, handle: int, spec: TensorSpec, digest: bytes) -> bool:
        """If the session's node has the content with this digest, it is the contiguous value ``handle`` from now on;
        whether it has."""


@runtime_checkable
class Expecting(Protocol):
    """What a session may be besides: one that takes word of looks to come."""

    def expect(self, handle: int, size: int) -> None:
        """The value, as it is at this point of the session's work and of so many bytes, will be fetched: it may set
        out as soon as it is there. Errors are told by ``fetch``."""


@runtime_checkable
class Poisoning(Protocol):
    """What a session may be besides: one that takes an error in place of a value. Whoever looks at it, or needs it,
    gets that."""

    def poison(self, handle: int, error: GenieError) -> None: ...


@runtime_checkable
class Cancelling(Protocol):
    """What a session may be besides: one whose work can be stopped between two operators."""

    def cancel(self, reason: str) -> None:
        """From any thread, at any time, without waiting. What runs stops, and what comes later is not done, until
        :meth:`resume`: values that are not made by then, and those that should have been written to, carry
        :class:`genie.errors.Cancelled`."""

    def resume(self) -> None: ...


@runtime_checkable
class Recalling(Protocol):
    """What a session may be besides: one whose client can take back what it asked."""

    def cancel_work(self) -> None:
        """What was asked and is not done yet, is not done: what runs stops before its next operator. Values that are
        missing then raise :class:`genie.errors.Cancelled`; so do those that should have been written to, for they may
        be written to in part. The session goes on."""


@runtime_checkable
class Looping(Protocol):
    """What a session may be besides: one that repeats a plan by itself, without being told each time."""

    def loop(self, plan: int, bindings: Buffer, loop: Loop, times: int) -> Iterator[tuple[Buffer, ...]]:
        """Run a loaded plan up to ``times`` times. ``bindings`` are the first iteration's, as for ``execute``, and
        the memory of what was sent last stays with them.

        The iterator gives, after each iteration and as soon as they are known, the elements of the outputs in
        ``loop.emit``, and ends after the last; it raises what a step raised, and then the loop is over, too. From the
        first iteration on the plan's output handles are the last iteration's. Whoever stops iterating ends the loop,
        after a few more iterations perhaps; other calls may come between. Raises :class:`genie.errors.PlanError` for
        a loop that does not fit the plan."""


@runtime_checkable
class Profiling(Protocol):
    """What a session may be besides: one that times some of its executions, operator by operator."""

    def profile(self, share: float | None = None) -> Sequence[Timing]:
        """How long operators took since the last call. ``share`` says how much of the time the timing may take from
        now on: a few thousandths unless said; 1 times every execution, 0 none."""


@runtime_checkable
class Backend(Protocol):
    """Executes plans. ``options`` come validated from :mod:`genie.config`."""

    name: str

    def devices(self) -> tuple[Device, ...]: ...

    def connect(self, device: Device) -> Session: ...

    def close(self) -> None: ...


@runtime_checkable
class Losing(Protocol):
    """What a backend may be besides: one whose devices may vanish while the program lives, and come back. A new session
    can be connected then, on them or on others."""

    loses: bool


@runtime_checkable
class Hosting(Protocol):
    """What a backend may be besides: one that lets its devices pass for others, as emulation asks it to."""

    def stand_in(self, real: Device, stated: Device) -> Backend:
        """A backend of the one device ``stated``, whose work the backend's own device ``real`` does. Its sessions keep
        within the stated memory together, and errors name the stated device."""


class Engine(Protocol):
    """What a frontend is given for one device index, which may stand for several devices: the session, with the
    stages before it composed.

    ``prepare`` is graph → annotate → schedule → verify → load; its result is remembered by the frontend under
    the graph's fingerprint. ``handles``, where known, are what its inputs are when it is first executed: where those
    live is where it should run. The rest is the session's.
    """

    device: Device
    session: Session

    def prepare(self, graph: Graph, handles: Sequence[int] = ()) -> int: ...

    def looked(self) -> None:
        """The program has just looked at a value: what was asked before is done, a good time for other questions."""


@runtime_checkable
class Frontend(Protocol):
    """Turns programs into graphs."""

    name: str

    def compile(self, program: Callable[..., Any], engine: Engine) -> Callable[..., Any]:
        """The program captured whole, run on ``engine``, fed and answering with the framework's own tensors. What runs
        it says which graph it ran (:func:`genie.latest.captured`), unless :class:`Captures` tells."""

    def accepts(self, program: object) -> bool:
        """Whether ``program`` is this frontend's kind of object, a program or a tensor (``genie.run`` and
        ``genie.execute`` ask when none is named)."""

    def to_host(self, tensor: Any) -> tuple[TensorSpec, Buffer]:
        """A tensor's elements in C order, little-endian, in this process's memory."""

    def from_host(self, spec: TensorSpec, data: Buffer) -> Any:
        """The framework's own tensor with these elements."""


@runtime_checkable
class Captures(Protocol):
    """What a frontend may be besides: one that captures operators as they run, not only whole programs."""

    def capture(self) -> Any:
        """A context manager: operators inside it are captured by this thread."""

    def latest_graph(self) -> Graph | None:
        """The last graph this thread captured, whichever way."""

    def captured(self) -> int:
        """How much was captured so far, of whichever thread: a number that grows with it."""


@runtime_checkable
class Launches(Protocol):
    """What a frontend may be besides: one whose compiled programs can be called without waiting for the results."""

    def launch(self, compiled: Callable[..., _T], *args: Any, **kwargs: Any) -> Callable[[], _T]:
        """Call what :meth:`Frontend.compile` gave; what is returned gives the results, and waits for them."""


@runtime_checkable
class TakesMarks(Protocol):
    """What a frontend may be besides: one whose programs and tensors take the user's word (``genie.mark``). What is
    said of a thread, and when that changes, it learns from :mod:`genie.marks`."""

    def takes_marks(self, target: object) -> Collection[str]:
        """The fields of :class:`genie.graph.Semantics` that can be said of ``target``; none of what is not this
        frontend's to mark."""

    def mark(self, target: Any, word: Semantics) -> None:
        """Keep ``word`` with ``target``, as long as that lives. What it says wins over what was said before."""


@runtime_checkable
class Generating(Protocol):
    """What a frontend may be besides: one whose language models generate with the loop on the device."""

    def generate(
        self, program: Any, ids: Any, engine: Engine, *, offload: bool, stream: bool, options: Mapping[str, Any]
    ) -> Any:
        """See :func:`genie.generate`; ``options`` are its keyword arguments for the program's kind. An iterator of
        tokens if ``stream``. ``offload`` says whether the device may run the loop by itself."""


@runtime_checkable
class PatternMatcher(Protocol):
    """Labels nodes. ``specificity`` decides between patterns that disagree: the higher wins."""

    name: str
    specificity: int

    def match(self, graph: Graph) -> Sequence[Sequence[Node] | Node]:
        """Groups of nodes of ``graph`` the pattern recognises; a node by itself is a group of one."""

    def annotate(self, nodes: Sequence[Node]) -> Mapping[int, Mapping[str, Any]]:
        """For one group: node id → labels (fields of :class:`genie.graph.Semantics`)."""


@runtime_checkable
class CostModel(Protocol):
    """Estimates. ``estimate_compute`` in seconds on ``device``; ``estimate_transfer`` in seconds."""

    def estimate_compute(self, node: Node, device: Device | None = None) -> float: ...

    def estimate_transfer(self, src: Device, dst: Device, bytes: int) -> float: ...


class Estimate(NamedTuple):
    """Seconds of one node on one device. ``source``, ``error`` and ``bound`` as in :class:`genie.plan.Decision`."""

    seconds: float
    source: str
    error: float = 0.0
    bound: str = ""


@runtime_checkable
class Appraising(Protocol):
    """What a cost model may be besides: one that says where its estimates come from, for many nodes at once."""

    def appraise(self, nodes: Sequence[Node], device: Device) -> Sequence[Estimate]: ...


@runtime_checkable
class Learning(Protocol):
    """What a cost model may be besides: one that learns from what operators took. Any thread may call."""

    @property
    def epoch(self) -> int:
        """Grows when estimates that plans were made with no longer hold."""

    def observe(self, device: Device, rows: Sequence[Timing]) -> None: ...

    def save(self) -> object:
        """Keep what was learned over the end of the process."""


@runtime_checkable
class PlacementStrategy(Protocol):
    """Decides where nodes run: node id → device id."""

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]: ...


@runtime_checkable
class Policy(Protocol):
    """Scores one evaluated candidate; the least score wins. Times in seconds, ``device_seconds`` per device id."""

    name: str

    def score(self, makespan: float, device_seconds: Mapping[str, float], devices: Sequence[Device]) -> float: ...


class Message(Protocol):
    """One message: a bounded header and raw buffers."""

    header: bytes
    buffers: Sequence[Buffer]


@runtime_checkable
class Connection(Protocol):
    """A message-shaped, ordered, reliable link to one peer. Every wait has a deadline, in seconds."""

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        """Queue one message and hand it to the peer; the buffers may be reused when the call returns."""

    def receive(
        self, allocate: Callable[[bytes, Sequence[int]], Sequence[memoryview]], timeout: float | None = None
    ) -> Message:
        """The next message. ``allocate(header, sizes)`` checks the sizes and gives the memory to fill;
        it is called before a byte of any buffer is read and may refuse by raising. A deadline in the middle of a
        message gives that message up, and its error says so (``midway``)."""

    def close(self) -> None: ...


@runtime_checkable
class Resumable(Protocol):
    """What a connection may be besides: one whose messages go out whole though an exception (Ctrl-C) strikes ``send``.

    ``begun`` counts messages; it has grown when ``send`` was interrupted after it took the message, and has not when
    it is as if it had not been called. ``finish`` sends what is left of a message, within the times ``send`` has; what
    it does not come to, being interrupted itself, goes before the next message.
    """

    begun: int

    def finish(self) -> None: ...


@runtime_checkable
class Watched(Protocol):
    """A connection may tell, without reading, whether the peer has closed it: nodes that wait for something else then
    need not wait for nobody."""

    def hung_up(self) -> bool:
        """From the thread that receives. What the peer sent before can still be received."""


@runtime_checkable
class Keyed(Protocol):
    """What a connection may be besides: one that protects its messages itself. Where the node gives tickets, both ends
    are told the session's secret, 32 bytes that nobody else knows, right after the greeting."""

    def keyed(self, key: bytes) -> None: ...


@runtime_checkable
class Certified(Protocol):
    """What a connection may be besides: one that knows, once a message has come, by which certificate its peer was
    let in. Nodes with a list of revoked certificates serve only who shows one with a ``fingerprint: str``, the SHA-256
    of its DER in hexadecimal digits."""

    subject: str  # its common name; "" if none was asked for


@runtime_checkable
class Labelled(Protocol):
    """What a connection may be besides: one that knows what carries it (``tcp``, ``unix``, ``dpdk``)."""

    transport: str


@runtime_checkable
class Encrypting(Protocol):
    """What a transport may be besides: one that speaks TLS by the settings ``ca``, ``cert``, ``key``, ``client_ca``."""

    encrypts: bool


def encrypts(transport: object) -> bool:
    return isinstance(transport, Encrypting) and transport.encrypts


@runtime_checkable
class Diagnosed(Protocol):
    """What a transport may be besides: one that says what more it can do here, by name, and why not ("" if it can)."""

    def abilities(self) -> Mapping[str, str]: ...


@runtime_checkable
class Listener(Protocol):
    address: str

    def accept(self, timeout: float | None = None) -> Connection: ...

    def close(self) -> None: ...


@runtime_checkable
class Transport(Protocol):
    """Carries messages. Addresses are ``host:port`` or what the transport documents."""

    name: str

    def connect(self, address: str, timeout: float) -> Connection: ...

    def listen(self, address: str) -> Listener: ...
