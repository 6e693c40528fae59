"""Genie: programs of a framework, run on remote accelerators through a semantically rich graph."""

__version__ = "0.1.0"
