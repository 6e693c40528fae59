"""Two tenants train on one node, which is killed under them; neither notices.

    python examples/09_two_tenants.py

A laboratory in a temporary directory, as in docs/security.md and docs/tenancy.md: an authority, a certificate for the
node, a token for each tenant, a file of quotas, an audit log. Each tenant is a process of its own. Half way the node
is killed and started anew: with `recovery` on, both go on (docs/recovery.md). Then one of them asks for more than it
may have.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import genie
import genie_pytorch  # noqa: F401  (makes "remote_accelerator" a device; with the package installed, torch does)

TENANTS = """
tenants:
  alice: {memory: 1GiB, weight: 4, priority: realtime}
  bob: {memory: 32MiB, sessions: 1, priority: batch}
"""
GENIE = (sys.executable, "-m", "genie")
WAIT_SECONDS = 120.0  # for anybody to say something
STEPS = 30
HALF_WAY = "half way"


# --- what a tenant runs -----------------------------------------------------------------------------


def train(model: nn.Module, device: str, steps: range) -> Iterator[float]:
    optimizer = torch.optim.SGD(model.to(device).parameters(), lr=0.05, momentum=0.9)
    data = torch.Generator().manual_seed(1)
    for _ in steps:
        x = torch.randn(64, 16, generator=data)
        loss = (model(x.to(device)) - x.sum(dim=1, keepdim=True).to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def tenant(name: str) -> None:
    """Where the node is, and by what token it lets us in, is in the environment."""
    torch.manual_seed(zlib.crc32(name.encode()))
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    here = list(train(copy.deepcopy(model), "cpu", range(STEPS)))
    there = []
    for step, loss in enumerate(train(model, "remote_accelerator:0", range(STEPS)), 1):
        there.append(loss)
        if step == STEPS // 2:
            print(HALF_WAY, flush=True)
            sys.stdin.readline()
    torch.testing.assert_close(torch.tensor(there), torch.tensor(here), rtol=1e-4, atol=1e-5)
    print(
        f"{name}: the loss went from {there[0]:.4f} to {there[-1]:.4f} as on the CPU; "
        f"recovered {genie.get_stats()['recoveries']} time(s)"
    )
    held: list[torch.Tensor] = []
    try:
        for number in range(16):
            held.append(torch.full((1 << 20,), float(number), device="remote_accelerator:0"))
            assert held[-1].mean().item() == number
        print(f"{name}: holds {4 * len(held)} MiB besides")
    except genie.errors.OutOfMemory as error:
        print(f"{name}: {error.message}")


# --- the laboratory ---------------------------------------------------------------------------------


def genie_command(*options: str) -> str:
    return subprocess.run([*GENIE, *options], check=True, stdout=subprocess.PIPE, text=True).stdout


def said(process: subprocess.Popen[str]) -> str:
    """A process's next line."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], WAIT_SECONDS)[0]:
        raise genie.GenieError(f"nothing was heard for {WAIT_SECONDS:g} s of {' '.join(process.args)}")
    line = process.stdout.readline()
    if not line:
        raise genie.GenieError(f"it ended with status {process.wait()}: {' '.join(process.args)}")
    return line.strip()


class Lab:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        genie_command("certs", "init", str(directory / "pki"), "--node", "localhost,127.0.0.1")
        for name in ("alice", "bob"):
            token = genie_command("tokens", "add", str(directory / "tokens.json"), name)
            (directory / f"{name}.token").touch(mode=0o600)
            (directory / f"{name}.token").write_text(token)
        (directory / "tenants.yaml").write_text(TENANTS)

    def node(self, port: int = 0) -> tuple[subprocess.Popen[str], int]:
        """A node, ready, and its port."""
        pki = self.directory / "pki"
        command = [*GENIE, "serve", "--port", str(port), "--device", "cpu", "--threads", "1", "--json"]
        command += ["--cert", str(pki / "node-localhost.pem"), "--key", str(pki / "node-localhost.key")]
        for option in ("tokens.json", "tenants.yaml", "audit-log.jsonl"):
            command += [f"--{option.partition('.')[0]}", str(self.directory / option)]
        node = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            return node, int(json.loads(said(node))["address"].rpartition(":")[2])
        except BaseException:
            node.kill()
            raise

    def tenant(self, name: str, port: int) -> subprocess.Popen[str]:
        settings = {
            "GENIE_NODES": f"127.0.0.1:{port}",
            "GENIE_CA": str(self.directory / "pki" / "ca.pem"),
            "GENIE_TOKEN_FILE": str(self.directory / f"{name}.token"),
            "GENIE_RECOVERY": "1",
            "GENIE_RECOVERY_DIR": str(self.directory / name),
        }
        return subprocess.Popen(
            [sys.executable, __file__, "--tenant", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )

    def audited(self) -> Counter[tuple[str, str]]:
        """How often each tenant did what."""
        lines = map(json.loads, (self.directory / "audit-log.jsonl").read_text().splitlines())
        return Counter((line["tenant"], line["event"]) for line in lines if "tenant" in line)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="genie-lab-") as directory, contextlib.ExitStack() as ending:
        lab = Lab(Path(directory))
        node, port = lab.node()
        ending.callback(lambda: node.kill())  # whichever it is by then
        tenants = [lab.tenant(name, port) for name in ("alice", "bob")]
        for each in tenants:
            ending.callback(each.kill)
        for each in tenants:
            assert said(each) == HALF_WAY

        node.kill()
        node.wait()
        print("the node was killed; weights and optimizers' states were there and nowhere else")
        for each in tenants:
            print("go on", file=each.stdin, flush=True)
        node, _ = lab.node(port)

        for each in tenants:
            print(said(each))
            print(said(each))
            if each.wait(WAIT_SECONDS):
                raise genie.GenieError(f"a tenant's program ended with status {each.returncode}")
        node.send_signal(signal.SIGTERM)
        node.wait(WAIT_SECONDS)
        seen = lab.audited()
        for name in ("alice", "bob"):
            print(f"the audit log: {name} opened {seen[name, 'opened']} sessions")
    print("both tenants' losses equal those of the CPU, though their node was killed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenant", help="be this tenant: the programs that the example starts")
    chosen = parser.parse_args().tenant
    tenant(chosen) if chosen else main()
