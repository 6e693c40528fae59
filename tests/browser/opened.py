"""A page that is open in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


class Page:
    """A page that is open."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def js(self, source: str, *args: object) -> Any:
        return self.driver.execute_script(f"return {source}", *args)

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [each.text for each in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def until(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.driver, 20, poll_frequency=0.02).until(lambda _: condition())

    def drawn(self, classes: str = ".leaf, .closed") -> int:
        return int(self.js("genie.cy.nodes(arguments[0]).length", classes))

    def click_at(self, node: int) -> None:
        """Click where the node with that id is drawn."""
        self.point(self.js("genie.at(arguments[0])", node), click=True)

    def point(self, place: dict[str, float], click: bool = False) -> None:
        actions = ActionChains(self.driver, duration=0)
        actions.w3c_actions.pointer_action.move_to_location(round(place["x"]), round(place["y"]))
        if click:
            actions.w3c_actions.pointer_action.click()
        actions.perform()

    def settled(self) -> None:
        """What was asked for has been drawn."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def color(self, node: int) -> str:
        return str(
            self.js(
                "genie.cy.nodes('.leaf').filter(n => n.id() === 'u' + arguments[0]).style('background-color')", node
            )
        )

    def trouble(self) -> tuple[list[str], list[str]]:
        """Complaints in the console, and requests to anywhere but the page itself."""
        requests = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                requests.append(message["params"]["request"]["url"])
        return [entry["message"] for entry in self.driver.get_log("browser")], [
            url for url in requests if not url.startswith(("file://", "data:"))
        ]


Open = Callable[..., Page]
