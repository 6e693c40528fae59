"""What genie-core itself offers, through the hooks everyone uses."""

from __future__ import annotations

from typing import Any

from genie.config import Settings
from genie.hookspecs import Offers, hookimpl


@hookimpl
def genie_backends() -> Offers:
    def emulated(settings: Settings) -> Any:
        from genie.emulate.backend import EmulatedBackend

        return EmulatedBackend.from_settings(settings)

    def auto(settings: Settings) -> Any:
        from genie.plugins import registry
        from genie.remote import RemoteBackend
        from genie.remote.client.negotiating import TCP, Negotiator

        plain = registry.make("transport", TCP, settings)

        def guided(access: Any) -> Negotiator:
            return Negotiator.from_settings(settings, plain, access)

        return RemoteBackend.from_settings("auto", plain, settings, guided)

    return {"auto": auto, "emulated": emulated}


@hookimpl
def genie_cost_models() -> Offers:
    def roofline(settings: Settings) -> Any:
        from genie.schedule.cost import RooflineCostModel
        from genie.schedule.stated import stated

        return RooflineCostModel(transfers=stated(settings.cluster.links) if settings.cluster is not None else None)

    def profiled(settings: Settings) -> Any:
        from genie.profile import Profile
        from genie.schedule.stated import stated

        profile = Profile(settings.profile_dir)
        profile.load()  # what cannot be used is logged, and left out
        # What the user says of links stands; else what is measured.
        links = settings.cluster.links if settings.cluster is not None else ()
        return profile.model(links=stated(links) if links else None)

    return {"roofline": roofline, "profiled": profiled}


@hookimpl
def genie_placement_strategies() -> Offers:
    def single_device(settings: Settings) -> Any:
        from genie.schedule.placement import SingleDevice

        return SingleDevice()

    def portfolio(settings: Settings) -> Any:
        from genie.schedule.portfolio import Portfolio

        return Portfolio()

    return {"portfolio": portfolio, "single_device": single_device}


@hookimpl
def genie_policies() -> Offers:
    def policy(name: str) -> Any:
        def make(settings: Settings) -> Any:
            from genie.schedule.policy import policy as by_name

            return by_name(name)

        return make

    return {name: policy(name) for name in ("min_latency", "min_cost", "max_throughput")}
