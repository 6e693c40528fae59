"""A browser with a page open. Needs Chromium and its driver (Debian's packages)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser.opened import Open, Page
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from genie import ExecutionPlan, Graph
from genie.inspect import page
from genie.inspect.measured import CostsOfNodes, Traced

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
).split()


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium here: `apt install chromium chromium-driver` to test the page for real")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def open_page(browser: webdriver.Chrome, tmp_path: Path) -> Iterator[Open]:
    """Opens a graph or plan. Afterwards nothing may have complained, and nothing been asked of a network."""

    def opened(
        shown: Graph | ExecutionPlan, scheme: str = "light", measured: CostsOfNodes | Traced | None = None
    ) -> Page:
        path = tmp_path / "graph.html"
        path.write_text(page(shown, measured=measured), encoding="utf-8")
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        Page(browser).trouble()  # of the tab before
        browser.get(path.as_uri())
        return Page(browser)

    yield opened
    assert Page(browser).trouble() == ([], [])
