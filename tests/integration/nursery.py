"""Starts Python programs without their having to import PyTorch first, which is most of what a short one costs.

This process imports torch and nothing of Genie (which torch must not load by itself), and then forks a child per
request: the child has the program's environment, streams and arguments, runs it as ``__main__`` and ends as any
interpreter does. No thread runs here and nothing is connected, so a fork is as good as a start. Requests come over the
socket that is standard input: a JSON object with two file descriptors, or one that asks how a child ended.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
from typing import Any

import torch  # noqa: F401  (what this process is for)

LARGEST = 1 << 20


def main() -> dict[str, Any] | None:
    """The request of the program to be; ``None`` when there are no more requests."""
    requests = socket.socket(fileno=0)
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, LARGEST, 2)
        if not data:
            return None
        request: dict[str, Any] = json.loads(data)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            requests.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        child = os.fork()
        if child == 0:
            requests.close()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for number, source in enumerate((nothing, *descriptors)):
                os.dup2(source, number)
                os.close(source)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(json.dumps(child).encode())


def become(request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = request["argv"]
    if request["module"]:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    request = main()
    if request is not None:
        become(request)
