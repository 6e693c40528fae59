"""Links that break while a state is told, kept and given: nobody notices."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from local.both import data_of, spec_of
from local.stateful import Play, Player, state
from remote.proxy import Proxy

from genie.checkpoints import DiskCheckpoints
from genie.remote import NodeServer, RemoteBackend
from genie_backend_local import LocalBackend
from genie_backend_tcp import TcpTransport


@pytest.mark.parametrize("seed", range(3))
def test_states_survive_links_that_break(seed: int, tmp_path: Path) -> None:
    """Each connection carries 30 to 200 kB."""
    draw = random.Random(seed)
    transport, own = TcpTransport(stall_timeout=10.0), LocalBackend()
    with NodeServer(LocalBackend(), transport, "127.0.0.1:0") as node:
        proxy = Proxy(node.address, seed=seed, budget=iter(lambda: draw.randrange(30_000, 200_000), 0))
        client = RemoteBackend("tcp", transport, (proxy.address,), timeout=20.0, shortcut=False)
        try:
            source, target = (client.connect(client.devices()[0]) for _ in range(2))
            twin = own.connect(own.devices()[-1])
            play = Play(seed, Player(source), Player(twin))
            for number in range(6):
                tensor = torch.rand(5000, generator=torch.Generator().manual_seed(number))
                for session in (source, twin):
                    session.upload(1000 + number, spec_of(tensor), data_of(tensor))
            store = DiskCheckpoints(tmp_path)
            for _ in range(12):
                play.step()
                assert store.save(source).snapshot == source.snapshot()
            store.load(store.checkpoints()[-1], target)
            assert state(target) == state(source) == state(twin)
            assert proxy.cuts > 2
            store.close()
        finally:
            client.close()
            own.close()
            proxy.close()
