"""The page for Cockpit in Chromium, through cockpit-ws and its bridge.

`make test-all` writes the screenshots in docs/cockpit.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from ipv6natd import __version__
from ipv6natd.host.findings import Finding, Severity, Topic
from ipv6natd.model import ManagedBy, Mapping, Network, Protocol, Skipped
from ipv6natd.report.explain import Explanation
from ipv6natd.report.status import State, Status
from tests import ROOT
from tests.harness.needs import lack, need
from tests.harness.process import spawn
from tests.integration.bus.conftest import Bus, FakeSource, run, serving, status, tool_environment

pytestmark = pytest.mark.slow

COCKPIT_WS = Path("/usr/lib/cockpit/cockpit-ws")
PAGE = "cockpit/@localhost/ipv6natd/index.html"
WAIT = 30.0
"""Seconds for a slow machine."""
WIDE, NARROW = (1180, 1400), (400, 1400)
"""Pixels of the window."""
HOSTILE = '<img src=x onerror="document.title=1">\u202e\x07"'
SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
    for (const entry of list.getEntries())
        if (!entry.hadRecentInput)
            window.shifts.push(entry.value);
}).observe({ type: "layout-shift", buffered: false });
"""


def network(number: int, name: str, **changes: Any) -> Network:
    return Network(
        id=f"{number:064x}",
        name=name,
        driver="bridge",
        bridge=f"br-{number:012x}",
        subnets=(IPv6Network(f"fd00:{number:x}::/64"),),
        **changes,
    )


def forwarded(on: Network, number: int, name: str, *ports: tuple[int, int]) -> Iterator[Mapping]:
    for host_port, port in ports:
        yield Mapping(
            container_id=f"{number:064x}",
            container_name=name,
            network_id=on.id,
            network_name=on.name,
            bridge=on.bridge,
            protocol=Protocol.UDP if port == 53 else Protocol.TCP,
            host_address=IPv6Address("::"),
            host_port=host_port,
            container_address=on.subnets[0][number + 2],
            container_port=port,
            managed_by=on.managed_by,
        )


