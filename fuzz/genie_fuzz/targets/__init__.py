"""All targets, by name."""

from __future__ import annotations

from importlib import import_module

from genie_fuzz.harness import Target

NAMES = (
    *("frames", "messages", "codec", "bindings", "loader", "session", "greeting", "client", "channel", "files", "control"),
)


def load(name: str) -> Target:
    """A target's module is imported when it is wanted: some need PyTorch."""
    found = import_module(f"genie_fuzz.targets.{name}").TARGET
    assert isinstance(found, Target)
    return found
