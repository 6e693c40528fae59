"""The campaigns, small: they run, their proofs hold, and what they say can fail. No speed is asserted here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from campaigns.proxy import Faults, Proxy

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(module: str, *options: str, timeout: float = 170.0) -> Any:
    """What the campaign found, in a process of its own, as JSON; its exit status says that all was well."""
    command = [sys.executable, "-m", f"campaigns.{module}", *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_load() -> None:
    found = run("load", *"--clients 12 --seconds 4 --pairs 1 --neighbours 1 --tiny".split())
    assert found["equal"] is True
    assert found["errors"] == []
    assert found["clean"] is True
    assert [row["kind"] for row in found["kinds"]] == ["llm", "bert", "vision"]
    assert all(row["clients"] == 4 and row["calls"] > 0 for row in found["kinds"])
    assert sum(row["share"] for row in found["tenants"]) == pytest.approx(1)
    assert [row["node"] for row in found["node"]] == ["empty", "first", "last", "left"]
    assert found["node"][1]["sessions"] == 12


def test_churn() -> None:
    found = run("churn", *"--count 10 --rounds 1 --workers 1 --rest 0".split())
    assert found["equal"] is True
    assert found["clean"] is True
    assert found["cycles"] == found["opened"] == 20
    assert all(look["heap MB"] > 1 for look in found["node"])


def test_death() -> None:
    found = run("death", "--count", "3")
    assert found["clean"] is True
    assert [row["all freed"] for row in found["rows"]] == [1, 1, 1]


def test_links() -> None:
    found = run("links", *"--count 3 --seconds 1.5 --only".split(), "cut,bit flips")
    assert found["good"] is True
    rows = {row["faults"]: row for row in found["rows"] if row["checksums"]}
    assert rows["cut"]["came back"] > 0
    assert all(row["calls"] > 0 and row["struck"] > 0 and row["wrong"] == 0 for row in rows.values())


def test_histories() -> None:
    found = run("histories", "--clients", "4", "--seconds", "4")
    assert found["anomalies"] == []
    assert found["errors"] == []
    assert found["row"]["updates"] > 0
    assert found["row"]["reads"] > 0


def test_surroundings() -> None:
    found = run("surroundings", "--count", "12")
    assert found["full_disk"]["good"] is True
    assert found["jumping_clock"]["good"] is True
    assert found["jumping_clock"]["days off"] == [1, -1, 0]


def test_a_wrong_value_is_told() -> None:
    """The proof of equality can fail."""
    code = (
        "import tempfile, json\nfrom pathlib import Path\n"
        "from campaigns import load, calls\nfrom campaigns.serving import serve, client\n"
        "directory = Path(tempfile.mkdtemp())\nat = load.prepared(directory, tiny=True)\n"
        "data = bytearray((at / 'vision.bin').read_bytes())\nits = calls.Program(at, 'vision').its\n"
        "data[its.cases[0].due[0].start] ^= 1\n(at / 'vision.bin').write_bytes(data)\n"
        "with serve(directory, ['tenant']) as node:\n"
        "    backend = client(node.address, node.token('tenant'))\n"
        "    session = backend.connect(backend.devices()[0])\n"
        "    try:\n        next(calls.Client(session, calls.Program(at, 'vision'), 0).calls())\n"
        "    except calls.WrongValue as error:\n        print(json.dumps(str(error)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=170, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    assert "differ from the native ones" in json.loads(done.stdout)


def test_faults_of_the_proxy_are_what_they_say() -> None:
    pieces = [bytes([number]) * 100 for number in range(50)]

    def sent(faults: Faults | None) -> tuple[list[bytes], Proxy]:
        proxy = Proxy("127.0.0.1:1", seed=1, faults=faults)
        held: list[bytes] = []
        out = [piece for each in pieces for piece in proxy.pieces(each, held)]
        proxy.close()
        return out, proxy

    assert sent(None)[0] == sent(Faults())[0] == pieces
    flipped, proxy = sent(Faults(flip=0.5))
    differing = [
        sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))
        for one, other in zip(pieces, flipped, strict=True)
    ]
    assert set(differing) == {0, 1}
    assert sum(differing) == proxy.struck["flip"] > 0
    assert len(sent(Faults(lost=0.5))[0]) < 50 < len(sent(Faults(twice=0.5))[0])
    late, _ = sent(Faults(late=0.2))
    assert late != pieces
    assert set(late) <= set(pieces)
