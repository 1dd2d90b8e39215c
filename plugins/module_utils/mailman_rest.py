"""Mailman's REST interface (version 3.1) as our modules use it: JSON over HTTP on loopback, with plain-word errors.

Source of the interface: Mailman's own documentation, ``src/mailman/rest/docs``.  Each request has a connection of its
own, because Mailman's server closes it after every answer (on loopback a new one takes 0.1 ms).
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

TIMEOUT = 60
#: Mailman answers with two processes, so more than a few questions at a time only wait.
THREADS = 3
#: The arguments by which every module of ours finds Mailman.
REST_ARGUMENTS: dict[str, dict[str, Any]] = {
    "url": {"type": "str", "default": "http://127.0.0.1:8001"},
    "user": {"type": "str", "default": "restadmin"},
    "password": {"type": "str", "required": True, "no_log": True},
}
In = TypeVar("In")
Out = TypeVar("Out")


class RestError(Exception):
    """Mailman could not be asked (``status`` is 0 then), or refused; the message says what and why."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """One Mailman.

    :param url: base of the interface without version, such as ``http://127.0.0.1:8001``.
    :param timeout: seconds to wait for an answer.
    """

    def __init__(self, url: str, user: str, password: str, timeout: float = TIMEOUT) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise RestError(f"the address of Mailman's REST interface must be http://host:port, not {url}")
        self.where = url
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout = timeout
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {credentials}", "Accept": "application/json"}

    def wait(self, seconds: float) -> None:
        """Come back when Mailman answers; it does so some ten seconds after its start.

        :raises RestError: when it does not within ``seconds``.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                self.get("system", "versions")
                return
            except RestError as error:
                if error.status or time.monotonic() > end:
                    raise
            time.sleep(0.3)

    def get(self, *path: str, **query: Any) -> Any:
        """The resource at ``path``; None when there is none (404)."""
        status, content = self._request("GET", path, query=query)
        if status == 404:
            return None
        return self._checked("GET", path, status, content)

    def entries(self, *path: str, **query: Any) -> list[dict[str, Any]]:
        """All entries of a collection."""
        return (self.get(*path, **query) or {}).get("entries", [])

    def find(self, *path: str, **form: Any) -> list[dict[str, Any]]:
        """All entries that a search finds; Mailman says 404 when it finds none."""
        status, content = self._request("POST", path, form=form)
        if status == 404:
            return []
        return self._checked("POST", path, status, content).get("entries", [])

    def send(self, method: str, *path: str, data: Any = None, missing_is_good: bool = False) -> Any:
        """Change something: POST, PUT, PATCH or DELETE with a JSON body; the answer's content, if any."""
        status, content = self._request(method, path, data=data)
        if status == 404 and missing_is_good:
            return None
        return self._checked(method, path, status, content)

    def each(self, work: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
        """``work`` of every item, a few at a time, in the order of the items."""
        given: Sequence[In] = list(items)
        with ThreadPoolExecutor(max_workers=THREADS) as pool:
            return list(pool.map(work, given))

    def _checked(self, method: str, path: tuple[str, ...], status: int, content: bytes) -> Any:
        text = content.decode("utf-8", "replace")
        try:
            answer = json.loads(text) if text.strip() else {}
        except ValueError:
            answer = {}
        if 200 <= status < 300:
            return answer
        if status == 401:
            raise RestError(f"Mailman at {self.where} refuses the user and password of its REST interface", status)
        reason = answer.get("description") or answer.get("title") if isinstance(answer, dict) else None
        if status >= 500:
            reason = f"an error inside Mailman, see mailman.log on the list host ({reason or text[:200]})"
        raise RestError(str(reason or f"HTTP {status}"), status)

    def _request(
        self, method: str, path: tuple[str, ...], query: Any = None, form: Any = None, data: Any = None
    ) -> tuple[int, bytes]:
        target = "/3.1/" + "/".join(quote(part, safe="@") for part in path)
        if query:
            target += "?" + urlencode(query, doseq=True)
        headers, body = dict(self._headers), None
        if form is not None:
            body = urlencode(form, doseq=True).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif data is not None:
            body = json.dumps(data).encode()
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except TimeoutError as error:
            raise RestError(f"Mailman at {self.where} did not answer {target} in {self._timeout:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise RestError(
                f"Mailman at {self.where} does not answer {target}: {what}; is mailman3 running?"
            ) from error
        finally:
            connection.close()
