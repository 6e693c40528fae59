"""The client's side of a session: :class:`genie.interfaces.Session` over a connection.

Whatever needs no answer is queued or sent and forgotten; only looks wait. There is no thread of its own: the
caller's thread reads, since handing a message between threads costs more than the message.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from genie import codec
from genie.device import Device
from genie.errors import BackendError, GenieError, LimitExceeded, LocalProtocolError, PlanError, ProtocolError
from genie.graph import TensorSpec
from genie.host import HostValue, flat
from genie.interfaces import Buffer, Connection
from genie.loops import MOST_ITERATIONS, Loop
from genie.plan import ExecutionPlan, bare
from genie.remote.channels.veil import veil
from genie.remote.client.conversation import FREED_AT_ONCE, Conversation
from genie.remote.client.expected import Expected
from genie.remote.client.loops import RemoteLoop
from genie.remote.client.offers import Offers
from genie.remote.client.state import RemoteState, stage_all
from genie.security import Ticket
from genie.snapshots import MemoryState, Snapshot
from genie.timing import Timing
from genie.wire import Dialogue, Kind, Limits, channels, frames, messages, profiles

INLINE = 1 << 16  # smaller uploads wait in the outbox for company
OFFERED = 1 << 14  # shared uploads from this size on are offered by digest first
_PLANS_REMEMBERED = 512
_SPECS_REMEMBERED = 256

_EXECUTE = int(Kind.EXECUTE)


class Inlet(NamedTuple):
    """Where values from another session arrive."""

    number: int
    target: channels.Target


class RemoteSession:
    """One ordered stream of work on one device of a node."""

    conversation_type = Conversation

    def __init__(
        self, connection: Connection, dialogue: Dialogue, device: Device, limits: Limits, node: str, timeout: float
    ) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._conversation = self.conversation_type(connection, dialogue, limits, node, timeout)
        self._offers = Offers(self._conversation, self._upload)
        self._expected = Expected(self._conversation)
        self._state = RemoteState(self._conversation, self._value, self._upload)
        self._plans: dict[str, int] = {}
        self._recent: OrderedDict[int, tuple[ExecutionPlan, int]] = OrderedDict()
        self._plan_heads: list[bytes] = []
        self._specs: dict[bytes, tuple[TensorSpec, int]] = {}
        self._plans_sent = 0
        self._executions = 0
        self._inlets = 0
        self._outlets = 0
        self.speak: Callable[[channels.Target], Connection] | None = None  # how to send through an inlet
        self.ticket: Ticket | None = None  # that opened it

    # --- work -------------------------------------------------------------------------------------

    def load(self, plan: ExecutionPlan) -> int:
        with self._lock:
            known = self._recent.get(id(plan))
            if known is not None:
                self._recent.move_to_end(id(plan))
                return known[1]
            data = codec.encode(bare(plan))
            limit = self._conversation.limits.plan
            if len(data) > limit:
                raise LimitExceeded(f"a plan of {len(data)} bytes; the node takes {limit}")
            content = codec.digest(data)
            number = self._plans.get(content)
            if number is None:
                number = len(self._plan_heads)
                head = messages.put_varint(number)
                talk, interrupt = self._conversation, None
                bulks = talk.bulks
                try:
                    if len(data) < INLINE:
                        talk.queue(Kind.LOAD_PLAN, head + data)
                    else:
                        talk.send_bulk(Kind.LOAD_PLAN, head, memoryview(data))
                except BaseException as error:
                    if talk.bulks == bulks:
                        raise
                    interrupt = error  # after it was sent
                # The node counts too: no call in between, which an interrupt could follow.
                self._plans[content] = number
                self._plan_heads += [head]
                self._plans_sent += 1
                if interrupt is not None:
                    raise interrupt
            self._recent[id(plan)] = (plan, number)  # the plan is held, so its id stays its own
            if len(self._recent) > _PLANS_REMEMBERED:
                self._recent.popitem(last=False)
            return number

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        with self._lock:
            head = self._head(plan)
            talk = self._conversation
            if self._offers.unsettled:
                self._offers.settle()
            if talk.freed:
                talk.queue_freed()
            talk.queue(_EXECUTE, head + bindings)
            self._executions += 1
            if not more:
                talk.push()

    def loop(self, plan: int, bindings: Buffer, loop: Loop, times: int) -> Iterator[tuple[Buffer, ...]]:
        """See :class:`genie.interfaces.Looping`. Other calls may come between iterations: they wait for those that
        are asked for already."""
        if not 0 < times < MOST_ITERATIONS:
            raise PlanError(f"a loop of {times} iterations")
        with self._lock:
            head = self._head(plan)
            self._settle()
            self._executions += 1
            return RemoteLoop(self._lock, self._conversation, head, bindings, loop, times)

    def _head(self, plan: int) -> bytes:
        if not 0 <= plan < len(self._plan_heads):
            raise LocalProtocolError(f"plan {plan} was never loaded in this session")
        return self._plan_heads[plan]

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        view = flat(data)
        spec = TensorSpec(tuple(spec.shape), spec.dtype, spec.stride)
        size = messages.spec_bytes(spec, self._conversation.limits)
        if len(view) != size:
            raise LocalProtocolError(f"{len(view)} bytes for a value of {size} (shape {spec.shape}, {spec.dtype})")
        with self._lock:
            try:
                if shared and size >= OFFERED and spec.stride is None:
                    self._offers.add(handle, spec, view)
                else:
                    self._upload(handle, spec, view)
                self._conversation.give_back()
            except BaseException:
                self._conversation.give_back(interrupted=True)
                raise

    def _upload(self, handle: int, spec: TensorSpec, view: memoryview) -> None:
        if len(view) < INLINE:
            self._conversation.queue(Kind.UPLOAD, messages.put_value(handle, spec, view))
        else:
            self._conversation.send_bulk(Kind.UPLOAD, messages.put_value(handle, spec), view)

    def free(self, handles: Sequence[int]) -> None:
        """Garbage collection may call this at any moment, also while this thread holds the lock."""
        freed = self._conversation.freed
        freed.extend(handles)
        self._expected.drop(handles)
        if len(freed) >= FREED_AT_ONCE and not self._lock.locked():
            with self._lock:
                if self._conversation.ended is None:
                    self._settle()
                    self._conversation.queue_freed()
                    self._conversation.push()

    def seed(self, generator: int, seed: int) -> None:
        with self._lock:
            self._conversation.queue(Kind.SEED, messages.put_pair(generator, seed))

    def set_generator_state(self, generator: int, state: Buffer) -> None:
        with self._lock:
            payload = messages.HANDLE.pack(generator) + bytes(state)
            self._conversation.queue(Kind.SET_GENERATOR_STATE, payload)

    # --- values from and to other sessions ----------------------------------------------------------

    def inlet(self, source: str) -> Inlet:
        """Open one for a sender called ``source``: for :meth:`outlet` of the session that is to send."""
        with self._lock:
            self._settle()
            number = self._inlets
            self._inlets = number + 1
            payload = channels.put(channels.Opening(number=number, source=source))
            answer, _ = self._conversation.ask(Kind.INLET, payload, Kind.INLET_OPEN)
            target = self._conversation.read(channels.get_target, answer)
            target = veil(self.ticket, "inlet", number, target)
            return Inlet(number, msgspec.structs.replace(target, address=self._conversation.node))

    def outlet(self, inlet: Inlet) -> int:
        with self._lock:
            number = self._outlets
            self._outlets = number + 1
            target = veil(self.ticket, "outlet", number, inlet.target)
            self._conversation.queue(Kind.OUTLET, channels.put(channels.Outlet(number=number, target=target)))
            return number

    def abandon(self, inlet: Inlet, reason: GenieError) -> None:
        """See :class:`genie.interfaces.Abandoning`: it is said by a connection of its own, as its sender would."""
        if self.speak is None:
            return
        with contextlib.suppress(GenieError):  # the sender came, after all, or the session is gone
            connection = self.speak(inlet.target)
            try:
                connection.send(frames.one(1, Kind.ERROR, messages.put_error(reason)))
            finally:
                connection.close()

    def send(self, outlet: int, handle: int) -> None:
        with self._lock:
            self._settle()
            self._conversation.queue(Kind.SEND, channels.put_send(outlet, handle))
            self._conversation.push()

    def receive(self, inlet: Inlet, position: int, handle: int) -> None:
        with self._lock:
            if self._conversation.freed:  # to make room for it, perhaps
                self._settle()
                self._conversation.queue_freed()
            self._conversation.queue(Kind.RECEIVE, channels.put_receive(inlet.number, position, handle))

    # --- looks ------------------------------------------------------------------------------------

    def expect(self, handle: int, size: int) -> None:
        """See :class:`genie.interfaces.Expecting`. Where much is expected already, or much at once, this does nothing:
        the value comes when it is fetched."""
        with self._lock:
            self._settle()
            if not self._expected.ask(handle, size):
                self._conversation.push()

    def fetch(self, handle: int, out: memoryview | None = None) -> HostValue:
        with self._lock:
            self._settle()
            talk = self._conversation
            target = None if out is None else flat(out)
            size = messages.ANY_SIZE if target is None else len(target)
            try:
                talk.target = target
                answered = self._expected.answer(handle, size)
                if answered is None:
                    answered = talk.ask(Kind.FETCH, messages.put_pair(handle, size), Kind.VALUE)
                return talk.read(self._value, *answered)
            finally:
                talk.target = None

    def _value(self, answer: memoryview, data: memoryview | None) -> HostValue:
        """From a VALUE; its bytes are where they belong, or in the record when they are few."""
        head, few = messages.get_result(answer)
        known = self._specs.get(head)  # programs look at the same few shapes again and again
        if known is None:
            spec = messages.get_spec(head)
            known = (spec, messages.spec_bytes(spec, self._conversation.limits))
            if len(self._specs) >= _SPECS_REMEMBERED:
                self._specs.clear()
            self._specs[head] = known
        spec, size = known
        target = self._conversation.target
        if data is not None:
            if size != len(data) or len(few):
                raise ProtocolError("the node sent a value of another size than it says")
            if target is None or data.obj is target.obj:  # else it came before anybody said where it should go
                return HostValue(spec, data)
            target[:] = data
            return HostValue(spec, target)
        if size != len(few) or (target is not None and size != len(target)):
            raise ProtocolError("the node sent a value of another size than it says")
        if target is None:
            return HostValue(spec, memoryview(bytearray(few)))
        target[:] = few
        return HostValue(spec, target)

    def describe(self, handle: int) -> TensorSpec:
        with self._lock:
            self._settle()
            answer, _ = self._conversation.ask(Kind.DESCRIBE, messages.HANDLE.pack(handle), Kind.SPEC)
            return self._conversation.read(messages.get_spec, answer)

    def generator_state(self, generator: int) -> bytes:
        with self._lock:
            self._settle()
            answer, _ = self._conversation.ask(Kind.GENERATOR_STATE, messages.HANDLE.pack(generator), Kind.STATE)
            return bytes(answer)

    def synchronize(self) -> None:
        with self._lock:
            self._settle()
            self._conversation.ask(Kind.SYNC, b"", Kind.DONE)

    # --- the state as a whole -----------------------------------------------------------------------

    def speaks(self, minor: int) -> None:
        """What the node said of its version."""
        self._state.minor = minor

    def snapshot(self) -> Snapshot:
        """See :class:`genie.interfaces.Snapshotting`. What was freed so far is not part of it."""
        with self._lock:
            self._settle()
            return self._state.snapshot()

    def read_memory(
        self, id: int, out: memoryview | None = None, offset: int = 0, size: int | None = None, *, version: int = 0
    ) -> memoryview:
        with self._lock:
            self._settle()
            return self._state.read(id, out, offset, size, version)

    def restore(self, snapshot: Snapshot, memories: Callable[[MemoryState], Buffer | None]) -> None:
        def upload(handle: int, spec: TensorSpec, data: Buffer, shared: bool) -> None:
            self.upload(handle, spec, data, shared=shared)

        self.restore_staged(snapshot, stage_all(snapshot, memories, self.stage, upload))

    def restore_staged(self, snapshot: Snapshot, staged: Mapping[int, int]) -> None:
        with self._lock:
            self._settle()
            self._state.restore_staged(snapshot, staged)
            self._conversation.give_back()

    def send_memory(self, outlet: int, id: int, version: int) -> None:
        with self._lock:
            self._settle()
            self._state.send(outlet, id, version)

    def stage(self, handle: int, spec: TensorSpec, digest: bytes) -> bool:
        with self._lock:
            self._settle()
            return self._state.stage(handle, spec, digest)

    def cancel_work(self) -> None:
        """See :class:`genie.interfaces.Recalling`."""
        with self._lock:
            self._conversation.cancel()

    def _settle(self) -> None:
        """No answer is due but the one to the question to come, and all values are the node's."""
        if self._offers.unsettled:
            self._offers.settle()

    # --- about it ---------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Ended, for whatever reason."""
        return self._conversation.ended is not None

    @property
    def peer(self) -> str:
        """The address in use, which may be a shortcut to the node's."""
        return self._conversation.peer

    @property
    def transport(self) -> str:
        """What carries it now, where the connection knows."""
        return self._conversation.transport

    @property
    def traffic(self) -> Mapping[str, int]:
        """This side's counters, without asking the node."""
        return {
            **self._conversation.traffic,
            "plans_sent": self._plans_sent,
            "executions": self._executions,
            "weights_offered": self._offers.offered,
            "weights_known": self._offers.known,
        }

    def stats(self) -> Mapping[str, int]:
        """The node's counters of this session and this side's own; of an ended session the latter alone."""
        counters: dict[str, int] = {}
        with self._lock, contextlib.suppress(BackendError):
            self._settle()
            answer, _ = self._conversation.ask(Kind.STATS, b"", Kind.COUNTERS)
            counters = self._conversation.read(messages.get_counters, answer)
        return {**counters, **self.traffic}

    def profile(self, share: float | None = None) -> tuple[Timing, ...]:
        """See :class:`genie.interfaces.Profiling`: how long operators took on the node."""
        if share is not None and not 0 <= share <= 1:
            raise LocalProtocolError(f"timing takes a share of the time from 0 to 1, not {share!r}")
        with self._lock:
            self._settle()
            answer, _ = self._conversation.ask(Kind.PROFILE, profiles.put_share(share), Kind.PROFILED)
            return self._conversation.read(profiles.get_rows, answer)

    def close(self) -> None:
        with self._lock:
            self._conversation.close()
