"""Fuzz for a while, and say what was done: ``python fuzz/run.py --minutes 30``.

The time is shared out to the targets. Each runs under atheris in a process of its own, ``--workers`` of them at a time,
from its committed corpus and what earlier runs found (``.build/fuzz``, or ``--work``); after a finding it goes on. ``--minimise`` then makes the committed corpus anew: the fewest
small inputs that reach what was reached (libFuzzer's merge). Ends with a table, in ``report.json`` too, and with status
1 if anything was found; the input that shows it lies beside.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from genie_fuzz import targets
from genie_fuzz.harness import CORPUS

ROOT = Path(__file__).resolve().parent.parent
MOST_COMMITTED = 48  # inputs of a target, and
LARGEST_COMMITTED = 48 << 10  # bytes of them together
MOST_FINDINGS = 16  # of a target in one run: more say the same

_STATUS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


def fuzz(name: str, seconds: float, seed: int, work: Path) -> dict[str, Any]:
    """One target for so long. What it did, by libFuzzer's own counts."""
    found, out = work / name / "corpus", work / name / "findings"
    for folder in (found, out):
        folder.mkdir(parents=True, exist_ok=True)
    for data in targets.load(name).seeds():
        write(found, data)
    before, texts = set(out.iterdir()), []
    begun = time.monotonic()
    for attempt in range(MOST_FINDINGS):
        left = seconds - (time.monotonic() - begun)
        if left < 1:
            break
        log = work / name / f"log-{seed}-{attempt}.txt"
        status = once(name, left, seed + attempt, work, log)
        texts.append(log.read_text(errors="replace"))
        if not status:
            break
    executions = [int(each) for text in texts for each in re.findall(r"number_of_executed_units: (\d+)", text)]
    last = ([("0", "0", "0")] + [each for text in texts for each in _STATUS.findall(text)])[-1]
    return {
        "target": name,
        "seconds": round(time.monotonic() - begun, 1),
        "inputs": sum(executions),
        "coverage": int(last[0]),
        "features": int(last[1]),
        "corpus": int(last[2]),
        "findings": sorted(path.name for path in set(out.iterdir()) - before),
        "failed": not executions,
    }


def once(name: str, seconds: float, seed: int, work: Path, log: Path) -> int:
    """One process, until its time is over or it finds something. Its status."""
    committed = CORPUS / name
    command = [
        *(sys.executable, str(ROOT / "fuzz" / "one.py"), name, f"-max_total_time={seconds:.0f}", f"-seed={seed}"),
        *("-print_final_stats=1", f"-artifact_prefix={work / name / 'findings'}/", str(work / name / "corpus")),
        *([str(committed)] if committed.is_dir() else []),
    ]
    with log.open("w") as file:
        done = subprocess.run(command, cwd=work, stdout=file, stderr=subprocess.STDOUT, check=False, env=environment())
    return done.returncode


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def minimise(name: str, work: Path) -> int:
    """Make a target's committed corpus of what it has and what was found. Regressions stay. How many inputs it has."""
    committed, merged = CORPUS / name, work / name / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    sources = [str(folder) for folder in (committed, work / name / "corpus") if folder.is_dir()]
    command = [sys.executable, str(ROOT / "fuzz" / "one.py"), name, "-merge=1", str(merged), *sources]
    with (work / name / "merge.txt").open("w") as log:
        subprocess.run(command, cwd=work, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment())
    kept = [path.read_bytes() for path in committed.iterdir() if path.name.startswith("found-")] if committed.is_dir() else []
    chosen, total = [], 0
    for data in sorted((path.read_bytes() for path in merged.iterdir()), key=lambda data: (len(data), data)):
        if len(chosen) < MOST_COMMITTED and total + len(data) <= LARGEST_COMMITTED and data not in kept:
            chosen.append(data)
            total += len(data)
    # The smallest alone would all be malformed: of the seeds, which are not, all stay.
    chosen = list(dict.fromkeys([*targets.load(name).seeds(), *chosen]))
    if committed.is_dir():
        for path in committed.iterdir():
            if not path.name.startswith("found-"):
                path.unlink()
    committed.mkdir(parents=True, exist_ok=True)
    for data in chosen:
        write(committed, data)
    return len(chosen) + len(kept)


def write(folder: Path, data: bytes) -> None:
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'target':<12}{'inputs':>12}{'per second':>12}{'coverage':>10}{'features':>10}{'corpus':>8}  findings"]
    for row in rows:
        rate = row["inputs"] / row["seconds"] if row["seconds"] else 0.0
        told = ", ".join(row["findings"]) or ("failed to run" if row["failed"] else "none")
        lines.append(
            f"{row['target']:<12}{row['inputs']:>12,}{rate:>12,.0f}{row['coverage']:>10}{row['features']:>10}"
            f"{row['corpus']:>8}  {told}"
        )
    inputs, seconds = sum(row["inputs"] for row in rows), sum(row["seconds"] for row in rows)
    lines.append(f"{'all':<12}{inputs:>12,}{inputs / max(seconds, 1e-9):>12,.0f}   in {seconds / 60:.1f} minutes of processes")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TARGET", help=f"of {', '.join(targets.NAMES)}; all if none is named")
    parser.add_argument("--minutes", type=float, default=10.0, help="of all targets together, per worker")
    parser.add_argument("--workers", type=int, default=1, help="targets that run at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / ".build" / "fuzz", help="where inputs and logs are kept")
    parser.add_argument("--minimise", action="store_true", help="then make the committed corpus anew")
    options = parser.parse_args(arguments)
    names = options.names or list(targets.NAMES)
    if unknown := set(names) - set(targets.NAMES):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(targets.NAMES)}")
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    part = 60 * options.minutes * options.workers / sum(targets.load(name).share for name in names)
    with ThreadPoolExecutor(options.workers) as pool:
        rows = list(pool.map(lambda name: fuzz(name, part * targets.load(name).share, options.seed, work), names))
    print(table(rows))
    (work / "report.json").write_text(json.dumps(rows, indent=1))
    if options.minimise:
        for name in names:
            print(f"{name}: {minimise(name, work)} inputs in the committed corpus")
    return 1 if any(row["failed"] or row["findings"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
