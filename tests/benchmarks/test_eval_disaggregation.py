"""The evaluation over a network: links do what they say, bytes are what the forms say, and what is wrong is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(code: str, timeout: float = 170.0) -> Any:
    """``code`` in a process of its own, beside the benchmarks; what it prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- links ----------------------------------------------------------------------------------------


def arrivals(line: str, puts: list[tuple[float, int]]) -> Any:
    """When each packet, put at a time with a size, can first be taken from ``line``."""
    return run(
        "import json; from disaggregation.shaping import Line\n"
        f"line = {line}; found = []\n"
        f"for now, size in {puts}:\n"
        "    line.put(now, size, size)\n"
        "while (at := line.next()) is not None:\n"
        "    assert line.take(at - 1e-9) is None\n"
        "    found.append([at, line.take(at)])\n"
        "print(json.dumps(found))"
    )


def test_a_line_takes_time_for_every_byte_and_to_get_across() -> None:
    # 8,000 bit/s are 1,000 bytes/s; half a millisecond of the rate may be caught up on.
    found = arrivals("Line(rate=8000, delay=0.25)", [(10.0, 1000), (10.0, 500), (20.0, 100)])
    assert [size for _, size in found] == [1000, 500, 100]
    assert [at for at, _ in found] == pytest.approx([11.2495, 11.7495, 20.3495])


def test_a_line_without_a_rate_only_delays() -> None:
    found = arrivals("Line(delay=0.5)", [(1.0, 10**9), (1.5, 1)])
    assert [at for at, _ in found] == [1.5, 2.0]


def test_nothing_arrives_before_its_delay_or_overtakes() -> None:
    found = run(
        "import json; from disaggregation.shaping import Line\n"
        "line = Line(rate=8e12, delay=0.5); line.put(1.0, 1, 'slow'); line.set(8e12, 0.0); line.put(1.1, 1, 'quick')\n"
        "first = line.next(); taken = [line.take(2.0), line.take(2.0)]\n"
        "print(json.dumps([first, taken, line.backlog(0.0) > 0, line.backlog(2.0)]))"
    )
    assert found == [1.5, ["slow", "quick"], True, 0.0]


# --- closed forms ---------------------------------------------------------------------------------

CHAT = (
    "import json; from disaggregation import forms, programs\n"
    "chat = programs.Chat('chat', lambda: None, turns=(5, 3), new=3, vocabulary=10)\n"
)


def test_calls_of_a_chat() -> None:
    # The second turn begins with the third token said, which nothing has been computed from yet.
    assert run(CHAT + "print(json.dumps(list(forms.calls(chat))))") == [
        [5, 0],
        [1, 5],
        [1, 6],
        [4, 7],
        [1, 11],
        [1, 12],
    ]


@pytest.mark.parametrize(
    ("mode", "up", "down"),
    [
        ("blind-naive", 6 * 1_000_000 + 13 * 8 + 41 * 100, 13 * 40 + 54 * 100),
        ("blind", 13 * 8 + 41 * 100, 13 * 40 + 54 * 100),
        ("partial", 13 * 8, 13 * 40),
        ("last", 13 * 8, 6 * 40),
        ("sample", 8 * 8, 6 * 8),
        ("loop", (16 * 5 + 8) + (16 * 11 + 8), 6 * 16),
    ],
)
def test_bytes_of_a_chat(mode: str, up: int, down: int) -> None:
    # 13 positions in all, over 41 cached ones: 5 + 6 + 7 + 11 + 12; afterwards 54.
    said = f"print(json.dumps(forms.language(chat, {mode!r}, cache=100, vocabulary=10, weights=1_000_000)))"
    assert run(CHAT + said) == [up, down]


def test_a_long_answer_is_looped() -> None:
    said = (
        "chat = programs.Chat('chat', lambda: None, turns=(5,), new=32, vocabulary=10)\n"
        "print(json.dumps(forms.language(chat, 'loop', cache=100, vocabulary=10, weights=0)))"
    )
    assert run(CHAT + said) == [16 * 5 + 8, 4 * 16 + 28 * 9]


def test_each_mode_moves_no_more_than_the_one_before() -> None:
    totals = run(
        "import json; from disaggregation import forms, programs\n"
        "order = ('blind-naive', 'blind', 'partial', 'full')\n"
        "works = programs.suite(['vqa', 'cnn', 'dlrm'])\n"
        "print(json.dumps([[sum(forms.form(work, mode, weights=10**6)) for mode in order] for work in works]))"
    )
    for each in totals:
        assert each == sorted(each, reverse=True)
        assert each[-1] <= 0.7 * each[1]


# --- the whole ------------------------------------------------------------------------------------

WHOLE = (
    "import argparse, json, eval_disaggregation as evaluation\noptions = argparse.Namespace(rounds=1, seconds=5.0)\n"
)


@pytest.fixture(scope="module")
def relayed() -> Any:
    """All workloads, tiny, through the relay: it takes no rights."""
    said = "evaluation.run(profiles=['1G/0.2ms'], tiny=True, relayed=True, options=options)"
    return run(WHOLE + f"print(json.dumps({said}))")


