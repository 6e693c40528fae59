"""The native recorder. Its module is named after the torch it is built with, so that another torch is noticed."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

NAME = "_recorder_torch_" + re.sub(r"\W", "_", torch.__version__)

setup(
    ext_modules=[
        CppExtension(
            f"genie_pytorch.{NAME}",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
            define_macros=[("GENIE_MODULE", NAME)],
            extra_compile_args=["-std=c++20", "-O2", "-g0", "-fvisibility=hidden", "-Wall"],
            extra_link_args=["-s"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
