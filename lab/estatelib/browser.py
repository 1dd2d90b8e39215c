"""Chromium against the list host: certificates are verified, every step is kept as a picture in ``.lab/screenshots``.

The authorities of the lab stand in the NSS database of the browser's own home and are given to Playwright, which speaks
TLS itself where a client certificate is shown; nothing is told to ignore errors. A proxy on loopback takes the place of
the name server, for this machine knows no name of the lab; nor does the browser reach anything else through it.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

from .lists import HOST
from .mailboxes import Delivery
from .places import ADDRESSES, MAILBOXES, STATE

SITE = "https://ml.example.org"
PLACES = {"ml.example.org": ADDRESSES["ml"][0], "sso.example.org": "198.18.25.113"}
AUTHORITIES = {"acme": STATE / "pki/acme-root.pem", "lab": STATE / "pki/ca.pem"}
SCREENSHOTS = STATE / "screenshots"
OVERRIDES = MAILBOXES / "world/oidc/overrides.json"
SSO_LOGIN = "/accounts/oidc/sso/login/"
TIMEOUT_MS = 20_000


class Doorway(socketserver.ThreadingTCPServer):
    """An HTTP proxy that knows CONNECT (RFC 9110 §9.3.6) and the names in PLACES."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Passage(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n") and len(asked) < 8192:
            octet = self.request.recv(1)
            if not octet:
                return
            asked += octet
        match = re.match(rb"CONNECT ([a-z0-9.-]+):(\d+) ", asked)
        place = PLACES.get(match[1].decode()) if match else None
        if not match or not place:
            self.request.sendall(b"HTTP/1.1 403 Not in the lab\r\n\r\n")
            return
        with socket.create_connection((place, int(match[2])), timeout=10) as server:
            self.request.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            ends = {self.request: server, server: self.request}
            while ready := select.select(list(ends), [], [], 120)[0]:
                for end in ready:
                    try:
                        data = end.recv(65536)
                        ends[end].sendall(data)
                    except OSError:
                        return
                    if not data:
                        return


class Chromium:
    """The system's Chromium, with a home of its own."""

    def __init__(self, browser: Browser, doorway: Doorway) -> None:
        self._browser = browser
        self._doorway = doorway

    @contextmanager
    def visitor(self, name: str, *, language: str = "en-GB", certificate: Path | None = None) -> Iterator[Visitor]:
        """Lend a visitor with a session of their own, with a client certificate or without.

        A broken script or a resource that the site's own policy blocks is a failure.
        """
        shown = {"origin": SITE, "certPath": str(certificate), "keyPath": str(certificate)}
        context = self._browser.new_context(
            locale=language,
            viewport={"width": 1200, "height": 900},
            proxy={"server": self._doorway.url},
            client_certificates=[shown] if certificate else [],
        )
        try:
            guest = Visitor(context, name)
            yield guest
            assert not guest.complaints, guest.complaints
        finally:
            context.close()


@contextmanager
def chromium(home: Path) -> Iterator[Chromium]:
    """Start the browser; it trusts the lab's authorities and knows the lab's names."""
    assert shutil.which("chromium"), "The browser tests need Chromium: install the package chromium."
    store = home / ".pki/nssdb"
    store.mkdir(parents=True)
    subprocess.run(["certutil", "-N", "-d", f"sql:{store}", "--empty-password"], check=True)
    for name, file in AUTHORITIES.items():
        subprocess.run(["certutil", "-A", "-d", f"sql:{store}", "-n", name, "-t", "C,,", "-i", str(file)], check=True)
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    os.environ["NODE_EXTRA_CA_CERTS"] = str(AUTHORITIES["acme"])  # read by Playwright when it starts
    with Doorway() as doorway, sync_playwright() as playwright:
        threading.Thread(target=doorway.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            chromium_sandbox=os.geteuid() != 0,  # Chromium has no sandbox for root
            env=environment,
        )
        try:
            yield Chromium(browser, doorway)
        finally:
            browser.close()
            doorway.shutdown()


class Visitor:
    """One person at the web interface."""

    def __init__(self, context: BrowserContext, name: str) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.name = name
        self.complaints: list[str] = []
        self._steps = 0
        self.page.on("console", lambda line: self._complain(line.type, line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _complain(self, kind: str, text: str) -> None:
        # A page that is refused on purpose is an "error" of the console, too; its status is what the tests look at.
        if kind == "error" and "the server responded with a status of" not in text:
            self.complaints.append(text)

    def visit(self, path: str) -> int:
        """Open a page of the site; return its HTTP status."""
        answer = self.page.goto(f"{SITE}/{path.removeprefix(SITE).lstrip('/')}")
        self.shot()
        assert answer is not None
        return answer.status

    def press(self, button: str | Locator) -> None:
        """Press a button that leads to another page."""
        target = self.page.locator(button).first if isinstance(button, str) else button
        with self.page.expect_navigation():
            target.click()
        self.shot()

    def text(self) -> str:
        """What can be read on the page."""
        return self.page.inner_text("body")

    def notices(self) -> str:
        """What the page says in answer to what was just done."""
        return "\n".join(self.page.locator(".alert").all_inner_texts())

    def shot(self) -> None:
        """Keep a picture of the page."""
        self._steps += 1
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(
            path=SCREENSHOTS / f"{self.name}-{self._steps:02}.png", full_page=True, animations="disabled"
        )

    def sign_in(self, user: str) -> None:
        """Sign in by the organisation's single sign-on, from the page that offers it."""
        self.page.goto(f"{SITE}/accounts/login/")
        self.page.click(".socialaccount_provider")
        self.page.fill("#user", user)
        self.page.fill("#password", (STATE / "secrets/oidc/password").read_text().strip())
        self.press("#sign-in")
        self.page.wait_for_url(f"{SITE}/**")

    def subscribe(self, mailing_list: str, address: str | None = None) -> None:
        """Ask on a list's page for a subscription of an own address; without one, of the primary address."""
        self.visit(page_of(mailing_list))
        choice = {"value": address} if address else {"index": 0}
        self.page.select_option("[name=subscriber]", **choice)
        self.page.check("[name=delivery_status][value=enabled]")
        self.press("form[action$='/subscribe'] [type=submit]")


def page_of(address: str) -> str:
    """Path of a list's page in the web interface."""
    return f"/mailman3/lists/{address.replace('@', '.')}/"


def link(mail: Delivery, path: str) -> str:
    """The one link below a path of the site in a message of the web interface or the list host."""
    found = set(re.findall(rf"{re.escape(SITE)}{path}[^\s<>\"]*", mail.raw.decode()))
    assert len(found) == 1, found
    return found.pop()


@contextmanager
def claims(**users: dict) -> Iterator[None]:
    """What the provider says of these people, for the time of the block."""
    OVERRIDES.write_text(json.dumps(users))
    OVERRIDES.chmod(0o644)
    try:
        yield
    finally:
        OVERRIDES.unlink()


def web_shell(code: str) -> str:
    """Run Python in the web application on the list host; return what it prints."""
    return HOST.run("mailman-web", "shell", "-c", code, timeout=60)


def forget_accounts() -> None:
    """Begin as on a new site: no account in the web interface, nothing counted towards a limit.

    Mailman's core, which knows members by their addresses, is left as it is.
    """
    web_shell(
        "from django.contrib.auth import get_user_model as users; users().objects.all().delete();"
        "from django.core.cache import caches; [caches[name].clear() for name in ('default', 'limits')]"
    )
