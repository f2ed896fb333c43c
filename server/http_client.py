"""A small synchronous client of the HTTP API, for the command line and for scripts. Loads no torch.

ClientError
├── ServerUnreachable   no answer came
└── ServerRefused       the server answered with an error
"""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from server.image_types import sniff

PAGE = 1000

Json = dict[str, Any]  # an answer of the API, as `/docs` describes it


class ClientError(Exception):
    """Base of every error this module raises on purpose. `args` are the fields: errors travel by pickle."""


class ServerUnreachable(ClientError):
    def __init__(self, url: str, detail: str) -> None:
        super().__init__(url, detail)
        self.url, self.detail = url, detail

    def __str__(self) -> str:
        return (
            f"no answer from {self.url} ({self.detail}); start one with `ssfserve serve`, or name "
            "another with --url or SSFSERVE_URL"
        )


class ServerRefused(ClientError):
    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(status, error_type, message)
        self.status, self.error_type, self.message = status, error_type, message

    def __str__(self) -> str:
        hint = "; give a key with --key or SSFSERVE_KEY" if self.status == 401 else ""
        return f"{self.message} ({self.status} {self.error_type}){hint}"


class Client:
    """Speaks to one server. Safe for use from several threads.

    Every method raises ServerUnreachable if no answer comes within `timeout_seconds`, and ServerRefused if
    the answer is an error.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_seconds: float = 60) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def predict(
        self,
        task: str,
        image: bytes,
        *,
        top_k: int | None = None,
        version: int | None = None,
        alias: str | None = None,
    ) -> Json:
        """Classify one encoded image."""
        kind = sniff(image)
        return self._json(
            "POST",
            f"/v1/tasks/{_part(task)}/predict",
            params={"top_k": top_k, "version": version, "alias": alias},
            content=image,
            headers={"Content-Type": "application/octet-stream" if kind is None else kind.value},
        )

    def push(self, task: str, adapter: bytes, *, promote: bool = False) -> Json:
        """Upload an adapter file as the task's next version."""
        return self._json(
            "POST",
            f"/v1/tasks/{_part(task)}/versions",
            params={"promote": promote or None},
            content=adapter,
            headers={"Content-Type": "application/octet-stream"},
        )

    def tasks(self) -> Iterator[Json]:
        """Yield every task in name order, a page at a time."""
        for page in self._pages("/v1/tasks"):
            yield from page["tasks"]

    def task(self, task: str) -> Json:
        """Return one task with its aliases, its labels and all its versions."""
        pages = list(self._pages(f"/v1/tasks/{_part(task)}"))
        versions = [version for page in pages for version in page["versions"]]
        return {**pages[0], "versions": versions, "next_after": None}

    def promote(
        self, task: str, version: int, alias: str, *, expected: int | None = None, wait: bool = False
    ) -> Json:
        """Point an alias at a version; with `expected`, only if it names that version now.

        With `wait`, return only when no replica will answer a later request with the old version.
        """
        body = {"version": version} if expected is None else {"version": version, "expected": expected}
        path = f"/v1/tasks/{_part(task)}/aliases/{_part(alias)}"
        return self._json("PUT", path, params={"wait": wait or None}, json=body)

    def rollback(self, task: str, alias: str, *, wait: bool = False) -> Json:
        """Point an alias at what it named before; `wait` as in `promote`."""
        path = f"/v1/tasks/{_part(task)}/aliases/{_part(alias)}/rollback"
        return self._json("POST", path, params={"wait": wait or None})

    def delete(self, task: str, version: int | None = None) -> None:
        """Delete a version, or the whole task."""
        path = f"/v1/tasks/{_part(task)}"
        self._send("DELETE", path if version is None else f"{path}/versions/{version}")

    def audit(self, *, task: str | None = None, limit: int) -> Iterator[Json]:
        """Yield the latest changes, latest first."""
        after: int | None = None
        while limit > 0:
            query = {"task": task, "after": after, "limit": min(limit, PAGE)}
            page = self._json("GET", "/v1/audit", params=query)
            yield from page["entries"][:limit]
            limit -= len(page["entries"])
            after = page["next_after"]
            if after is None:
                return

    def _pages(self, path: str) -> Iterator[Json]:
        after: str | int | None = None
        while True:
            page = self._json("GET", path, params={"after": after, "limit": PAGE})
            yield page
            after = page["next_after"]
            if after is None:
                return

    def _json(self, method: str, path: str, **request: Any) -> Json:
        response = self._send(method, path, **request)
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ServerUnreachable(self._url, "what answers is not ssfserve")
        return body

    def _send(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, **request: Any
    ) -> httpx.Response:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            response = self._http.request(method, path, params=given, **request)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ServerUnreachable(self._url, str(error) or type(error).__name__) from error
        if not response.is_success:
            raise _refusal(response)
        return response


def _part(name: str) -> str:
    return quote(name, safe="")


def _refusal(response: httpx.Response) -> ServerRefused:
    try:
        body = response.json()
        return ServerRefused(response.status_code, str(body["error_type"]), str(body["error"]))
    except (ValueError, KeyError, TypeError):
        return ServerRefused(response.status_code, response.reason_phrase, "the server refused")
