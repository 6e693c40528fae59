"""All that was measured: tables, calibrations and links of devices, one epoch, and cost models over them."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from genie.device import Device
from genie.errors import GenieError
from genie.graph import BoundNode, Node
from genie.interfaces import Estimate
from genie.profile import store
from genie.profile.rooflines import Seen, fitted
from genie.profile.signature import Asked, Family, Signature, device_key, questions, signature_of
from genie.profile.table import MOST_ROWS, Table
from genie.schedule.cost import Calibration, DeviceRoof, asked_of
from genie.schedule.links import Links, Reach, Transfers
from genie.telemetry import get_logger
from genie.timing import Timing, fault

log = get_logger("genie.profile")

_MOST_USED = 1 << 16  # estimates that are remembered as being in use
_MOST_DEVICES = 1 << 12
_ENOUGH_TO_FIT = 8  # rows of a class, for a roofline of a device that was not calibrated
_OWN_FIT_AGAIN = 1.5  # … anew, when there are so many times more


class Profile:
    """What was measured on devices. Any thread may call.

    ``directory`` is where it is kept, by default :func:`genie.profile.default_directory`.

    ``epoch`` grows when an estimate that is in use moved by more than its error; plans made before may then be worth
    making anew.

    >>> profile = Profile()
    >>> profile.epoch
    0
    """

    def __init__(self, directory: str | Path = "") -> None:
        self.directory = Path(directory).expanduser() if directory else store.default_directory()
        self.links = Links()
        self._lock = threading.RLock()
        self._books: dict[str, _Book] = {}
        self._epoch = 0
        self._version = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def version(self) -> int:
        """Grows with whatever changes an estimate."""
        return self._version

    # --- what is told -----------------------------------------------------------------------------

    def observe(self, key: str, rows: Iterable[Timing]) -> bool:
        """Count in what a device (by :func:`device_key`) reported. Impossible rows are passed over. Whether the epoch
        grew."""
        sound = [row for row in rows if not fault(row)]
        if not sound:
            return False
        with self._lock:
            book = self._book(key)
            book.dirty = True
            return self._changed(book.merge(sound))

    def calibrate(self, key: str, calibration: Calibration, rows: Iterable[Timing] = ()) -> bool:
        """Take a device's calibration, in place of an older one. Whether the epoch grew."""
        with self._lock:
            book = self._book(key)
            book.calibrate(calibration, time.time())
            book.merge([row for row in rows if not fault(row)])
            book.dirty = True
            return self._changed(book.moved(None))

    def connect(self, key: str, address: str, reach: Reach) -> None:
        """A node's link was measured."""
        with self._lock:
            book = self._book(key)
            book.reach, book.address, book.dirty = reach, address, True
            self.links.measured(address, reach)
            self._version += 1

    def clear(self) -> None:
        """Forget everything, files excepted (:func:`genie.profile.clear`)."""
        with self._lock:
            self._books.clear()
            self._version += 1
            self._epoch += 1

    def _book(self, key: str) -> _Book:
        book = self._books.get(key)
        if book is None:
            if len(self._books) >= _MOST_DEVICES:
                del self._books[next(iter(self._books))]
            book = self._books[key] = _Book(key)
        return book

    def _changed(self, moved: bool) -> bool:
        self._version += 1
        self._epoch += moved
        return moved

    # --- what is asked ----------------------------------------------------------------------------

    def model(self, devices: Sequence[Device] = (), links: Links | Transfers | None = None) -> ProfiledCostModel:
        """A cost model over what is known at the time of each question; of other devices than ``devices``, too."""
        return ProfiledCostModel(self, self.links if links is None else links)

    def estimates(self, device: Device, asked: Sequence[Asked]) -> list[Estimate]:
        """What is asked of a device; it is in use from now on."""
        with self._lock:
            book = self._book(device_key(device))
            roof = book.roof(device)
            return [book.use(each, roof) for each in asked]

    def roof(self, device: Device) -> DeviceRoof:
        """The rooflines of a device: calibrated, else of what was seen, else of its figures."""
        with self._lock:
            return self._book(device_key(device)).roof(device)

    def records(self) -> tuple[store.Record, ...]:
        """Of every device, as it would be stored."""
        with self._lock:
            return tuple(book.record() for book in self._books.values() if not book.empty)

    # --- files ------------------------------------------------------------------------------------

    def load(self) -> tuple[GenieError, ...]:
        """Count in what is stored. Files that cannot be used are left out, logged, and returned as errors that name
        them: the estimates of their devices come from rooflines."""
        errors: list[GenieError] = []
        for path in store.paths(self.directory):
            try:
                record = store.read(path)
            except GenieError as error:
                log.warning("profile not used", file=str(path), reason=error.message)
                errors.append(error)
                continue
            with self._lock:
                self._take(record)
        return tuple(errors)

    def save(self) -> tuple[Path, ...]:
        """Store what is new, together with what other processes stored meanwhile. Raises ``CodecError``."""
        with self._lock:
            dirty = [book for book in self._books.values() if book.dirty and not book.empty]
            records = [book.record() for book in dirty]
            for book in dirty:
                book.dirty = False  # what is told from here on is for the next time
        if not records:
            return ()
        written = []
        with store.locked(self.directory):
            for record in records:
                written.append(store.write(self.directory, _joined(self.directory, record)))
        return tuple(written)

    def _take(self, record: store.Record) -> None:
        book = self._book(record.key)
        if record.calibration is not None and record.calibrated >= book.calibrated:
            book.calibrate(record.calibration, record.calibrated)
        book.merge(record.rows)
        if record.reach is not None and book.reach is None:
            book.reach, book.address = record.reach, record.address
            self.links.measured(record.address, record.reach)
        self._changed(book.moved(None))


