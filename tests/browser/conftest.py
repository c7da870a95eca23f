"""One Chromium for all tests of pages; skipped, with the reason, where there is none and it cannot be installed."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

HERE = Path(__file__).parent
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="package")  # not the session: playwright has an event loop under way in this thread meanwhile
def browser() -> Iterator[Browser]:
    if shutil.which("chromium") is None and os.geteuid() != 0:
        pytest.skip("there is no chromium, and installing Debian's needs root")
    installed = subprocess.run([HERE / "install.sh"], capture_output=True, text=True, timeout=300, check=False)
    if installed.returncode:
        pytest.skip(f"tests/browser/install.sh failed: {installed.stderr.strip()[-300:]}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGUMENTS))
        yield browser
        browser.close()


class Watched:
    """A page, what its console said and what it asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        self.said.append(f"{message.type}: {message.text}")

    def _see(self, request: Request) -> None:
        self.asked.append(request.url)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """open_page(scheme="light") -> an empty page, which prefers that; afterwards nothing may have been said in its console."""
    opened: list[Watched] = []

    def make(scheme: str = "light") -> Watched:
        opened.append(Watched(browser.new_page(color_scheme=scheme, viewport={"width": 1400, "height": 900})))  # type: ignore[arg-type]
        opened[-1].page.set_default_timeout(10_000)
        return opened[-1]

    yield make
    said = [text for watched in opened for text in watched.said]
    for watched in opened:
        watched.page.close()
    assert said == []
