"""What each mode must move, in closed form: bytes of tensors, up (to the node) and down.

Ids are 8 bytes, other numbers 4, colours 1. For a language model with V tokens of vocabulary whose cache takes C bytes
per position (2 · layers · KV heads · width of a head · 4), a call with n new positions over t cached ones moves

===========  ======================  =====================================
mode         up                      down
===========  ======================  =====================================
blind-naive  W + 8 n + C t           4 V n + C (t + n)       W: all weights
blind        8 n + C t               4 V n + C (t + n)
partial      8 n                     4 V n
last         8 n                     4 V
sample       8 · (what the user wrote)  8
===========  ======================  =====================================

and ``loop``, per answer with s tokens said so far, by either side: 16 s + 8 up (``generate`` takes all ids, their mask
and the token to pad with). Of each token comes down itself and whether that was the end: 16 bytes of the first four,
which the program computes step by step until the loop is known, and 9 of the others, where the flag is a bool.

The other programs have no state but their weights; theirs are beside the functions below. Framing is not in the forms:
at most :data:`FRAMING` bytes a message on average, which the harness checks, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from disaggregation.programs import Chat, Pictures, Questions, Ranking, Workload

# Of one message: 16 bytes of prefix, sizes, records' heads, specs of tensors, handles; bindings of an execution where
# words surprise. Generous: 30 to 80 are usual.
FRAMING = 1024
# Of an answer by ``genie.generate``: tokens that come by themselves before the loop begins, and its fewest iterations.
LOOKED_AT = 4
FEWEST_LOOPED = 4


class Moved(NamedTuple):
    """Bytes of one run."""

    up: int
    down: int

    def __add__(self, other: object) -> Moved:
        assert isinstance(other, Moved)
        return Moved(self.up + other.up, self.down + other.down)


def calls(chat: Chat) -> Iterator[tuple[int, int]]:
    """(new positions, cached positions) of each call. A turn begins with the last token said before it, which no call
    has seen yet."""
    cached = 0
    for number, turn in enumerate(chat.turns):
        new = turn + (number > 0)
        for _ in range(chat.new):
            yield new, cached
            cached, new = cached + new, 1


def language(chat: Chat, mode: str, cache: int, vocabulary: int, weights: int) -> Moved:
    """``cache``: bytes per position. A chat as a whole."""
    each = list(calls(chat))
    ids = 8 * sum(n for n, _ in each)
    logits = 4 * vocabulary * sum(n for n, _ in each)
    up, down = cache * sum(t for _, t in each), cache * sum(t + n for n, t in each)
    match mode:
        case "blind-naive":
            return Moved(weights * len(each) + ids + up, logits + down)
        case "blind":
            return Moved(ids + up, logits + down)
        case "partial":
            return Moved(ids, logits)
        case "last":
            return Moved(ids, 4 * vocabulary * len(each))
        case "sample":
            return Moved(8 * sum(chat.turns), 8 * len(each))
        case "loop":
            said = [sum(chat.turns[: turn + 1]) + turn * chat.new for turn in range(len(chat.turns))]
            steps = chat.new if chat.new - LOOKED_AT < FEWEST_LOOPED else LOOKED_AT
            return Moved(sum(16 * s + 8 for s in said), len(said) * (16 * steps + 9 * (chat.new - steps)))
    raise ValueError(mode)


def questions(work: Questions, mode: str, weights: int) -> Moved:
    """A picture of P = 4 · 3 · side² bytes, q questions of w words, a answers to choose from. Blind: the picture with
    each question, all scores back. Partial: the picture once. Full: of each question the best answer and its score."""
    picture, words, scores = 4 * 3 * work.side**2, 8 * work.length, 4 * work.answers
    q = work.questions
    match mode:
        case "blind-naive":
            return Moved(q * (weights + picture + words), q * scores)
        case "blind":
            return Moved(q * (picture + words), q * scores)
        case "partial":
            return Moved(picture + q * words, q * scores)
        case "full":
            return Moved(picture + q * words, q * 8)
    raise ValueError(mode)


def pictures(work: Pictures, mode: str, weights: int) -> Moved:
    """n = batches · size pictures. The model's call takes normalised floats, 4 bytes a colour; the program has 1 byte
    a colour before. Full: of each picture the class and its score."""
    n, colours = work.batches * work.size, 3 * work.side**2
    match mode:
        case "blind-naive":
            return Moved(weights * work.batches + 4 * colours * n, 4 * work.classes * n)
        case "blind":
            return Moved(4 * colours * n, 4 * work.classes * n)
        case "partial":
            return Moved(colours * n, 4 * work.classes * n)
        case "full":
            return Moved(colours * n, 8 * n)
    raise ValueError(mode)


def between(work: Pictures) -> int:
    """Bytes that a node sends to the next where the network is cut after its second stage: n · width · (side / 8)² · 4.
    The stem makes a quarter of the side, each stage after the first halves it."""
    return work.batches * work.size * work.widths[1] * (work.side // 8) ** 2 * 4


def ranking(work: Ranking, mode: str, weights: int) -> Moved:
    """n candidates. The model's call takes the user's features beside each candidate, n · (4 · dense + 8 · tables); the
    program has them once. Full: the best k with their scores."""
    r, n = work.requests, work.candidates
    features = 4 * work.dense + 8 * (work.tables - 1) + 8 * n
    match mode:
        case "blind-naive":
            return Moved(r * (weights + n * (4 * work.dense + 8 * work.tables)), r * 4 * n)
        case "blind":
            return Moved(r * n * (4 * work.dense + 8 * work.tables), r * 4 * n)
        case "partial":
            return Moved(r * features, r * 4 * n)
        case "full":
            return Moved(r * features, r * work.best * 8)
    raise ValueError(mode)


def form(work: Workload, mode: str, *, cache: int = 0, vocabulary: int = 0, weights: int = 0) -> Moved:
    """Of one run. The weights that all but ``blind-naive`` send once before are not in it."""
    match work:
        case Chat():
            return language(work, mode, cache, vocabulary, weights)
        case Questions():
            return questions(work, mode, weights)
        case Pictures():
            return pictures(work, mode, weights)
        case Ranking():
            return ranking(work, mode, weights)
    raise ValueError(work.name)
