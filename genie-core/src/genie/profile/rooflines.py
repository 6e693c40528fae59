"""Rooflines of what was measured: one per class of operators, one per class and dtype."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from genie.device import Device
from genie.schedule.cost import (
    Calibration,
    Fitted,
    Sample,
    Trait,
    bandwidth,
    default_roofline,
    fit,
    on_device,
)

_MOST = 96  # samples of a fit: more tell nothing new
_FIRM = 0.3  # how far a class holds to the roofline of the larger one it is of (:func:`fit`)
_PRODUCTS = ("gemm", "gemv")
_OWN = 8  # samples of large or of skinny products, for a roofline that is not that of all
ANY = "other"  # the class that stands for those nobody measured


class Seen(NamedTuple):
    trait: Trait
    seconds: float


def fitted(seen: Iterable[Seen], device: Device, least: int = 4) -> Calibration | None:
    """Of ``least`` samples and more per class; ``None`` if no class has so many. Shares are of the device's peaks.

    A class without dtype is float32's, or else that of the dtype with most samples: one roofline for several fits none
    of them.
    """
    peak, speed, start = device.compute_tflops * 1e12, bandwidth(device), default_roofline(device)
    samples: dict[str, dict[str, list[Sample]]] = {}  # by dtype, by class
    for trait, seconds in seen:
        sample = Sample(trait.flops, trait.moved, seconds)
        kind = on_device(trait.kind, trait.flops, trait.moved, peak / speed)
        for name in (kind, ANY):
            samples.setdefault(trait.dtype, {}).setdefault(name, []).append(sample)
    classes: dict[str, Fitted] = {}
    for dtype, kinds in sorted(samples.items(), key=lambda each: (each[0] != "float32", -len(each[1][ANY]))):
        products = [each for kind in _PRODUCTS for each in kinds.get(kind, ())]
        whole = fit(_few(products), peak, speed, start) if len(products) >= least else None
        for kind, those in kinds.items():
            if kind in _PRODUCTS and whole is not None:
                own = fit(_few(those), peak, speed, whole.roofline, firm=_FIRM) if len(those) >= _OWN else whole
            elif len(those) >= least:
                own = fit(_few(those), peak, speed, start)
            else:
                continue
            classes[f"{kind}/{dtype}"] = own
            classes.setdefault(kind, own)
    return Calibration(device.compute_tflops, speed / 1e9, classes) if classes else None


def _few(samples: list[Sample]) -> list[Sample]:
    return samples[:: max(-(-len(samples) // _MOST), 1)]
