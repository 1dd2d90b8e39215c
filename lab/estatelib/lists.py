"""The mailing lists on ``ml``, through Mailman's REST interface, which answers on that host's loopback only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from .hosts import Host
from .places import STATE
from .waiting import wait

REST = "http://127.0.0.1:8001/3.1"
HOST = Host("ml")

# Runs on the list host; the credential comes by stdin.
_CALL = """
import base64, json, sys, urllib.error, urllib.request
asked = json.load(sys.stdin)
body = asked["body"].encode() if asked["body"] is not None else None
request = urllib.request.Request(asked["url"], body, method=asked["method"])
request.add_header("Content-Type", asked["type"])
login = base64.b64encode(("restadmin:" + asked["password"]).encode()).decode()
request.add_header("Authorization", "Basic " + login)
try:
    answer = urllib.request.urlopen(request, timeout=110)
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps({"status": answer.status, "body": answer.read().decode()}))
"""


class RestError(AssertionError):
    """Mailman refused; ``status`` is the HTTP status and the text its reason."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


def rest(method: str, path: str, fields: dict[str, Any] | None = None, data: Any = None) -> Any:
    """Call Mailman's REST interface; the answer's JSON, or None when it is empty.

    :param fields: sent as a form; a list gives several values.
    :param data: sent as JSON instead.
    :raises RestError: when the status is not 2xx.
    """
    request = {
        "url": f"{REST}/{path.lstrip('/')}",
        "method": method,
        "password": (STATE / "secrets/list-rest").read_text().strip(),
        "type": "application/json" if data is not None else "application/x-www-form-urlencoded",
        "body": json.dumps(data) if data is not None else urlencode(fields, doseq=True) if fields is not None else None,
    }
    answer = json.loads(HOST.run("python3", "-c", _CALL, stdin=json.dumps(request), timeout=120))
    if answer["status"] // 100 != 2:
        raise RestError(answer["status"], answer["body"])
    return json.loads(answer["body"]) if answer["body"] else None


@dataclass(frozen=True)
class MailingList:
    """One mailing list, by its address."""

    address: str

    @property
    def list_id(self) -> str:
        return self.address.replace("@", ".")

    @property
    def path(self) -> str:
        return f"lists/{self.list_id}"

    def config(self) -> dict[str, Any]:
        """Every setting."""
        return rest("GET", f"{self.path}/config")

    @contextmanager
    def set(self, **settings: Any) -> Iterator[None]:
        """Change settings inside the block, and put them back whatever happens there."""
        before = {name: value for name, value in self.config().items() if name in settings}
        rest("PATCH", f"{self.path}/config", settings)
        try:
            yield
        finally:
            rest("PATCH", f"{self.path}/config", before)

    def members(self, role: str = "member") -> list[str]:
        """Addresses that have a role."""
        entries = rest("GET", f"{self.path}/roster/{role}").get("entries", [])
        return sorted(entry["email"] for entry in entries)

    def member(self, address: str) -> dict[str, Any] | None:
        """What REST says of one member, None for anybody else."""
        try:
            return rest("GET", f"{self.path}/member/{quote(address)}")
        except RestError as error:
            if error.status == 404:
                return None
            raise

    def subscribe(self, address: str, role: str = "member", name: str = "") -> None:
        """Make somebody a member at once, without a word to them; nothing happens when they are."""
        fields = {"list_id": self.list_id, "subscriber": address, "role": role, "display_name": name}
        approved = dict.fromkeys(("pre_verified", "pre_confirmed", "pre_approved"), "true")
        try:
            rest("POST", "members", fields | approved | {"send_welcome_message": "false"})
        except RestError as error:
            if error.status != 409:
                raise

    def remove(self, address: str, role: str = "member") -> None:
        """End a membership; nothing happens when there is none."""
        try:
            rest("DELETE", f"{self.path}/{role}/{quote(address)}?pre_confirmed=true&pre_approved=true")
        except RestError as error:
            if error.status != 404:
                raise

    @contextmanager
    def with_members(self, *addresses: str) -> Iterator[None]:
        """Members for the time of the block."""
        for address in addresses:
            self.subscribe(address)
        try:
            yield
        finally:
            for address in addresses:
                self.remove(address)

    def held(self) -> list[dict[str, Any]]:
        """Posts that wait for a moderator."""
        return rest("GET", f"{self.path}/held").get("entries", [])

    def wait_held(self, message_id: str, timeout: float = 30) -> dict[str, Any]:
        """The post with this Message-ID as soon as it waits for a moderator."""
        wanted = message_id.strip("<>")
        return wait(
            lambda: next((post for post in self.held() if post["message_id"].strip("<>") == wanted), None),
            timeout,
            f"held post {message_id} on {self.address}",
        )

    def moderate(self, request_id: int, action: str) -> None:
        """Decide about a held post: accept, reject, discard."""
        rest("POST", f"{self.path}/held/{request_id}", {"action": action})

    def requests(self) -> list[dict[str, Any]]:
        """Subscriptions that wait for a confirmation or for a moderator."""
        return rest("GET", f"{self.path}/requests").get("entries", [])


def queues() -> dict[str, int]:
    """How many messages each of Mailman's queues holds."""
    return {entry["name"]: entry["count"] for entry in rest("GET", "queues")["entries"]}
