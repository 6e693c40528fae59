"""Check types: mypy, strictly, over the sources of every package and the scripts."""

from __future__ import annotations

import sys
from pathlib import Path

from mypy import api

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    sources = sorted(str(path) for path in ROOT.glob("genie-*/src"))
    out, problems, status = api.run(["--config-file", str(ROOT / "pyproject.toml"), *sources, str(ROOT / "scripts")])
    sys.stdout.write(out)
    sys.stderr.write(problems)
    return status


if __name__ == "__main__":
    sys.exit(main())