class _Book:
    """One device."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.table = Table()
        self.calibration: Calibration | None = None
        self.calibrated = 0.0
        self.reach: Reach | None = None
        self.address = ""
        self.dirty = False
        self._device: Device | None = None  # the last that was asked about
        self._roof: DeviceRoof | None = None
        self._fitted = 0  # rows the rooflines were fitted to, where there is no calibration
        self._memo: dict[Family, dict[Signature, Estimate]] = {}
        # What was answered, and is therefore in use: the question, and the answer plans were made with.
        self._used: OrderedDict[Family, dict[Signature, tuple[Asked, Estimate]]] = OrderedDict()
        self._uses = 0

    @property
    def empty(self) -> bool:
        return not len(self.table) and self.calibration is None and self.reach is None

    def record(self) -> store.Record:
        return store.Record(
            key=self.key,
            rows=self.table.rows(),
            calibration=self.calibration,
            calibrated=self.calibrated,
            reach=self.reach,
            address=self.address,
        )

    def calibrate(self, calibration: Calibration, when: float) -> None:
        self.calibration, self.calibrated = calibration, when
        self._roof = None

    def roof(self, device: Device) -> DeviceRoof:
        if self._roof is None or device != self._device:
            self._device = device
            known = self.calibration or self.own_fit(device)
            self._roof = DeviceRoof(device, known)
            self._memo.clear()
        return self._roof

    def own_fit(self, device: Device) -> Calibration | None:
        """Rooflines of what was seen, where nobody calibrated."""
        self._fitted = len(self.table)
        return fitted([Seen(point.trait, point.seconds) for point in self.table.points()], device, _ENOUGH_TO_FIT)

    def merge(self, rows: Iterable[Timing]) -> bool:
        """Count rows in. Whether an estimate in use moved by more than its error."""
        changed = self.table.merge(rows)
        for kin in changed:
            self._memo.pop(kin, None)
        if self.calibration is None and len(self.table) >= _OWN_FIT_AGAIN * max(self._fitted, _ENOUGH_TO_FIT):
            self._roof = None
            return self.moved(None)
        return self.moved(changed)

    def estimate(self, asked: Asked, roof: DeviceRoof) -> Estimate:
        memo = self._memo.setdefault(asked.family, {})
        made = memo.get(asked.signature)
        if made is None:
            if len(memo) >= _MOST_USED:
                memo.clear()
            made = memo[asked.signature] = self.table.estimate(asked.signature, asked.family, asked.trait, roof)
        return made

    def use(self, asked: Asked, roof: DeviceRoof) -> Estimate:
        made = self.estimate(asked, roof)
        used = self._used.get(asked.family)
        if used is None:
            used = self._used[asked.family] = {}
        if asked.signature not in used:
            if self._uses >= _MOST_USED:
                self._uses -= len(self._used.popitem(last=False)[1])
                used = self._used.setdefault(asked.family, {})
            used[asked.signature] = (asked, made)
            self._uses += 1
        return made

    def moved(self, families: Iterable[Family] | None) -> bool:
        """Whether an estimate in use, of these families or of any, moved by more than its error."""
        if self._device is None or not self._used:
            return False
        roof = self.roof(self._device)
        fresh: list[tuple[dict[Signature, tuple[Asked, Estimate]], Asked, Estimate]] = []
        beyond = False
        for kin in self._used if families is None else families:
            used = self._used.get(kin, {})
            for asked, before in used.values():
                now = self.estimate(asked, roof)
                fresh.append((used, asked, now))
                beyond |= abs(now.seconds - before.seconds) > max(now.error, before.error) * before.seconds
        if beyond:
            for used, asked, now in fresh:
                used[asked.signature] = (asked, now)
        return beyond


class ProfiledCostModel:
    """Estimates from a profile: measured rows, else similar shapes, else rooflines; see ``Estimate.source``."""

    name = "profiled"

    def __init__(self, profile: Profile, links: Links | Transfers) -> None:
        self.profile = profile
        self._links = links

    def estimate_compute(self, node: Node, device: Device | None = None) -> float:
        """Seconds. Raises :class:`ValueError` without a device: speed is nothing a node has."""
        if device is None:
            raise ValueError("the profile needs a device")
        return self.appraise((node,), device)[0].seconds

    def appraise(self, nodes: Sequence[Node], device: Device) -> list[Estimate]:
        """An estimate per node. Nodes without their graph (:meth:`Graph.nodes` has it) get those of rooflines."""
        bound = [node for node in nodes if isinstance(node, BoundNode)]
        if len(bound) != len(nodes):
            roof = self.profile.roof(device)
            return [roof.estimate(asked) for asked in asked_of(nodes)]
        found: list[Estimate] = []
        for _, group in itertools.groupby(bound, key=lambda node: id(node.graph)):
            members = list(group)
            table = questions(members[0].graph)
            numbers = [table.numbers[node.id] for node in members]
            different = list(dict.fromkeys(numbers))
            answers = self.profile.estimates(device, [table.asked[number] for number in different])
            made = dict(zip(different, answers, strict=True))
            found += [made[number] for number in numbers]
        return found

    @property
    def epoch(self) -> int:
        return self.profile.epoch

    def observe(self, device: Device, rows: Sequence[Timing]) -> None:
        self.profile.observe(device_key(device), rows)

    def save(self) -> object:
        return self.profile.save()

    def estimate_transfer(self, src: Device, dst: Device, bytes: int) -> float:
        return self._links.seconds(src, dst, bytes)


def _joined(directory: Path, mine: store.Record) -> store.Record:
    """With what another process stored meanwhile: of each row the one that counts more, the newer calibration."""
    path = store.path_of(directory, mine.key)
    if not path.exists():
        return mine
    try:
        theirs = store.read(path)
    except GenieError as error:
        log.warning("profile replaced", file=str(path), reason=error.message)
        return mine
    rows = {signature_of(row): row for row in theirs.rows}
    for row in mine.rows:
        known = rows.get(signature_of(row))
        if known is None or known.count <= row.count:
            rows[signature_of(row)] = row
    kept = sorted(rows.values(), key=lambda row: row.count, reverse=True)[:MOST_ROWS]
    newer = theirs.calibration is not None and theirs.calibrated > mine.calibrated
    return msgspec.structs.replace(
        mine,
        rows=tuple(kept),
        calibration=theirs.calibration if newer else mine.calibration,
        calibrated=theirs.calibrated if newer else mine.calibrated,
        reach=mine.reach or theirs.reach,
        address=mine.address or theirs.address,
    )
