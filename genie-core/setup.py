"""The native placement search. It needs no framework: pybind11 and a C++20 compiler."""

from __future__ import annotations

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "genie.schedule._search",
            ["csrc/all.cpp"],
            depends=sorted(str(path) for path in Path("csrc").iterdir()),
            cxx_std=20,
            # Times are compared with Python's, to the last bit: no fused multiply-add.
            extra_compile_args=["-O3", "-g0", "-fvisibility=hidden", "-Wall", "-ffp-contract=off"],
            extra_link_args=["-s"],
        )
    ],
)
