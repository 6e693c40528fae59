"""Take the page's graph library from the npm registry into genie-core: that version, whole, unchanged.

    python scripts/bundle.py            # fetch, check, write
    python scripts/bundle.py --check    # only check what is here

Needs `npm`. A new version is a change of the constants below, reviewed like code.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "cytoscape@3.34.4"
INTEGRITY = "sha512-msY99tMY8iWTg+sIPGfSqDcPNOt4xcj+v/K/7qUFaCUxxlqnMkUYLBjRUzn9W5CU/R2hrmtJa5+UtovrEM2ctg=="
# File of the package → ours, with its hash.
FILES = {
    "package/dist/cytoscape.min.js": (
        "cytoscape.min.js",
        "081591ab735b2b6a3b31a3c60f8f3a3e2fee8c92939e0c7820ad1208571b6cd8",
    ),
    "package/LICENSE": ("cytoscape.LICENSE", "eb319c6e6f233607f71e8e2f450391751883cfc0eeb3ca7ef574c13d1d9c2203"),
}
STATIC = Path(__file__).resolve().parent.parent / "genie-core" / "src" / "genie" / "inspect" / "static"


def fetch() -> dict[str, bytes]:
    """The files, out of the package as its integrity has it."""
    with tempfile.TemporaryDirectory() as directory:
        command = ["npm", "pack", "--silent", "--pack-destination", directory, PACKAGE]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        [archive] = Path(directory).glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if f"sha512-{digest}" != INTEGRITY:
            sys.exit(f"{PACKAGE} is sha512-{digest}, not {INTEGRITY}")
        with tarfile.open(archive) as tar:
            return {name: member.read() for name in FILES if (member := tar.extractfile(name)) is not None}


def check() -> None:
    """End with a message when a file here is not the package's."""
    for ours, digest in FILES.values():
        path = STATIC / ours
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        if found != digest:
            sys.exit(f"{path}: {found}, not {digest}; `python scripts/bundle.py` writes it anew")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only check what is here")
    if not parser.parse_args().check:
        STATIC.mkdir(parents=True, exist_ok=True)
        for name, content in fetch().items():
            (STATIC / FILES[name][0]).write_bytes(content)
    check()


if __name__ == "__main__":
    main()