def usual() -> Status:
    """What a host with five containers has."""
    front, mail = network(1, "front"), network(2, "mail", warnings=("enable_icc is unreadable",))
    engine = network(3, "monitoring", managed_by=ManagedBy.ENGINE)
    mappings = (
        *forwarded(front, 1, "web", (80, 8080), (443, 8443)),
        *forwarded(front, 2, "git", (2222, 22)),
        *forwarded(front, 3, "resolver", (53, 53)),
        *forwarded(mail, 4, "mailserver", (25, 25), (465, 465), (993, 993)),
        *forwarded(engine, 5, "grafana", (3000, 3000)),
    )
    skipped = Skipped(
        container_name="staging",
        network="front",
        port="80/tcp",
        reason="web already has the host port [::]:80; publish another one",
    )
    findings = (
        Finding(
            topic=Topic.FORWARDING,
            severity=Severity.ERROR,
            problem="net.ipv6.conf.all.forwarding is 0, so no packet reaches a container",
            command="sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
        Finding(
            topic=Topic.NETWORK,
            severity=Severity.WARNING,
            problem="enable_icc is unreadable",
            network="mail",
        ),
    )
    return status(
        *mappings,
        version=__version__,
        state=State.DEGRADED,
        state_reason=findings[0].text,
        networks=(front, mail, engine),
        skipped=(skipped,),
        findings=findings,
    )


def many(containers: int) -> Status:
    networks = tuple(network(number, f"project{number}") for number in range(1, 11))
    rows = (
        row
        for number in range(containers)
        for row in forwarded(
            networks[number % 10], number, f"service{number}", (10_000 + number, 80)
        )
    )
    return status(*rows, networks=networks)


class Browser:
    """A window of Chromium with the page."""

    def __init__(self, driver: Any, shots: Path | None) -> None:
        self.driver = driver
        self._shots = shots

    async def do(self, act: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(act)

    async def script(self, text: str) -> Any:
        """The result of a script in the page."""
        return await self.do(lambda: self.driver.execute_script(text))

    async def until(self, condition: str) -> None:
        """Wait until the expression is true in the page."""
        try:
            async with asyncio.timeout(WAIT):
                while True:
                    if await self.script(f"return Boolean({condition})"):
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            shown = await self.script("return document.body.innerText")
            pytest.fail(f"never true: {condition}\n{shown}")

    async def text(self, id: str) -> str:
        text: str = await self.script(f"return document.getElementById('{id}').innerText")
        return text

    async def press(self, *keys: str) -> None:
        """Press keys where the focus is; names such as ENTER, or text."""
        from selenium.webdriver.common.keys import Keys

        codes = [getattr(Keys, key, key) for key in keys]
        await self.do(lambda: self.driver.switch_to.active_element.send_keys(*codes))

    async def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.cdp("Emulation.setDeviceMetricsOverride", metrics)

    async def theme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        await self.cdp("Emulation.setEmulatedMedia", {"features": features})

    async def cdp(self, command: str, values: dict[str, Any]) -> None:
        await self.do(lambda: self.driver.execute_cdp_cmd(command, values))

    async def shot(self, name: str) -> None:
        """Write a screenshot of the whole page into docs/cockpit, in `make test-all`."""
        height = await self.script("return document.documentElement.scrollHeight")
        width = await self.script("return window.innerWidth")
        await self.size(width, height)
        png = await self.do(self.driver.get_screenshot_as_png)
        assert png.startswith(b"\x89PNG")
        if self._shots is not None:
            self._shots.mkdir(exist_ok=True)
            (self._shots / f"{name}.png").write_bytes(png)


@contextmanager
def web_service(bus: Bus, folder: Path) -> Iterator[str]:
    """cockpit-ws with a session of its own, at the private bus; yields the page's address."""
    need("chromium", "chromedriver", "cockpit-bridge")
    if not COCKPIT_WS.exists():
        lack("cockpit-ws; `make test-all` as root installs it")
    pages = folder / "data/cockpit"
    pages.mkdir(parents=True)
    (pages / "ipv6natd").symlink_to(ROOT / "cockpit")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = tool_environment(bus, folder) | {
        # With these, the bridge starts no session bus and no agent.
        "DBUS_SESSION_BUS_ADDRESS": bus.address,
        "SSH_AUTH_SOCK": "/nonexistent",
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_RUNTIME_DIR": str(folder),
        "HOME": str(folder),
    }
    command = (
        *(str(COCKPIT_WS), "--no-tls", "--address=127.0.0.1", f"--port={port}"),
        "--local-session=cockpit-bridge",
    )
    with (folder / "ws.log").open("wb") as log:
        process = spawn(command, log=log, env=env)
        try:
            yield f"http://127.0.0.1:{port}/{PAGE}"
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def chromium(folder: Path, language: str) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder / 'profile'}", f"--lang={language}", "--hide-scrollbars"),
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    environment = {**os.environ, "HOME": str(folder), "LANG": "C.UTF-8", "LANGUAGE": language}
    service = Service("/usr/bin/chromedriver", env=environment)
    driver = webdriver.Chrome(service=service, options=options)
    try:
        yield driver
    finally:
        driver.quit()


@asynccontextmanager
async def window(
    bus: Bus, folder: Path, shots: Path | None = None, language: str = "en"
) -> AsyncIterator[Browser]:
    """The open page."""
    async with AsyncExitStack() as stack:
        address = stack.enter_context(web_service(bus, folder))
        from selenium.common.exceptions import WebDriverException

        driver = stack.enter_context(chromium(folder, language))
        browser = Browser(driver, shots)
        await browser.size(*WIDE)
        await browser.theme("light")
        async with asyncio.timeout(WAIT):
            while True:
                try:
                    await browser.do(lambda: driver.get(address))
                    break
                except WebDriverException as error:
                    if "ERR_CONNECTION_REFUSED" not in str(error):
                        raise
                    await asyncio.sleep(0.1)
        yield browser


@pytest.fixture
def shots(request: pytest.FixtureRequest) -> Path | None:
    """The folder of the screenshots, if this run writes the pages in docs/."""
    folder = request.config.getoption("--report")
    return ROOT / str(folder) / "cockpit" if folder else None


def test_page_is_readable_in_both_themes_and_on_a_narrow_screen(
    bus: Bus, tmp_path: Path, shots: Path | None
) -> None:
    async def body() -> None:
        source = FakeSource(usual())
        async with serving(bus, source), window(bus, tmp_path, shots) as page:
            await page.until("document.querySelectorAll('#mappings tbody tr').length == 8")
            assert "sysctl -w net.ipv6.conf.all.forwarding=1" in await page.text("findings")
            await page.shot("light")
            light = await page.script("return getComputedStyle(document.body).backgroundColor")
            await page.theme("dark")
            await page.until("document.documentElement.classList.contains('dark')")
            await page.shot("dark")
            assert light != await page.script(
                "return getComputedStyle(document.body).backgroundColor"
            )
            await page.theme("light")
            await page.size(*NARROW)
            await page.until("window.innerWidth == 400")
            assert await page.script("return document.documentElement.scrollWidth") <= NARROW[0]
            # The titles are there, because they sort.
            for number in range(6):
                assert await page.script(
                    f"const title = document.querySelectorAll('#mappings th button')[{number}];"
                    "const box = title.getBoundingClientRect();"
                    "return document.elementFromPoint(box.x + box.width / 2, box.y + 8) == title"
                ), number
            await page.shot("narrow")

    run(body(), seconds=180)


def test_page_works_by_keyboard(bus: Bus, tmp_path: Path) -> None:
    async def body() -> None:
        source = FakeSource(usual())
        source.explained = [
            Explanation(
                container_id="1" * 64,
                container_name="mailserver",
                networks=(),
                ports=(),
                skipped=(),
                loopback="the userland proxy answers",
            )
        ]
        async with serving(bus, source), window(bus, tmp_path) as page:
            await page.until("document.querySelectorAll('#mappings tbody tr').length == 8")
            await page.script("document.querySelector('#mappings input').focus()")
            await page.press("mail")
            await page.until("document.querySelectorAll('#mappings tbody tr').length == 3")
            # From the filter, Tab leads to the titles of the columns.
            await page.press("TAB")
            await page.press("ENTER")
            await page.until("document.querySelector('#mappings th').ariaSort == 'descending'")
            arrows = await page.script(
                "return [...document.querySelectorAll('#mappings th button')].map((title) =>"
                "{ const arrow = getComputedStyle(title, '::after');"
                "return arrow.visibility == 'visible' ? arrow.content : ''; })"
            )
            assert "▼" in arrows[0]
            assert not any(arrows[1:])
            await page.script("document.querySelector('#mappings tbody button').focus()")
            await page.press("ENTER")
            await page.until("document.getElementById('explanation').open")
            await page.until("document.body.innerText.includes('the userland proxy answers')")
            await page.press("ESCAPE")
            await page.until("!document.getElementById('explanation').open")
            await page.script("document.querySelector('#actions button').focus()")
            await page.press("ENTER")
            await page.until("document.body.innerText.includes('rules added: 3, removed: 1')")
            assert source.done == ["resync"]
            focused = await page.script("return document.activeElement.parentNode.id")
            assert focused == "actions"
            await page.script("document.querySelector('#diagram [aria-expanded=true]').focus()")
            await page.press("ENTER")
            await page.until("document.activeElement.getAttribute('aria-expanded') == 'false'")

    run(body(), seconds=180)


def test_command_is_copied(bus: Bus, tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(usual())), window(bus, tmp_path) as page:
            allowed = ["clipboardReadWrite", "clipboardSanitizedWrite"]
            await page.cdp("Browser.grantPermissions", {"permissions": allowed})
            await page.until("document.querySelector('#findings button')")
            await page.script("document.querySelector('#findings button').focus()")
            await page.press("ENTER")
            await page.script(
                "navigator.clipboard.readText().then((text) => { window.copied = text; })"
            )
            await page.until("window.copied == 'sysctl -w net.ipv6.conf.all.forwarding=1'")
            await page.until("document.getElementById('findings').innerText.includes('Copied')")

    run(body(), seconds=180)


def test_updates_move_nothing_and_survive_a_restart_of_the_daemon(bus: Bus, tmp_path: Path) -> None:
    async def body() -> None:
        source = FakeSource(usual())
        async with window(bus, tmp_path) as page:
            async with serving(bus, source) as service:
                await page.until("document.querySelectorAll('#mappings tbody tr').length == 8")
                await page.script(SHIFTS)
                for generation in range(2, 7):
                    rows = source.now.mappings
                    renamed = replace(rows[-1], container_name=f"grafana{generation}")
                    changed = replace(
                        source.now, mappings=(*rows[:-1], renamed), generation=generation
                    )
                    # A reader keeps the place while the page changes.
                    await page.script("document.querySelector('#findings button').focus()")
                    service.publish(source.now, changed)
                    source.now = changed
                    await page.until(f"document.body.innerText.includes('grafana{generation}')")
                    assert await page.script("return document.activeElement.innerText") == "Copy"
                assert await page.script("return window.shifts") == []
            await page.until("!document.getElementById('problem').hidden")
            async with serving(bus, FakeSource(many(3))):
                await page.until("document.getElementById('problem').hidden")
                await page.until("document.body.innerText.includes('service2')")

    run(body(), seconds=180)


@pytest.mark.parametrize("count", [5, 500, 10_000])
def test_diagram_and_tables_of_many_containers(bus: Bus, tmp_path: Path, count: int) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(many(count))), window(bus, tmp_path) as page:
            shown = min(count, 500)
            await page.until(f"document.querySelectorAll('#mappings tbody tr').length == {shown}")
            edges = "document.querySelectorAll('#diagram path').length"
            if count == 5:
                await page.until(f"{edges} == 10")
                return
            await page.until(f"{edges} == 0")
            await page.script(
                "document.getElementById('network-' + '1'.padStart(64, '0'))"
                ".dispatchEvent(new MouseEvent('click'))"
            )
            await page.until(f"{edges} == {count // 10 * 2}")

    run(body(), seconds=180)


