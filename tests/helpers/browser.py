"""Opens pages in Debian's Chromium, without a window and without a network, and checks them with axe-core.

with chromium(tmp_path) as browser:
    browser.get("file:///page.html")
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

AXE = "axe-core@4"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip


def _missing(reason: str):
    """Skips the test, or fails it where KRESUME_NEEDS_BROWSER says that all must be there, as in CI."""
    (pytest.fail if os.environ.get("KRESUME_NEEDS_BROWSER") else pytest.skip)(reason)


@contextlib.contextmanager
def chromium(profile: Path):
    """Starts a browser with an empty profile; skips the test where none is installed."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        _missing("no Chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def show_as(browser, width: int, scheme: str) -> None:
    """Sets the width of the window and the colour scheme."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def screenshot(browser, width: int, height: int) -> bytes:
    """Returns the upper part of the page as PNG."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    taken = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
    )
    return base64.b64decode(taken["data"])


def requests(browser) -> list[str]:
    """Returns the addresses that the page asked for since the last call, without those of its own data."""
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def axe_source(folder: Path) -> str:
    """Returns the script of axe-core, from npm; skips the test where npm cannot bring it."""
    npm = shutil.which("npm")
    if npm is None:
        _missing("no npm, which brings axe-core")
    command = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--prefix", str(folder), AXE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.is_file():
        _missing(f"npm cannot bring {AXE}: {done.stderr.strip()[-200:]}")
    return script.read_text(encoding="utf-8")


def violations(browser, axe: str) -> list[str]:
    """Returns what axe-core finds wrong with the page as it is shown now."""
    # The page's own policy forbids scripts from elsewhere; the driver's are not subject to it.
    browser.execute_script(f"if (!window.axe) {{ {axe}; window.axe = axe }}")
    found = browser.execute_async_script(
        "const done = arguments[0]; window.axe.run().then(r => done(r.violations), e => done([{id: String(e), nodes: []}]))"
    )
    return [
        f"{each['id']}: {node['html'][:120]} {node.get('failureSummary', '')[:300]}"
        for each in found
        for node in each["nodes"] or [{"html": ""}]
    ]
