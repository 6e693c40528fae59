"""Discovery and lookup of plugins.

The discovery loop is our own: a plugin that fails is a row with its error, and raises when it is used; two
distributions that offer one name are a row each, and raise when that name is used. Nothing is lost, nothing is
silently first. pluggy and importlib.metadata are imported with the first look, not with Genie.
"""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import attrs

from genie.config import Settings
from genie.errors import ConfigError, GenieError, PluginConflict, PluginFailed, PluginNotFound

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind: TypeAlias = Literal[
    "frontend", "pattern", "backend", "transport", "compiler", "cost_model", "placement_strategy", "policy"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_HOOKS: dict[Kind, str] = {
    "frontend": "genie_frontends",
    "pattern": "genie_patterns",
    "backend": "genie_backends",
    "transport": "genie_transports",
    "compiler": "genie_compilers",
    "cost_model": "genie_cost_models",
    "placement_strategy": "genie_placement_strategies",
    "policy": "genie_policies",
}
RUN_TIME = "(registered at run time)"


@attrs.frozen
class Offer:
    """One name a distribution offers, or (``kind`` and ``name`` empty) a plugin that gave nothing.

    ``error`` is empty when the offer can be used.
    """

    kind: Kind | Literal[""]
    name: str
    distribution: str
    version: str
    entry_point: str
    error: str = ""
    factory: Callable[[Settings], Any] | None = attrs.field(default=None, repr=False, eq=False)
    cause: BaseException | None = attrs.field(default=None, repr=False, eq=False)


class Registry:
    """The plugins of a process. It makes objects; whoever asked owns, keeps and closes them."""

    def __init__(self, entry_points: Iterable[EntryPoint] | None = None) -> None:
        self._entry_points = entry_points
        self._offers: list[Offer] | None = None
        self._registered: dict[tuple[Kind, str], Offer] = {}
        self._lock = threading.RLock()
        self.version = 0  # grows with every registration

    def offers(self) -> tuple[Offer, ...]:
        """Every offer and every failure, in a stable order; conflicts carry their error."""
        with self._lock:
            if self._offers is None:
                from importlib import metadata

                from genie.hookspecs import GROUP

                found = metadata.entry_points(group=GROUP) if self._entry_points is None else self._entry_points
                offers = [offer for point in _distinct(found) for offer in _load(point)]
                self._offers = [_marked(offer, offers) for offer in offers]
            overridden = self._registered.keys()
            kept = [offer for offer in self._offers if (offer.kind, offer.name) not in overridden]
            offers = [*kept, *self._registered.values()]
            return tuple(sorted(offers, key=lambda o: (o.kind or "~", o.name, o.distribution, o.entry_point)))

    def names(self, kind: Kind) -> tuple[str, ...]:
        """What may be asked for, conflicting names once."""
        return tuple(dict.fromkeys(offer.name for offer in self.offers() if offer.kind == kind))

    def check(self, kind: Kind, name: object) -> Offer:
        """The one offer of that name. Raises :class:`PluginNotFound`, :class:`PluginFailed` or
        :class:`PluginConflict`."""
        if not isinstance(name, str):
            names = ", ".join(self.names(kind)) or "none"
            raise ConfigError(
                f"a {kind} is chosen by its name, not by {name!r}",
                hint=f"names: {names}; genie.register_{kind}(name, factory) gives one of yours a name",
            )
        offers = [offer for offer in self.offers() if offer.kind == kind and offer.name == name]
        if not offers:
            raise self._missing(kind, name)
        if len(offers) > 1:
            raise PluginConflict(
                f"{kind} {name!r} is offered by {' and by '.join(_title(offer) for offer in offers)}",
                hint="uninstall one of them",
            )
        return offers[0]

    def make(self, kind: Kind, name: str, settings: Settings) -> Any:
        """A new object. Raises as :meth:`check` does, or the :class:`GenieError` of the factory; anything else
        that a factory raises is a :class:`PluginFailed`."""
        offer = self.check(kind, name)
        assert offer.factory is not None
        try:
            made = offer.factory(settings)
        except GenieError:
            raise
        except Exception as error:
            raise PluginFailed(f"{kind} {name!r} could not be made: {_describe(error)}", where=_title(offer)) from error
        if made is None:
            raise PluginFailed(f"the factory of {kind} {name!r} returned nothing", where=_title(offer))
        return made

    def register(self, kind: Kind, name: str, factory: Callable[[Settings], Any]) -> None:
        """Offer ``name`` at run time. It goes before an installed plugin's: the program asked for it."""
        if kind not in KINDS:
            raise PluginFailed(f"{kind!r} is no kind of plugin", hint=f"kinds: {', '.join(KINDS)}")
        if not name or not callable(factory):
            raise PluginFailed(f"a {kind} needs a name and a factory, not {name!r} and {factory!r}")
        with self._lock:
            self._registered[kind, name] = Offer(kind, name, RUN_TIME, "", _place(factory), factory=factory)
            self.version += 1

    def unregister(self, kind: Kind, name: str) -> None:
        """Take a run-time registration back; what is installed under the name holds again."""
        with self._lock:
            if self._registered.pop((kind, name), None) is not None:
                self.version += 1

    def _missing(self, kind: Kind, name: str) -> GenieError:
        failed = [offer for offer in self.offers() if not offer.kind]
        # A plugin that failed to import can't say what it would have offered; its names usually give it away.
        for offer in failed:
            if name.replace("_", "-") in f"{offer.distribution} {offer.entry_point}".replace("_", "-"):
                error = PluginFailed(
                    f"{kind} {name!r}: its plugin failed: {offer.error}",
                    where=_title(offer),
                    hint="`genie plugins list` shows every plugin and its error",
                )
                error.__cause__ = offer.cause
                return error
        names = self.names(kind)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"installed: {', '.join(names) or 'none'}"
        if failed:
            hint += f"; failed: {', '.join(offer.distribution for offer in failed)} (see `genie plugins list`)"
        return PluginNotFound(f"no {kind} is named {name!r}", hint=hint)


def _distinct(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """One distribution seen twice on the path (an editable install and its source, say) is one plugin."""
    seen: dict[tuple[str, str, str], EntryPoint] = {}
    for point in points:
        seen.setdefault((_distribution(point)[0], point.name, point.value), point)
    return list(seen.values())


def _load(point: EntryPoint) -> list[Offer]:
    """The offers of one entry point; one failed offer for whatever of it fails."""
    import pluggy

    from genie import hookspecs

    distribution, version = _distribution(point)

    def failed(text: str, cause: BaseException | None, kind: Kind | Literal[""] = "", name: str = "") -> Offer:
        return Offer(kind, name, distribution, version, point.value, error=text, cause=cause)

    try:
        plugin = point.load()
    except Exception as error:
        return [failed(_describe(error), error)]
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name=point.name)
        manager.check_pending()
    except Exception as error:
        return [failed(_describe(error), error)]
    offers: list[Offer] = []
    implements = 0
    for kind, hook in _HOOKS.items():
        caller = getattr(manager.hook, hook)
        implements += len(caller.get_hookimpls())
        try:
            answers = caller()
        except Exception as error:
            offers.append(failed(f"{hook} failed: {_describe(error)}", error))
            continue
        for answer in answers:
            if not isinstance(answer, Mapping):
                offers.append(failed(f"{hook} must return name → factory, not {answer!r}", None))
                continue
            for name, factory in answer.items():
                if not isinstance(name, str) or not name or not callable(factory):
                    offers.append(failed(f"{hook}: {name!r} → {factory!r} is no name → factory", None))
                else:
                    offers.append(Offer(kind, name, distribution, version, point.value, factory=factory))
    if not implements:
        offers.append(failed("it implements no hook of Genie (is every function marked @hookimpl?)", None))
    return offers


def _marked(offer: Offer, offers: list[Offer]) -> Offer:
    rivals = [other for other in offers if other is not offer and (other.kind, other.name) == (offer.kind, offer.name)]
    if not offer.kind or not rivals:
        return offer
    return attrs.evolve(offer, error=f"the name is also offered by {', '.join(_title(other) for other in rivals)}")


def _distribution(point: EntryPoint) -> tuple[str, str]:
    with contextlib.suppress(Exception):  # broken metadata of a stranger must not hide the other plugins
        if point.dist is not None:
            return point.dist.name, point.dist.version
    return "(unknown distribution)", ""


def _title(offer: Offer) -> str:
    return f"{offer.distribution} {offer.version}".rstrip() + f" ({offer.entry_point})"


def _place(factory: Callable[..., Any]) -> str:
    return f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', repr(factory))}"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


registry = Registry()
