"""Run a conformance program of others against a node of its own: the program finds the node in its environment.

    python benchmarks/run_conformance.py opinfo_conformance.py --device remote_accelerator --import genie_pytorch
    python benchmarks/run_conformance.py --device cuda:0 zoo.py --adapter my_adapter.py

What stands before the program's path is for us, what follows is for the program. Its exit status is ours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from nodes import node


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="device of the node")
    parser.add_argument("--threads", type=int, default=1, help="of the node and of the program; kernels round alike")
    parser.add_argument("program", help="path of a Python program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the program")
    options = parser.parse_args()
    with node(options.device, options.threads) as address:
        environment = {
            **os.environ,
            "GENIE_BACKEND": "tcp",
            "GENIE_NODES": address,
            "OMP_NUM_THREADS": str(options.threads),
        }
        return subprocess.run([sys.executable, options.program, *options.arguments], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
