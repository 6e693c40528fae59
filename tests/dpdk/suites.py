"""Runs a suite in a process of its own, where DPDK may be, and tells each of its tests as one here.

DPDK is started once in a process and for good, with threads of its own: in pytest's process a fault in it would end all
other tests. Here it ends one, which shows what the process had to say.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent
NOBODY = 65534
FULL = "GENIE_TEST_FULL"  # set: everything at its full size
_OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "faulthandler_timeout=60")
_FULL = {name: value for name, value in os.environ.items() if name == FULL}  # before tests are kept from it
_AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
    "--no-new-privs",
)


@dataclass(frozen=True)
class Process:
    """What is run before Python, in which environment, with which directory for its files."""

    before: Sequence[str]
    home: Path
    environment: dict[str, str]

    def python(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Fails the test, with what was said until then, when it takes longer."""
        with subprocess.Popen(
            [*self.before, sys.executable, *arguments],
            env=self.environment,
            cwd=HERE.parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                pytest.fail(f"{arguments} took longer than {timeout:g} s\n{out}{err}", pytrace=False)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@contextmanager
def own_process(*before: str) -> Iterator[Process]:
    """As this user, with ``before`` (``ip netns exec …``)."""
    with tempfile.TemporaryDirectory(prefix="genie") as home:
        paths = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
        yield Process(before, Path(home), {**os.environ, **_FULL, "PYTHONPATH": paths})


@contextmanager
def ordinary_user() -> Iterator[Process]:
    """This user; what root runs goes as one without capabilities, huge pages or groups. Skips where that can't be."""
    with own_process() as process:
        if os.geteuid() != 0:
            yield process
            return
        if shutil.which("setpriv") is None:
            pytest.skip("there is no setpriv (util-linux) to become another user with")
        if subprocess.run([*_AS_NOBODY, sys.executable, "-c", f"open({__file__!r})"], capture_output=True).returncode:
            pytest.skip("other users can't read these tests, or Python")
        os.chown(process.home, NOBODY, NOBODY)
        home = {"HOME": str(process.home), "TMPDIR": str(process.home), "PYTHONDONTWRITEBYTECODE": "1"}
        inherited = {name: value for name, value in process.environment.items() if name != "XDG_RUNTIME_DIR"}
        yield Process(_AS_NOBODY, process.home, {**inherited, **home})


def run(process: Process, suite: str, subtests: pytest.Subtests, timeout: float = 1500.0 if _FULL else 120.0) -> None:
    """``suite`` is a file here; none of its tests may be skipped."""
    report = process.home / "report.xml"
    done = process.python("-m", "pytest", *_OPTIONS, f"--junitxml={report}", str(HERE / suite), timeout=timeout)
    said = done.stdout + done.stderr
    if not report.is_file():
        reason = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
        pytest.fail(f"the process of {suite} ended with {reason}\n{said}", pytrace=False)
    cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases:
        with subtests.test(msg=case.get("name")):
            for kind in ("failure", "error", "skipped"):
                if (told := case.find(kind)) is not None:
                    pytest.fail(f"{kind}: {told.get('message')}\n{told.text}", pytrace=False)
    assert cases, said
    assert done.returncode == 0, said
