"""The README's programs run as they stand there, in this process's place of a node."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# The first needs weights from the internet; the demo's test stands for it.
RUNNABLE = [program for program in PROGRAMS if "from_pretrained" not in program]


def test_the_four_ways_are_there() -> None:
    for call in ('device = "remote_accelerator:0"', "genie.capture()", "genie.run(", 'backend="genie"'):
        assert any(call in program for program in RUNNABLE), call


@pytest.mark.parametrize("program", RUNNABLE, ids=lambda program: re.sub(r"\W+", "-", program[:40]))
def test_program_runs(program: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    # The address is an example's: without it the device is this process.
    script.write_text(re.sub(r"^genie\.init\(nodes=.*$", "", program, flags=re.MULTILINE))
    # Like a script of a user's who has installed the packages: no import of genie_pytorch.
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=dict(os.environ), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Warning" not in done.stderr
