"""A node's status page in a real browser. Needs Chromium and its driver (Debian's packages)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser.opened import Page
from selenium import webdriver

from genie.remote import NodeServer, RemoteBackend
from genie.remote.seen.status_page import StatusPage
from genie.testing import Caller, MemoryTransport, NullBackend, single
from genie.testing.plans import spec

ADD = single("aten::add.Tensor", [spec(2)] * 2, spec(2))
HARM = "<img src=x onerror=window.harmed=1>"


class Watched:
    """A node with a status page, which a browser shows."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.transport = MemoryTransport()
        self.node = NodeServer(NullBackend(memory_bytes=1 << 20), self.transport, "node:0")
        self.node.start()
        self.status = StatusPage(self.node)
        self.status.start("127.0.0.1", 0)
        self.page = Page(driver)
        driver.get("about:blank")
        self.page.trouble()  # of the page before
        driver.get(f"http://{self.status.address}/")
        self.page.until(lambda: self.text("#state") != "loading")

    def client(self) -> tuple[RemoteBackend, Caller]:
        backend = RemoteBackend("memory", self.transport, (self.node.address,), timeout=10.0)
        return backend, Caller(backend.connect(backend.devices()[0]))

    def texts(self, selector: str) -> list[str]:
        """In one step: the page replaces its rows when the node has answered."""
        source = (
            "[...document.querySelectorAll(arguments[0])].map(each => each.innerText.split(/\\s+/).join(' ').trim())"
        )
        found: list[str] = self.page.js(source, selector)
        return found

    def rows(self, table: str) -> list[str]:
        return self.texts(f"#{table} tbody tr")

    def text(self, selector: str) -> str:
        (found,) = self.texts(selector)
        return found

    def close(self) -> None:
        self.status.close()
        self.node.close()


@pytest.fixture
def watched(browser: webdriver.Chrome) -> Iterator[Watched]:
    made = Watched(browser)
    yield made
    made.close()


def test_a_session_is_seen_at_work_and_gone(watched: Watched) -> None:
    page = watched.page
    assert watched.text("#title") == watched.node.address
    assert watched.text("#state") == "serving"
    assert watched.rows("sessions") == ["no sessions"]
    backend, caller = watched.client()
    one = caller.put([1, 2])
    for _ in range(3):
        assert caller.get(caller.run(ADD, [one, one])) == [2, 4]
    page.until(lambda: watched.rows("sessions") != ["no sessions"])
    (session,) = watched.node.sessions()
    (shown,) = watched.rows("sessions")
    assert shown.startswith(f"{session.id} {session.client} null:0")
    page.until(lambda: float(page.js("document.querySelector('#devices meter').value")) > 0)
    stages = {line.split()[0]: line.split() for line in watched.rows("stages")}
    assert stages["execute"][-1] == stages["fetch"][-1] == "3"
    assert "0 of 64 sessions" not in watched.text("#summary")
    assert len(watched.texts("#rates .tile")) == 7
    assert watched.texts("#tenants tbody tr")[0].split()[1] == "1"
    backend.close()
    page.until(lambda: watched.rows("sessions") == ["no sessions"])
    complaints, requests = page.trouble()
    assert complaints == []
    assert requests
    assert [url for url in requests if not url.startswith(f"http://{watched.status.address}/")] == []


def test_draining_and_silence_are_said(watched: Watched) -> None:
    page = watched.page
    watched.node.drain(0.1)
    page.until(lambda: watched.text("#state") == "draining")
    assert page.js("document.getElementById('state').className") == "draining"
    watched.status.close()
    page.until(lambda: watched.text("#state") == "no answer")


def test_a_clients_name_is_text(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genie.remote.greeting.client_name", lambda: HARM)
    backend, caller = watched.client()
    caller.session.synchronize()
    watched.page.until(lambda: HARM in "".join(watched.rows("sessions")))
    assert watched.page.js("window.harmed === undefined")
    assert watched.page.js("document.querySelectorAll('img').length") == 0
    backend.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark(watched: Watched, scheme: str) -> None:
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    watched.page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    color = watched.page.js("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(","))) < 3 * 128
    assert dark == (scheme == "dark")
    # Nothing is wider than the window.
    assert watched.page.js("document.documentElement.scrollWidth <= window.innerWidth")