@pytest.mark.models
def test_results_and_bytes_are_right_in_every_mode(relayed: Any) -> None:
    assert relayed["wrong"] == []
    modes: dict[str, list[str]] = {}
    for row in relayed["rows"]:
        modes.setdefault(row["workload"], []).append(row["mode"])
        assert row["ms"] > 0
        assert row["wrong"] == []
    assert list(modes) == ["GPT-2-like", "SmolLM2 chat", "VQA", "CNN stream", "DLRM-like"]
    for workload, names in modes.items():
        assert names[:4] == ["local", "blind-naive", "blind", "partial"]
        assert ("sample" if workload in ("GPT-2-like", "SmolLM2 chat") else "full") in names


@pytest.mark.models
def test_bytes_are_counted_on_the_wire(relayed: Any) -> None:
    for row in relayed["rows"]:
        if row["mode"] == "local":
            assert row["up"] == row["down"] == 0
        else:
            # A relay counts what TCP carries: no heads of packets.
            messages = sum(row[part] for part in ("up", "down", "framing", "plans", "frees", "profiles"))
            assert row["wire_up"] + row["wire_down"] == pytest.approx(messages, abs=64)


@pytest.mark.models
def test_a_link_does_what_its_profile_says(relayed: Any) -> None:
    [link] = relayed["links"]
    assert link["round trip ms"] >= 0.2
    assert link["Mbit/s"] <= 2600


@pytest.mark.models
def test_what_is_wrong_is_told() -> None:
    wrong = run(
        WHOLE + "from disaggregation.forms import Moved\n"
        "import dataclasses, torch\n"
        "from disaggregation import modes\n"
        "made = modes.modes\n"
        "def off(work, native):\n"
        "    table = made(work, native)\n"
        "    partial, full = table['partial'], table['full']\n"
        "    table['partial'] = dataclasses.replace(partial, moves=Moved(partial.moves.up + 1, partial.moves.down))\n"
        "    table['full'] = dataclasses.replace(full, run=lambda: full.run() + 2e-5)\n"
        "    return table\n"
        "evaluation.modes = off\n"
        "result = evaluation.run(profiles=['1G/0.2ms'], only=['dlrm'], tiny=True, relayed=True, options=options)\n"
        "print(json.dumps(result['wrong']))"
    )
    assert len(wrong) == 2
    assert "partial: moved" in wrong[0]
    assert "full: result differs" in wrong[1]


def test_targets_missed_are_told() -> None:
    missed = run(
        "import json; from disaggregation import report\n"
        "def row(mode, profile, latency, wire, speed):\n"
        "    return {'workload': 'w', 'profile': profile, 'mode': mode, 'base': 'blind', 'latency_ratio': latency,\n"
        "            'wire_ratio': wire, 'units_per_s': speed}\n"
        "rows = [row('blind', '1G/0.2ms', 1, 1, 5), row('loop', '1G/0.2ms', .8, .6, 10),\n"
        "        row('blind', '1G/10ms', 1, 1, 2), row('loop', '1G/10ms', .9, .8, 8)]\n"
        "print(json.dumps(list(report.missed(rows))))"
    )
    assert [each.partition(": ")[2] for each in missed] == [
        "loop puts 0.80 × blind's bytes on the wire",
        "loop takes 0.90 × blind's time",
        "over 10 ms the loop runs at 0.80 of its speed over 0.2 ms",
    ]


# --- namespaces -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spaces() -> None:
    why = run("import json; from disaggregation.network import why_not; print(json.dumps(why_not()))")
    if why:
        pytest.skip(why)


@pytest.mark.usefixtures("spaces")
def test_a_client_and_two_nodes_in_namespaces_of_their_own() -> None:
    found = run(
        "import json, os, socket\n"
        "from disaggregation import network as net\n"
        "from disaggregation.probe import measure_link\n"
        "from disaggregation.shaping import Profile\n"
        "home = os.readlink('/proc/thread-self/ns/net')\n"
        "with net.open_network(2) as network:\n"
        "    network.enter()\n"
        "    away = os.readlink('/proc/thread-self/ns/net')\n"
        "    network.shape(Profile('', 2e8, 0.02)); link = measure_link(network.probe, seconds=0.2)\n"
        "    counts = network.counts()\n"
        "    pids = [process.pid for process in network._processes]\n"
        "    for address in network.addresses:\n"
        "        host, _, port = address.rpartition(':'); socket.create_connection((host, int(port)), 5).close()\n"
        "alive = [pid for pid in pids if os.path.exists(f'/proc/{pid}')]\n"
        "back = os.readlink('/proc/thread-self/ns/net')\n"
        "print(json.dumps([home != away, home == back, alive, link, counts]))"
    )
    away, back, alive, link, counts = found
    assert away
    assert back
    assert alive == []
    assert link["round trip ms"] >= 20
    assert link["Mbit/s"] <= 205
    assert counts["0>1"][1] > 1 << 20  # the bulk went up, on the link that is counted
    assert "1>2" not in counts  # nodes had nothing to say to each other
