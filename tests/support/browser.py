"""A real browser: Debian's chromium and its driver, by Selenium.

    with chromium() as browser:
        browser.enter(site, "/runs/0123")
        browser.find("h1").text
        browser.until(lambda: browser.find(".state").text == "finished")

Elements are found when they are there: `find` waits. `why_not()` says why there is no browser here.
"""

from __future__ import annotations

import importlib.resources
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from support.paths import ROOT

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

    from support.serving import Site

SCREENSHOTS = ROOT / "build" / "screenshots"
WITHIN_S = 600
_BINARIES = ("chromium", "chromedriver")
_T = TypeVar("_T")
# What the driver says of an element of a page that is being left.
_NAVIGATING = ("does not belong to the document", "aborted by navigation", "inspector error")
# Plotly's map library adds its styles, which nothing here uses: the policy blocks it, as it should.
_EXPECTED = ("/plotly.min.js", "Applying inline style violates")


def why_not() -> str | None:
    """Why no browser can be used here; None if one can."""
    missing = [name for name in _BINARIES if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed (Debian: apt-get install chromium-driver)"
    return None if find_spec("selenium") else "selenium is not installed"


class Browser:
    """One window."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self.complaints: list[str] = []

    def enter(self, site: Site, path: str = "/") -> None:
        """Open a page of a server, as somebody who has its token and has selected nothing."""
        self.driver.get(f"{site.url}/?token={site.app.state.settings.token}")
        self.script("sessionStorage.clear()")
        self.driver.get(site.url + path)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def awaited(self, code: str, *arguments: Any) -> Any:
        """The value of a promise: `code` is an expression of it."""
        wrapped = f"const done = arguments[arguments.length - 1]; ({code}).then(done, done);"
        return self.driver.execute_async_script(wrapped, *arguments)

    @contextmanager
    def beforehand(self, code: str) -> Iterator[None]:
        """Run this in each page that is opened, before its own scripts."""
        added = self.driver.execute_cdp_cmd(
            "Page.addScriptToEvaluateOnNewDocument", {"source": code}
        )
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)

    def until(self, condition: Callable[[], _T | None]) -> _T:
        """The first value of the condition that is true. Elements may vanish while it looks."""
        from selenium.common.exceptions import (
            NoSuchElementException,
            StaleElementReferenceException,
            TimeoutException,
            WebDriverException,
        )
        from selenium.webdriver.support.ui import WebDriverWait

        def looked(_: object) -> _T | None:
            try:
                return condition()
            except WebDriverException as error:
                if any(part in str(error) for part in _NAVIGATING):
                    return None
                raise

        passing = (NoSuchElementException, StaleElementReferenceException)
        wait = WebDriverWait(self.driver, WITHIN_S, 0.1, passing)
        try:
            found: Any = wait.until(looked)
        except TimeoutException:
            self.shoot("failed")
            complaints = self.hear()
            raise AssertionError(f"It did not happen. The console: {complaints}") from None
        return cast(_T, found)

    def find(self, selector: str) -> WebElement:
        """The first element, once there is one that is shown."""
        return self.until(lambda: next((e for e in self.all(selector) if e.is_displayed()), None))

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.driver.find_elements("css selector", selector)
        return found

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def says(self, selector: str, text: str) -> None:
        """Wait until an element has this text in it."""
        self.until(lambda: text in self.text(selector))

    def click(self, selector: str) -> None:
        """Click it, once nothing covers it."""
        from selenium.common.exceptions import ElementClickInterceptedException

        def clicked() -> bool:
            element = self.find(selector)
            self.script("arguments[0].scrollIntoView({block: 'center'})", element)
            try:
                element.click()
            except ElementClickInterceptedException:
                return False
            return True

        self.until(clicked)

    def type(self, selector: str, text: str) -> None:
        """In place of what is there."""
        element = self.find(selector)
        element.clear()
        element.send_keys(text)

    def paste(self, selector: str, text: str) -> None:
        """In place of what is there, at once and not key by key."""
        put = (
            "arguments[0].value = arguments[1];"
            "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        )
        self.script(put, self.find(selector), text)

    def choose(self, selector: str, value: str) -> None:
        """An option of a select."""
        from selenium.webdriver.support.ui import Select

        def offered() -> bool:
            select = Select(self.find(selector))
            if value not in [option.get_attribute("value") for option in select.options]:
                return False
            select.select_by_value(value)
            return True

        self.until(offered)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def holds(self, text: str) -> None:
        """Wait until the clipboard has this text."""
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        self.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
        self.until(lambda: self.awaited("navigator.clipboard.readText()") == text)

    # -- how it looks ----------------------------------------------------------------------------

    def look(self, *, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """The window's size, and the colours that its user prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def shoot(self, name: str) -> Path:
        """Write a screenshot into build/screenshots."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        assert self.driver.save_screenshot(str(path))
        return path

    # -- what is wrong ---------------------------------------------------------------------------

    def hear(self) -> list[str]:
        """What the console has complained about since it was asked last."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        texts = [str(entry["message"]) for entry in entries if entry["level"] == "SEVERE"]
        return [text for text in texts if not all(part in text for part in _EXPECTED)]

    def barriers(self, within: str = "html") -> list[str]:
        """What axe-core finds in an element: rule, element and reason of each violation of WCAG 2.1
        AA and of good practice."""
        source = importlib.resources.files("axe_core_python") / "axe.min.js"
        self.script(source.read_text())
        found = self.awaited("axe.run(arguments[0]).then(found => found.violations)", within)
        return [
            f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}"
            for rule in found
            for node in rule["nodes"]
        ]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a screen."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    # As root there is no sandbox; /dev/shm may be small in a container.
    switches = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars")
    for argument in switches:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    driver.set_script_timeout(WITHIN_S)
    try:
        browser = Browser(driver)
        browser.look()
        yield browser
    finally:
        driver.quit()