def test_hostile_names_are_text(bus: Bus, tmp_path: Path) -> None:
    async def body() -> None:
        (front, *_), mappings = usual().networks, usual().mappings
        hostile = replace(mappings[0], container_name=HOSTILE, network_name=HOSTILE)
        finding = Finding(topic=Topic.FIREWALL, problem=HOSTILE, command=HOSTILE, network=HOSTILE)
        now = status(
            hostile,
            networks=(replace(front, name=HOSTILE, warnings=(HOSTILE,)),),
            findings=(finding,),
        )
        async with serving(bus, FakeSource(now)), window(bus, tmp_path) as page:
            await page.until("document.querySelectorAll('#mappings tbody tr').length == 1")
            assert await page.script("return document.querySelectorAll('img').length") == 0
            assert await page.script("return document.title") != "1"
            assert "<img src=x" in await page.text("mappings")

    run(body(), seconds=180)


def test_texts_are_translated(bus: Bus, tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(usual())), window(bus, tmp_path, language="de") as page:
            await page.until("document.querySelectorAll('#mappings tbody tr').length == 8")
            assert await page.text("findings-title") == "Befunde"
            assert "8 Zeilen" in await page.text("mappings")
            assert await page.script("return document.documentElement.lang") == "de"

    run(body(), seconds=180)
