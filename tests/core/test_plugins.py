"""Discovery: what works is offered, what fails is a row with its error, and nothing is silently first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from genie.config import Settings
from genie.errors import BackendUnavailable, ConfigError, PluginConflict, PluginFailed, PluginNotFound
from genie.plugins import Offer, Registry

SETTINGS = Settings(timeout=7)

BACKEND = """
    from genie import hookimpl

    class Backend:
        name = "{name}"
        def __init__(self, timeout): self.timeout = timeout

    @hookimpl
    def genie_backends():
        return {{"{name}": lambda settings: Backend(settings.timeout)}}
"""

Distribution = Callable[..., Path]


def of(registry: Registry, distribution: str) -> list[Offer]:
    return [offer for offer in registry.offers() if offer.distribution == distribution]


def test_a_plugin_is_found_and_its_factory_gets_the_settings(distribution: Distribution) -> None:
    distribution("acme", {"acme": BACKEND.format(name="acme")}, {"acme": "acme"}, version="2.5")
    registry = Registry()
    (offer,) = of(registry, "acme")
    assert (offer.kind, offer.name, offer.version, offer.error) == ("backend", "acme", "2.5", "")
    assert registry.make("backend", "acme", SETTINGS).timeout == 7


def test_every_make_is_a_new_object(distribution: Distribution) -> None:
    distribution("acme", {"acme": BACKEND.format(name="acme")}, {"acme": "acme"})
    registry = Registry()
    assert registry.make("backend", "acme", SETTINGS) is not registry.make("backend", "acme", SETTINGS)


def test_a_factory_is_not_called_by_discovery(distribution: Distribution) -> None:
    source = """
        from genie import hookimpl

        def explode(settings): raise RuntimeError("called")

        @hookimpl
        def genie_backends(): return {"acme": explode}
    """
    distribution("acme", {"acme": source}, {"acme": "acme"})
    registry = Registry()
    assert of(registry, "acme")[0].error == ""
    with pytest.raises(PluginFailed, match="RuntimeError: called"):
        registry.make("backend", "acme", SETTINGS)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import missing_thing_xyz", "No module named 'missing_thing_xyz'"),
        ("raise ValueError('no device here')", "ValueError: no device here"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "implements no hook"),
        ("from genie import hookimpl\n@hookimpl\ndef genie_backend(): return {}", "genie_backend"),
        ("from genie import hookimpl\n@hookimpl\ndef genie_backends(): 1/0", "ZeroDivisionError"),
        ("from genie import hookimpl\n@hookimpl\ndef genie_backends(): return ['acme']", "name → factory"),
        ("from genie import hookimpl\n@hookimpl\ndef genie_backends(): return {'acme': 3}", "name → factory"),
    ],
    ids=["import", "raises", "syntax", "no-hook", "unknown-hook", "hook-raises", "no-mapping", "no-factory"],
)
def test_a_broken_plugin_is_a_row_and_hides_no_other(distribution: Distribution, source: str, error: str) -> None:
    distribution("acme-broken", {"acme_broken": source}, {"broken": "acme_broken"})
    distribution("fine", {"fine": BACKEND.format(name="fine")}, {"fine": "fine"})
    registry = Registry()
    (row,) = of(registry, "acme-broken")
    assert error in row.error
    assert registry.make("backend", "fine", SETTINGS).name == "fine"


def test_a_broken_plugin_raises_on_use_with_its_cause(distribution: Distribution) -> None:
    distribution("acme", {"acme": "import missing_thing_xyz"}, {"acme": "acme"})
    with pytest.raises(PluginFailed, match="missing_thing_xyz") as caught:
        Registry().make("backend", "acme", SETTINGS)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_missing_attribute_is_a_row(distribution: Distribution) -> None:
    distribution("acme", {"acme": "x = 1"}, {"acme": "acme:plugin"})
    (row,) = of(Registry(), "acme")
    assert "plugin" in row.error


def test_two_distributions_with_one_name_conflict_on_use(distribution: Distribution) -> None:
    distribution("first", {"first": BACKEND.format(name="acme")}, {"one": "first"})
    distribution("second", {"second": BACKEND.format(name="acme")}, {"two": "second"})
    registry = Registry()
    assert "second" in of(registry, "first")[0].error
    assert "first" in of(registry, "second")[0].error
    with pytest.raises(PluginConflict, match=r"first 1\.0.*second 1\.0"):
        registry.make("backend", "acme", SETTINGS)


def test_one_name_for_two_kinds_is_no_conflict(distribution: Distribution) -> None:
    other = BACKEND.format(name="acme").replace("genie_backends", "genie_transports")
    distribution("first", {"first": BACKEND.format(name="acme")}, {"one": "first"})
    distribution("second", {"second": other}, {"two": "second"})
    assert Registry().make("transport", "acme", SETTINGS).name == "acme"


def test_an_unknown_name_says_what_there_is(distribution: Distribution) -> None:
    distribution("acme", {"acme": BACKEND.format(name="acme")}, {"acme": "acme"})
    with pytest.raises(PluginNotFound, match="did you mean 'acme'"):
        Registry().make("backend", "acne", SETTINGS)
    with pytest.raises(LookupError, match=r"installed: .*acme"):
        Registry().make("backend", "zzz", SETTINGS)


def test_errors_of_ours_pass_through_a_factory() -> None:
    def refuse(settings: Settings) -> object:
        raise BackendUnavailable("nobody there")

    registry = Registry([])
    registry.register("backend", "mine", refuse)
    with pytest.raises(BackendUnavailable, match="nobody there"):
        registry.make("backend", "mine", SETTINGS)


def test_a_factory_that_returns_nothing_is_an_error() -> None:
    registry = Registry([])
    registry.register("policy", "mine", lambda settings: None)
    with pytest.raises(PluginFailed, match="returned nothing"):
        registry.make("policy", "mine", SETTINGS)


def test_run_time_registration_goes_before_what_is_installed(distribution: Distribution) -> None:
    distribution("acme", {"acme": BACKEND.format(name="acme")}, {"acme": "acme"})
    registry = Registry()
    before = registry.version
    registry.register("backend", "acme", lambda settings: "mine")
    assert registry.make("backend", "acme", SETTINGS) == "mine"
    assert registry.version > before
    assert [offer.distribution for offer in registry.offers() if offer.name == "acme"] == ["(registered at run time)"]


@pytest.mark.parametrize(("name", "factory"), [("", lambda s: 1), ("x", 3)])
def test_a_registration_needs_a_name_and_a_factory(name: str, factory: object) -> None:
    with pytest.raises(PluginFailed):
        Registry([]).register("backend", name, factory)  # type: ignore[arg-type]


def test_genie_core_offers_its_own_through_the_same_door() -> None:
    registry = Registry()
    own = {(offer.kind, offer.name) for offer in of(registry, "genie-core")}
    assert {("policy", "min_latency"), ("policy", "min_cost"), ("policy", "max_throughput")} <= own
    assert {("cost_model", "roofline"), ("placement_strategy", "single_device")} <= own
    for kind, name in own:
        assert registry.make(kind, name, Settings()) is not None  # type: ignore[arg-type]


def test_config_errors_of_a_factory_are_not_disguised(distribution: Distribution) -> None:
    source = """
        from genie import hookimpl
        from genie.errors import ConfigError

        def make(settings): raise ConfigError("setting 'nodes' is empty")

        @hookimpl
        def genie_backends(): return {"acme": make}
    """
    distribution("acme", {"acme": source}, {"acme": "acme"})
    with pytest.raises(ConfigError, match="nodes"):
        Registry().make("backend", "acme", SETTINGS)


def test_discovery_imports_no_framework() -> None:
    source = (
        "import sys; from genie.plugins import registry; registry.offers()\n"
        "print(*[name for name in ('torch', 'jax', 'grpc', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", source]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip() == ""
