"""Builds the native recorder against the torch that is installed."""

import os
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp"))

setup(
    ext_modules=[
        CppExtension(
            "genie_pytorch._C",
            SOURCES,
            extra_compile_args=[
                "-O2",
                "-g0",
                "-std=c++20",
                "-fvisibility=hidden",
                f'-DGENIE_TORCH_VERSION="{torch.__version__}"',
            ],
            extra_link_args=["-Wl,--no-as-needed", "-s"],
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True, max_jobs=int(os.environ.get("MAX_JOBS", "2")))},
)
