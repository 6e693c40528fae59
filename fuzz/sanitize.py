"""The native modules under AddressSanitizer and UBSan: built into a folder of their own, then run on the corpus.

    python fuzz/sanitize.py                          # build what changed, replay the corpus, run the unit tests
    python fuzz/sanitize.py --packages genie-core    # some of them
    python fuzz/sanitize.py -- tests/local -k layout # build, then these tests instead

PyTorch itself is not instrumented: what it does with its own memory is seen only where it passes through ``malloc``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / ".build" / "sanitized"
SUPPRESSIONS = ROOT / "fuzz" / "sanitizers"
PATTERNS = ("genie-patterns-llm", "genie-patterns-vision", "genie-patterns-multimodal")

FLAGS = (
    "-std=c++20 -O1 -g1 -fPIC -shared -fvisibility=hidden -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS "
    "-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined"
).split()
TESTS = {
    "genie-core": ("tests/core/test_schedule.py", "tests/core/test_schedule_search.py"),
    "genie-backend-local": ("tests/local", "tests/fuzz"),
    "genie-pytorch": ("tests/pytorch/test_capture.py", "tests/pytorch/test_frontend.py"),
}


class Module(NamedTuple):
    package: str  # the folder of its distribution
    folder: str  # where the module lies, under the distribution's src
    name: str
    torch: bool


def modules(packages: Sequence[str]) -> Iterator[Module]:
    import torch

    release = re.sub(r"\W", "_", torch.__version__)
    for module in (
        Module("genie-core", "genie/schedule", "_search", False),
        Module("genie-backend-local", "genie_backend_local", f"_native_torch_{release}", True),
        Module("genie-pytorch", "genie_pytorch", f"_recorder_torch_{release}", True),
    ):
        if module.package in packages:
            yield module


def compiler(module: Module) -> list[str]:
    """The command that makes it, but for its source and output."""
    import pybind11

    command = [os.environ.get("CXX", "g++"), *FLAGS, f"-I{sysconfig.get_path('include')}"]
    if not module.torch:
        return [*command, f"-I{pybind11.get_include()}", "-ffp-contract=off"]
    from torch.utils import cpp_extension

    paths = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    linked = ["-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
    return [*command, *paths, f"-DGENIE_MODULE={module.name}", f"-DTORCH_EXTENSION_NAME={module.name}", *libraries, *linked]


def build(module: Module) -> Path:
    """The folder that goes on Python's path: the package's sources, and the module, built if anything changed."""
    target = OUT / module.package
    sources = ROOT / module.package / "src"
    for package in (entry for entry in sources.iterdir() if (entry / "__init__.py").is_file()):
        shutil.copytree(package, target / package.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so"))
    made = target / module.folder / (module.name + sysconfig.get_config_var("EXT_SUFFIX"))
    csrc = ROOT / module.package / "csrc"
    command = compiler(module)
    state = hashlib.sha256(repr(command).encode())
    for path in sorted(csrc.iterdir()):
        state.update(path.read_bytes())
    stamp = target / ".built"
    if made.is_file() and stamp.is_file() and stamp.read_text() == state.hexdigest():
        return target
    units = [csrc / "all.cpp"] if (csrc / "all.cpp").is_file() else sorted(csrc.glob("*.cpp"))
    print(f"— {module.package} with AddressSanitizer and UBSan (some minutes)", flush=True)
    link = [argument for argument in command if argument.startswith(("-l", "-L"))]
    compile_only = [argument for argument in command if argument not in (*link, "-shared")]
    objects = []
    (target / "objects").mkdir(parents=True, exist_ok=True)
    for unit in units:
        objects.append(str(target / "objects" / f"{unit.stem}.o"))
        subprocess.run([*compile_only, "-c", str(unit), "-o", objects[-1]], check=True)
    subprocess.run([*command[: 1 + len(FLAGS)], *objects, *link, "-o", str(made)], check=True)
    stamp.write_text(state.hexdigest())
    return target


def runtime(name: str) -> str:
    """A library of the compiler's, by its full path."""
    found = subprocess.run(
        [os.environ.get("CXX", "g++"), f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    return os.path.realpath(found)


def environment(folders: Sequence[Path]) -> dict[str, str]:
    """Of a process that loads the modules. Leaks are not looked for: Python's own would drown ours, which the tests
    count by sessions' counters."""
    paths = [str(folder) for folder in folders]
    known = os.environ.get("PYTHONPATH", "")
    return {
        **os.environ,
        # The C++ library too, or AddressSanitizer starts before there is a function to throw with.
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')} {runtime('libstdc++.so')}",
        "ASAN_OPTIONS": (
            "detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0:handle_segv=1:"
            f"strict_string_checks=1:suppressions={SUPPRESSIONS / 'asan.txt'}"
        ),
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:suppressions={SUPPRESSIONS / 'ubsan.txt'}",
        "PYTHONPATH": os.pathsep.join([*paths, *([known] if known else [])]),
        "PYTHONMALLOC": "malloc",  # so that buffers of Python's have edges, too
        "OMP_NUM_THREADS": "1",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", default="genie-core,genie-backend-local", help="separated by commas")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("tests", nargs="*", help="what pytest is to run")
    options = parser.parse_args(arguments)
    wanted = options.packages.split(",")
    if unknown := set(wanted) - set(TESTS):
        parser.error(f"no native code in {', '.join(sorted(unknown))}; there is some in {', '.join(TESTS)}")
    folders = [build(module) for module in modules(wanted)]
    if options.build_only:
        return 0
    tests = options.tests or [test for package in wanted for test in TESTS[package]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment(folders), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
