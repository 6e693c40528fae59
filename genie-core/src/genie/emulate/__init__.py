"""A cluster on one machine: the devices of a cluster file, with their memory, speed and links, in virtual time.

>>> import genie
>>> genie.init_cluster("emulated.yaml")  # doctest: +SKIP
>>> genie.run(model, x)  # doctest: +SKIP
>>> print(genie.emulate.report())  # doctest: +SKIP
"""

from __future__ import annotations

from genie.emulate.backend import EmulatedBackend, current
from genie.emulate.report import Report
from genie.emulate.virtual import Span, Traffic

__all__ = ["EmulatedBackend", "Report", "Span", "Traffic", "report", "reset"]


def report() -> Report:
    """What the emulated cluster did so far. Waits until all that was asked is done. Raises
    :class:`genie.errors.ConfigError` when nothing is emulated."""
    return current().report()


def reset() -> None:
    """Once all that was asked is done, count anew from there."""
    current().restart()
