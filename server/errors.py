"""Errors of the server itself. `server/answers.py` maps these and the lower packages' to HTTP.

ServerError
├── QueueFull             too many jobs wait; come back later
├── RateLimited           a key or task has had its images of this second
├── ConcurrencyLimited    a key or task has enough images under way
├── DeadlineExceeded      the deadline passed before the answer
├── NotConfirmed          a change stands, but not every replica has confirmed it in time
├── Draining              the replica is shutting down
├── NotReady              the replica is still starting
├── AdapterUnavailable    the adapter of a known version cannot be loaded now
│   └── AdapterMisfit     it never will be: it was made for another backbone or input than this server runs
├── PinLimit              no more adapters may be pinned
├── EngineBroken          the engine can no longer answer
├── OutputInvalid         an adapter gave logits that are not finite
├── ComputeFailed         the forward of one job failed, alone as well
├── SettingsInvalid       the settings cannot be used; `str` names the setting and the reason
├── ImageInvalid          the bytes are not an image we can decode
├── ImageTooLarge         too many pixels or frames
├── ImageTypeUnsupported  an image type we do not take
├── BodyTooLarge          the request's body is too large
├── BodyTooSlow           the request's body did not arrive in time
├── BatchTooLarge         too many images or tasks in one request
├── RequestInvalid        the request is malformed
├── ValueInvalid          the request is well formed, but a value in it is out of range
├── Unauthorized          no key, or a wrong one
├── ForeignPage           no keys, and a web page of another site asks through someone's browser
└── Forbidden             the key does not allow this
"""


class ServerError(Exception):
    """Base of every error this package raises on purpose. `args` are the fields: errors travel by pickle."""


class QueueFull(ServerError):
    def __init__(self, limit: int, retry_after_seconds: float) -> None:
        super().__init__(limit, retry_after_seconds)
        self.limit, self.retry_after_seconds = limit, retry_after_seconds

    def __str__(self) -> str:
        return f"{self.limit} requests wait already; retry in {self.retry_after_seconds:.0f} s"


class RateLimited(ServerError):
    def __init__(self, kind: str, name: str, images_per_second: float, retry_after_seconds: float) -> None:
        super().__init__(kind, name, images_per_second, retry_after_seconds)
        self.kind, self.name = kind, name
        self.images_per_second, self.retry_after_seconds = images_per_second, retry_after_seconds

    def __str__(self) -> str:
        return (
            f"{self.kind} `{self.name}` may have {self.images_per_second:g} images answered per second; "
            f"retry in {self.retry_after_seconds:.1f} s"
        )


class ConcurrencyLimited(ServerError):
    def __init__(self, kind: str, name: str, limit: int) -> None:
        super().__init__(kind, name, limit)
        self.kind, self.name, self.limit = kind, name, limit

    def __str__(self) -> str:
        return f"{self.kind} `{self.name}` may have {self.limit} images under way at a time"


class DeadlineExceeded(ServerError):
    def __str__(self) -> str:
        return "the deadline passed before the answer was ready"


class NotConfirmed(ServerError):
    def __init__(self, replicas: tuple[str, ...]) -> None:
        super().__init__(replicas)
        self.replicas = replicas

    def __str__(self) -> str:
        who = ", ".join(self.replicas) or "the registry was away"
        return f"the change stands, but was not confirmed in time: {who}"


class Draining(ServerError):
    def __str__(self) -> str:
        return "the server is shutting down"


class NotReady(ServerError):
    def __str__(self) -> str:
        return "the server is starting"


class AdapterUnavailable(ServerError):
    def __init__(self, task: str, version: int, detail: str) -> None:
        super().__init__(task, version, detail)
        self.task, self.version, self.detail = task, version, detail

    def __str__(self) -> str:
        return f"version {self.version} of task `{self.task}` cannot be loaded: {self.detail}"


class AdapterMisfit(AdapterUnavailable):
    def __str__(self) -> str:
        return f"version {self.version} of task `{self.task}`: {self.detail}"


class PinLimit(ServerError):
    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.limit} adapters are pinned already; unpin one first"


class EngineBroken(ServerError):
    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"the engine cannot answer: {self.detail}"


class OutputInvalid(ServerError):
    def __init__(self, task: str, version: int) -> None:
        super().__init__(task, version)
        self.task, self.version = task, version

    def __str__(self) -> str:
        return f"version {self.version} of task `{self.task}` gave logits that are not finite"


class ComputeFailed(ServerError):
    def __init__(self, task: str, version: int) -> None:
        super().__init__(task, version)
        self.task, self.version = task, version

    def __str__(self) -> str:
        return f"the forward failed for version {self.version} of task `{self.task}`"


class SettingsInvalid(ServerError):
    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class ImageInvalid(ServerError):
    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"not an image that can be decoded: {self.detail}"


class ImageTooLarge(ServerError):
    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"the image is too large: {self.detail}"


class ImageTypeUnsupported(ServerError):
    def __init__(self, got: str) -> None:
        super().__init__(got)
        self.got = got

    def __str__(self) -> str:
        return f"{self.got[:80]} is not an image type this server takes (JPEG, PNG, WebP, BMP, GIF, TIFF)"


class BodyTooLarge(ServerError):
    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"the request's body is larger than {self.limit} bytes"


class BodyTooSlow(ServerError):
    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"the request's body did not arrive within {self.seconds:g} s"


class BatchTooLarge(ServerError):
    def __init__(self, what: str, limit: int) -> None:
        super().__init__(what, limit)
        self.what, self.limit = what, limit

    def __str__(self) -> str:
        return f"more than {self.limit} {self.what} in one request"


class RequestInvalid(ServerError):
    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class ValueInvalid(ServerError):
    def __init__(self, where: str, detail: str) -> None:
        super().__init__(where, detail)
        self.where, self.detail = where, detail

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


class Unauthorized(ServerError):
    def __str__(self) -> str:
        return "an API key is needed: Authorization: Bearer <key>"


class ForeignPage(ServerError):
    def __init__(self, named: str) -> None:
        super().__init__(named)
        self.named = named

    def __str__(self) -> str:
        return (
            f"without keys only this machine's own names are answered, not {self.named[:80]!r}; make a key, "
            "or set SSFSERVE_ALLOW_UNAUTHENTICATED"
        )


class Forbidden(ServerError):
    def __init__(self, needed: str) -> None:
        super().__init__(needed)
        self.needed = needed

    def __str__(self) -> str:
        return f"the key does not allow this: {self.needed}"
