"""Check types: mypy, strictly, over the sources of every package, the scripts and the fuzz targets."""

from __future__ import annotations

import sys
from pathlib import Path

from mypy import api

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    sources = sorted(str(path) for path in ROOT.glob("genie-*/src"))
    fuzz = ROOT / "fuzz"
    others = map(str, (ROOT / "scripts", fuzz / "genie_fuzz", *sorted(fuzz.glob("*.py"))))
    out, problems, status = api.run(["--config-file", str(ROOT / "pyproject.toml"), *sources, *others])
    sys.stdout.write(out)
    sys.stderr.write(problems)
    return status


if __name__ == "__main__":
    sys.exit(main())
