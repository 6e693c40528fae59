"""One target under atheris: ``python fuzz/one.py NAME [options of libFuzzer] [folders of inputs]``.

``fuzz/run.py`` runs them all; this is for following up on a finding: ``python fuzz/one.py codec crash-…``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent))

_MEASURED_EVERY = 4096  # inputs: to trace memory takes several times as long


def main(arguments: list[str]) -> None:
    from genie_fuzz import structured, targets

    name, *options = arguments
    if name not in targets.NAMES:
        sys.exit(f"there is no target {name!r}, only {', '.join(targets.NAMES)}")
    target = targets.load(name)
    from genie_fuzz.harness import measured, timed, watched

    for module in target.modules:
        instrumented(module)
    count = 0

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        if count % _MEASURED_EVERY == 0:
            measured(target, data)
        else:
            timed(target, data)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            made = structured.mutate(data, target.msgpack_at, seed, most)
            if made is not None:
                return made
        plain: bytes = atheris.Mutate(data, most)
        return plain

    arguments = [sys.argv[0], f"-max_len={target.largest}", "-rss_limit_mb=4096", "-timeout=60", *options]
    if target.msgpack_at >= 0:
        atheris.Setup(arguments, one, custom_mutator=mutate)
    else:
        atheris.Setup(arguments, one)
    with watched():
        atheris.Fuzz()


def instrumented(name: str) -> None:
    """Measure coverage of all functions of a module, and of a package's modules."""
    for key, module in sorted(sys.modules.items()):
        if (key == name or key.startswith(name + ".")) and module is not None:
            _functions(module.__dict__, key)


def _functions(space: dict[str, object], module: str) -> None:
    for value in list(space.values()):
        if getattr(value, "__module__", None) != module:
            continue
        if isinstance(value, type):
            _methods(value)
        elif hasattr(value, "__code__"):
            value.__code__ = atheris.patch_code(value.__code__, True, True)  # type: ignore[attr-defined]


def _methods(kind: type) -> None:
    for value in list(vars(kind).values()):
        for function in (getattr(value, "__func__", value), getattr(value, "fget", None)):
            if hasattr(function, "__code__"):
                function.__code__ = atheris.patch_code(function.__code__, True, True)


if __name__ == "__main__":
    main(sys.argv[1:])
