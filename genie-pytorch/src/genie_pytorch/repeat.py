"""A loop of the program, gone on with by the node.

``step(state)`` is one step: it changes ``state`` in place. Steps are recorded, each as one segment. When three in a
row were the same plan, whose numbers moved by the same amounts and whose inputs were outputs of the step before, the
next ones are *rehearsed*: the program runs a step as it will be, on stand-ins for tensors, and what it would have sent
is compared with what the rule says. So far as that holds the node runs the loop by itself and sends back what each
iteration emits; then ``state`` is what the program would have made of it. Whatever does not fit runs step by step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import attrs
import torch

from genie import telemetry
from genie.errors import GenieError
from genie.loops import Loop, parameters_are_float
from genie_pytorch import progress
from genie_pytorch.lift import on_device
from genie_pytorch.native import _C
from genie_pytorch.port import port
from genie_pytorch.progress import Made, NotRegular, Place, Rule

Tensor = torch.Tensor
State = dict[str, Any]

log = telemetry.get_logger("genie.pytorch")

_WORD = (1 << 64) - 1
UNSEEN = 1 << 31  # steps ahead of what is looked at, where it does not matter when that comes

_FEWEST = 4  # iterations worth a loop
_BLOCK, _BLOCKS = 64, 4  # tokens; how many are looked at
_ATTEMPTS = 6  # recorded steps in a row that came to nothing


@attrs.frozen
class _Record:
    """A step as it was sent, and what the state was then."""

    step: Any  # native
    words: list[int]
    donated: list[bool]  # by input
    notes: list[Any]


@attrs.frozen
class _Regular:
    """The loop found: what the node is told, and how state and words go on after the last recorded step."""

    last: _Record
    loop: Loop
    places: list[Place]
    moving: dict[int, Rule]

    def words(self, iteration: int) -> list[int]:
        """Handles and parameters of an iteration, the first being 1; handles as the first has them."""
        words = list(self.last.words)
        for given, output in self.loop.carries:
            words[1 + given] = words[0] + output
        for parameter, stride in self.loop.strides:
            at = 1 + len(self.last.donated) + parameter
            words[at] = (words[at] + iteration * stride) & _WORD
        return words


class Repeated:
    """Iterate to run up to ``times`` steps; each item is what ``state["token"]`` is after a step, on the host. The
    first is the token that is there at the beginning.

    ``state["ids"]`` are all tokens so far. The loop ends when ``state["done"]``, of one element, is not zero. So many
    steps as ``ahead`` says may be under way before a token is waited for, which saves round trips; those after the end
    are run for nothing. When the iterator has ended, ``state`` is as after the last item's step, or that many later.
    """

    def __init__(
        self, step: Callable[[State], None], state: State, times: int, index: int, *, ahead: int, offload: bool = True
    ) -> None:
        self.reason = "" if offload else "it was not to be"  # why steps run one by one
        self._step = step
        self._state = state
        self._times = times
        self._index = index
        self._ahead = ahead
        self._records: list[_Record] = []
        self._unseen: deque[Tensor] = deque()  # of each step its token and flag, on their way
        self._failed = 0 if offload else _ATTEMPTS
        if offload and not port.repeats(index):
            self._give_up("the session does not repeat plans")

    def __iter__(self) -> Iterator[Tensor]:
        left = self._times
        self._expect()
        while left > 0:
            if (yield from self._shown(self._ahead if self._failed < _ATTEMPTS else min(self._ahead, 1))):
                return
            left -= 1
            self._one_step()
            self._expect()
            regular = self._regular() if left >= _FEWEST else None
            times = self._rehearsed(regular, left) if regular is not None else 0
            if regular is not None and times >= _FEWEST:
                self._records.clear()
                if self._ahead == 0 and (yield from self._shown(0)):
                    return
                ran, done = yield from self._loop(regular, times)
                left -= ran
                if done:
                    return
        yield from self._shown(0)

    # --- looking

    def _expect(self) -> None:
        """Have the last step's token and flag set out, as soon as they are there."""
        token, done = self._state["token"], self._state["done"]
        row = torch.cat((token.reshape(-1), done.reshape(1).to(token.dtype)))
        if on_device(row):
            device, handle = _C.handle_of(row)
            port.expect(device, handle, row.nbytes)
        self._unseen.append(row)

    def _shown(self, unseen: int) -> Generator[Tensor, None, bool]:
        """Wait for tokens until only so many are not seen. Whether the last of those was."""
        shape = self._state["token"].shape
        while len(self._unseen) > unseen:
            row = self._unseen.popleft().cpu()
            yield row[:-1].reshape(shape).clone()
            if row[-1]:
                self._unseen.clear()
                return True
        return False

    # --- recording

    def _one_step(self) -> None:
        if self._failed >= _ATTEMPTS:
            self._step(self._state)
            return
        looks = _C.stats()["syncs"]
        try:
            _C.begin_step(self._index)
            self._step(self._state)
            step = _C.end_step(self._index)
        except BaseException:
            _C.abandon_step(self._index)
            raise
        try:
            if step is None or _C.stats()["syncs"] != looks:
                raise NotRegular("a step looks at a value on the way, or is not one segment")
            notes = progress.note(progress.places(self._state))
            self._records.append(_Record(step, step.words, step.donated, notes))
        except NotRegular as reason:
            self._try_again(str(reason))
        del self._records[:-3]

    def _regular(self) -> _Regular | None:
        if len(self._records) < 3:
            return None
        try:
            return _regular(self._state, self._records, self._index)
        except NotRegular as reason:
            del self._records[0]
            self._try_again(str(reason), forget=False)
            return None

    def _try_again(self, reason: str, forget: bool = True) -> None:
        if forget:
            self._records.clear()
        self._failed += 1
        if self._failed >= _ATTEMPTS:
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        self._failed = _ATTEMPTS
        self.reason = reason
        self._records.clear()
        log.info("the node does not run this loop", reason=reason)

    # --- rehearsing

    def _rehearsed(self, regular: _Regular, most: int) -> int:
        """How many iterations, up to ``most``, are as the rule says."""
        good = 0
        for iteration in self._rehearsals(most):
            reason = self._differs(regular, iteration)
            if reason:
                if good < _FEWEST:
                    self._try_again(f"{iteration} steps on, {reason}", forget=False)
                return good
            good = iteration
        self._failed = 0
        return good

    def _rehearsals(self, most: int) -> list[int]:
        """The iterations to rehearse: further and further away, and the last, for what a program does from some
        length on; and around the next few lengths at which blocks of memory would be full."""
        points = {1, most, *(1 << k for k in range(2, most.bit_length()))}
        length = self._state["ids"].shape[-1]
        for block in range(_BLOCKS):
            full = (length // _BLOCK + 1 + block) * _BLOCK - length
            points |= {full, full + 1}
        return sorted(point for point in points if point <= most)

    def _differs(self, regular: _Regular, iteration: int) -> str:
        """What is otherwise than the rule says, if anything is."""
        first = regular.last.words[0]

        def stand_in(rule: Made, like: Tensor) -> Tensor:
            made: Tensor = _C.stand_in(like, first + rule.output, rule.after(iteration - 1))
            return made

        state = progress.copied(self._state)
        progress.moved_on(progress.places(state), regular.moving, iteration - 1, stand_in)
        try:
            _C.begin_rehearsal(self._index)
            self._step(state)
            same, words = _C.end_rehearsal(self._index, regular.last.step)
        except (GenieError, RuntimeError) as error:
            _C.abandon_step(self._index)
            return str(error).partition("\n")[0]
        except BaseException:
            _C.abandon_step(self._index)
            raise
        if not same:
            return "a step does something else"
        if words != regular.words(iteration)[1:]:
            return "a step has other numbers"
        try:
            found = progress.places(state)
            return progress.is_as(found, regular.last.notes, progress.note(found), regular.moving, iteration)
        except NotRegular as reason:
            return str(reason)

    # --- running

    def _loop(self, regular: _Regular, times: int) -> Generator[Tensor, None, tuple[int, bool]]:
        """What is not seen yet, and the node's iterations; how many those were, and whether the loop's end was
        reached."""
        step = regular.last.step
        repetition = _C.Repetition(step, regular.words(1))
        iterations = port.loop(self._index, step.plan, repetition.bindings, regular.loop, times)
        if iterations is None:
            self._give_up("its plan runs on several devices")
            return 0, False
        repetition.begun()
        like = self._state["token"]
        shape, dtype = like.shape, like.dtype
        donated = {k for given, k in regular.loop.carries if regular.last.donated[given]}
        for place, rule in ((regular.places[index], rule) for index, rule in regular.moving.items()):
            if isinstance(rule, Made) and rule.output in donated:
                _C.give_up(place.get())
        over = yield from self._shown(0)
        ran, done = 0, over
        for token, flag in iterations:
            ran += 1
            telemetry.counters.add("loop_iterations")
            done = over or any(flag)
            if not over:  # else it was before the loop: the node stops by itself
                yield torch.frombuffer(bytearray(token), dtype=dtype).reshape(shape)
        progress.moved_on(
            regular.places,
            regular.moving,
            ran,
            lambda rule, like: repetition.output(rule.output, like, rule.after(ran)),
        )
        return ran, done


def _regular(state: State, records: list[_Record], index: int) -> _Regular:
    """The loop these three steps are the beginning of. Raises :class:`NotRegular`."""
    last = records[2]
    if len({(record.step.plan, *record.donated) for record in records}) > 1:
        raise NotRegular("steps are different plans")
    found = progress.places(state)
    if any(len(record.notes) != len(found) for record in records):
        raise NotRegular("what is kept from step to step changes")
    words = [record.words for record in records]
    firsts = [each[0] for each in words]
    outputs: int = last.step.outputs
    moving = progress.rules(found, [record.notes for record in records], firsts, outputs)
    named = {found[at].path: rule.output for at, rule in moving.items() if isinstance(rule, Made)}
    unknown = set(range(outputs)) - set(named.values()) - progress.bases(last.notes, firsts[2])
    if unknown:
        raise NotRegular(f"{len(unknown)} values of a step are held somewhere else")
    if "token" not in named or "done" not in named:
        raise NotRegular("a step makes no token, or no flag, of its own")
    carries = _carries(words, last.donated, outputs)
    strides = _strides(words, len(last.donated), last.step.graph)
    return _Regular(last, Loop(carries, strides, (named["token"], named["done"]), named["done"]), found, moving)


def _carries(words: list[list[int]], donated: list[bool], outputs: int) -> tuple[tuple[int, int], ...]:
    carries = []
    for i, used_up in enumerate(donated):
        one, two, three = (each[1 + i] for each in words)
        if one == two == three:
            if used_up:
                raise NotRegular("a step uses a value up that the next one needs")
            continue
        output = three - words[1][0]
        if not 0 <= output < outputs or two - words[0][0] != output:
            raise NotRegular("a step needs values that the step before did not make (an upload, perhaps)")
        carries.append((i, output))
    return tuple(carries)


def _strides(words: list[list[int]], inputs: int, graph: int) -> tuple[tuple[int, int], ...]:
    floats = parameters_are_float(port.graph(graph))
    strides = []
    for p, (one, two, three) in enumerate(zip(*(each[1 + inputs :] for each in words), strict=True)):
        step = (three - two) & _WORD
        if step != (two - one) & _WORD or (step and floats[p]):
            raise NotRegular("a number changes otherwise than by the same amount each step")
        if step:
            strides.append((p, step - (1 << 64) if step >> 63 else step))
    return tuple(strides)
