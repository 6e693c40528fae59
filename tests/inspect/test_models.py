"""``genie inspect MODEL`` with programs of a real framework, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MODEL = """
import torch

def model():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    return layers, (torch.ones(3, 4),)

def keywords():
    return torch.nn.functional.softmax, (torch.ones(3, 4),), {"dim": 1}

def own():
    import genie
    with genie.capture():
        torch.ones(3).exp().sum()

def native():
    torch.ones(3).exp()

def nothing():
    return (lambda: None), ()
"""
COMMAND = """
import contextlib, io, json, sys
from genie.cli import main
answers = {}
for name in sys.argv[2:]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(["inspect", f"{sys.argv[1]}:{name}", "--text", "--as-is"])
    answers[name] = status, said.getvalue()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    path = tmp_path_factory.mktemp("model") / "program.py"
    path.write_text(MODEL)
    command = [sys.executable, "-c", COMMAND, str(path), "model", "keywords", "own", "native", "nothing"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GENIE_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name: tuple(answer) for name, answer in json.loads(done.stdout).items()}


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("model", 0, "aten::relu"),
        ("keywords", 0, "aten::_softmax"),
        ("own", 0, "aten::exp"),
        ("native", 1, "calling 'native' captured nothing"),
        ("nothing", 1, "running the program captured nothing"),
    ],
)
def test_a_program_is_captured(answers: dict[str, tuple[int, str]], name: str, status: int, says: str) -> None:
    assert answers[name][0] == status
    assert says in answers[name][1]


def test_its_modules_are_known(answers: dict[str, tuple[int, str]]) -> None:
    assert "; 0 (Linear)" in answers["model"][1]
