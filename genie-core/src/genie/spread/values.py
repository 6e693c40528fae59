"""The values of a spread session: what waits here, where the others live, and how they get to where they are used."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Sequence

from genie.device import Device
from genie.errors import OutOfMemory, RemoteOpError
from genie.graph import TensorSpec
from genie.host import HostValue, flat
from genie.interfaces import Buffer, Expecting, Fetched, Session
from genie.spread.directory import Directory
from genie.spread.ledger import Held, Ledger, as_text
from genie.spread.moves import Moves

_OWN_HANDLES = 1 << 62  # from here on: names this session gives to what the program does not see
_UNPLACED_BYTES = 256 << 20  # of uploads that wait here for the plan which says where they are used
_AHEAD_BYTES = 128 << 20  # of values that set out for a device before they are needed there
_AHEAD_SHARE = 4  # … but no more than this part of its memory


class Values:
    """Not thread-safe. ``devices`` are those of ``members``, as plans name them."""

    def __init__(self, members: Sequence[Session], devices: Sequence[Device]) -> None:
        self._members = members
        self._devices = devices
        self.directory = Directory()
        self.moves = Moves(members)
        self.ledger = Ledger([device.memory_bytes for device in devices])
        self._unplaced: dict[int, tuple[TensorSpec, bytes, bool]] = {}
        self._unplaced_bytes = 0
        self._ahead: list[dict[int, int]] = [{} for _ in members]  # by member: handle → bytes that have set out for it
        self._next = _OWN_HANDLES
        self._short: dict[int, tuple[int, Held]] = {}  # member → bytes an execution lacked there, and what was held
        # Loops that go on while other work is done, and the handles they use.
        self._loops: weakref.WeakKeyDictionary[Iterator[tuple[Buffer, ...]], frozenset[int]] = (
            weakref.WeakKeyDictionary()
        )
        self.copies_dropped = 0

    def take(self, count: int) -> int:
        """So many handles for what the program does not see; the first of them."""
        first = self._next
        self._next += count
        return first

    def home(self, handle: int) -> int | None:
        """The member the value lives on, or none yet."""
        return None if handle in self._unplaced else self.directory.home(handle)[0]

    # --- from the program, and back -----------------------------------------------------------------

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, shared: bool) -> None:
        """The value waits here, as long as there is room, until a plan says where it is used."""
        view = flat(data)
        spec = TensorSpec(tuple(spec.shape), spec.dtype)
        if self._unplaced_bytes + len(view) > _UNPLACED_BYTES:
            for waiting in list(self._unplaced):
                self._place(waiting, self._roomiest(len(self._unplaced[waiting][1])))
        if len(view) > _UNPLACED_BYTES:
            self._put(handle, spec, view, shared, self._roomiest(len(view)))
        else:
            self._unplaced[handle] = (spec, bytes(view), shared)
            self._unplaced_bytes += len(view)

    def _place(self, handle: int, member: int, keep: Collection[int] = ()) -> None:
        spec, data, shared = self._unplaced[handle]
        self._put(handle, spec, memoryview(data), shared, member, keep)
        self._forget(handle)

    def _forget(self, handle: int) -> None:
        self._unplaced_bytes -= len(self._unplaced.pop(handle)[1])

    def _put(
        self, handle: int, spec: TensorSpec, data: memoryview, shared: bool, member: int, keep: Collection[int] = ()
    ) -> None:
        self.make_room(member, len(data), keep)
        self._members[member].upload(handle, spec, data, shared=shared)
        self.directory.add(handle, member, handle)
        self.ledger.add(handle, member, len(data), weight=shared)

    def _roomiest(self, size: int) -> int:
        """The first member with room for so many bytes besides the values it holds, or the one with most room."""
        held = self.ledger.values()
        room = [each.memory_bytes - taken for each, taken in zip(self._devices, held, strict=True)]
        # A tenth is left for what programs compute.
        fits = [number for number, each in enumerate(self._devices) if size <= room[number] - each.memory_bytes // 10]
        return fits[0] if fits else max(range(len(room)), key=room.__getitem__)

    def expect(self, handle: int, size: int) -> None:
        """Nothing to do for what is still here."""
        if handle not in self._unplaced:
            number, there = self.directory.home(handle)
            member: object = self._members[number]
            if isinstance(member, Expecting):
                member.expect(there, size)

    def fetch(self, handle: int, out: memoryview | None) -> Fetched:
        if handle in self._unplaced:
            spec, data, _ = self._unplaced[handle]
            if out is None:
                return HostValue(spec, memoryview(data))
            flat(out)[:] = data
            return HostValue(spec, out)
        member, there = self.directory.home(handle)
        try:
            self.moves.prove()
            return self._members[member].fetch(there, out)
        except RemoteOpError as error:
            raise self.told(error, member) from None

    def describe(self, handle: int) -> TensorSpec:
        if handle in self._unplaced:
            return self._unplaced[handle][0]
        member, there = self.directory.home(handle)
        try:
            self.moves.prove()
            return self._members[member].describe(there)
        except RemoteOpError as error:
            raise self.told(error, member) from None

    # --- to where they are used -----------------------------------------------------------------------

    def send(self, handle: int, member: int, size: int, *, wait: bool) -> None:
        """Have the value, of ``size`` bytes, set out for ``member``, if it lives elsewhere and not too much is under
        way; :meth:`bring` must follow. What is not uploaded yet may ``wait`` until then, if no other member needs it.
        """
        if handle in self._unplaced:
            if not wait:
                self._place(handle, member)
            return
        found = self.directory.at(handle, member)
        if found is not None:
            self.ledger.used_copy(member, found)
            return
        ahead = self._ahead[member]
        most = min(_AHEAD_BYTES, self._devices[member].memory_bytes // _AHEAD_SHARE)
        if handle not in ahead and sum(ahead.values()) + size <= most:
            ahead[handle] = size
            self.moves.send(*self.directory.home(handle), member)

    def use(self, handle: int, member: int) -> None:
        """If there is a copy, it is in use now."""
        found = self.directory.at(handle, member)
        if found is not None:
            self.ledger.used_copy(member, found)

    def forget_ahead(self) -> None:
        """What has set out is not wanted any more: an execution broke off."""
        self.moves.forget()
        for ahead in self._ahead:
            ahead.clear()

    def bring(self, handle: int, member: int, size: int, keep: Collection[int] = ()) -> int:
        """The value's handle on ``member``, which gets a copy if it lives elsewhere: of ``size`` bytes, as far as that
        is not known better. Copies of what is to ``keep`` stay if room is made for an upload."""
        if handle in self._unplaced:
            self._place(handle, member, keep)
            return handle
        found = self.directory.at(handle, member)
        if found is None:
            home, there = self.directory.home(handle)
            if not self.moves.under_way(home, there, member):
                self.moves.send(home, there, member)
            found = self.take(1)
            self.moves.receive(home, there, member, found)
            self._ahead[member].pop(handle, None)
            self.directory.add_copy(handle, member, found)
            self.ledger.add_copy(member, found, handle, self.ledger.size(handle) or size)
        return found

    def move(self, handle: int, member: int) -> None:
        """Have the value live on ``member``."""
        size = self.ledger.size(handle)
        if self.directory.at(handle, member) is None:
            self.make_room(member, size, (handle,))
        there = self.bring(handle, member, size)
        for before, name in self.directory.move(handle, member, there):
            self.ledger.remove_copy(before, name)
            if name != there or before != member:
                self._members[before].free((name,))
        self.ledger.move(handle, member)

    # --- their end ----------------------------------------------------------------------------------

    def remove(self, handle: int, consumed: Collection[int] = ()) -> None:
        """Forget a value, and free it on the members that have not used it up."""
        if handle in self._unplaced:
            self._forget(handle)
            return
        for member, there in self.directory.remove(handle):
            self.ledger.remove_copy(member, there)
            if member not in consumed:
                self._members[member].free((there,))
        self.ledger.remove(handle)

    def wrote(self, handle: int) -> None:
        """Its memory was written: copies are worth nothing any more."""
        for member, there in self.directory.wrote(handle):
            self.ledger.remove_copy(member, there)
            self._members[member].free((there,))

    # --- room ---------------------------------------------------------------------------------------

    def make_room(self, member: int, bytes: int, keep: Collection[int] = ()) -> None:
        """Copies on the member go, the least recently used first, until so many bytes more fit besides what it holds;
        but none of the handles to ``keep``. What does not fit even so is left to be seen: the need is an upper bound.
        """
        short = self.ledger.short(member, bytes)
        if short <= 0:
            return
        held = self.ledger.held(member)
        self._drop(member, short, keep)
        short = self.ledger.short(member, bytes)
        if short > 0:
            self._short[member] = (short, held)

    def keep_for(self, loop: Iterator[tuple[Buffer, ...]], handles: Collection[int]) -> None:
        """Copies of these stay as long as the loop is held."""
        self._loops[loop] = frozenset(handles)

    def _drop(self, member: int, bytes: int, keep: Collection[int] = ()) -> None:
        keep = frozenset(keep).union(*self._loops.values())
        for handle, there in self.ledger.oldest(member, bytes, keep):
            self.directory.drop_copy(handle, member)
            self.ledger.remove_copy(member, there)
            self._members[member].free((there,))
            self.copies_dropped += 1

    # --- errors -------------------------------------------------------------------------------------

    def told(self, error: RemoteOpError, member: int) -> RemoteOpError:
        """What ``member`` answered, as the program is told. Where memory was short, copies there go: what comes next
        has the room. Nothing is run again."""
        # Plans and steps are numbered otherwise here than in the member that raises; the user's line says enough.
        error.plan = error.step = -1
        if not isinstance(error, OutOfMemory):
            return error
        member = self._named(error.device, member)
        device = self._devices[member]
        lacked, held = self._short.pop(member, (0, self.ledger.held(member)))
        self._drop(member, held.copies)
        expected = f"; by the plan's estimate {as_text(lacked)} more than there are" if lacked else ""
        return OutOfMemory(
            f"device {device.id} has too little memory: {error.message}. "
            f"Of its {as_text(device.memory_bytes)} this program held {held}{expected}",
            op=error.op,
            kind=error.kind,
            device=device.id,
            source=error.source,
            where=error.where,
            hint="run without gradients where none are wanted (torch.no_grad()), use smaller batches, free what is not "
            "needed, or add a device or memory (GENIE_MEMORY_LIMIT_GB on the node, memory_gb in the cluster file)",
        )

    def _named(self, device: str, otherwise: int) -> int:
        """The member that an error's device is: its own name, or the one plans know. A node's own name for it says
        nothing if there are several of that name."""
        if device:
            for number, (ours, member) in enumerate(zip(self._devices, self._members, strict=True)):
                if device in (ours.id, member.device.id):
                    return number
        return otherwise
