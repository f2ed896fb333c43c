"""Read a multipart/form-data body that is already in memory."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import BatchTooLarge, RequestInvalid

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


@dataclass(slots=True)
class Part:
    """A field of a form. `content_type` is None where the client declared none."""

    name: str = ""
    filename: str | None = None
    content_type: str | None = None
    data: bytes = b""


def is_multipart(content_type: str | None) -> bool:
    return (content_type or "").partition(";")[0].strip().lower() == "multipart/form-data"


def parse(body: bytes, content_type: str, *, max_parts: int) -> list[Part]:
    """Return the parts in order.

    Raises:
        RequestInvalid: If it is not whole and well formed.
        BatchTooLarge: If there are more parts than allowed.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise RequestInvalid("the multipart content type names no boundary")
    collector = _Collector(max_parts)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestInvalid(f"the multipart body is malformed: {error}") from error
    if not collector.complete:
        raise RequestInvalid("the multipart body ends before its last boundary")
    return collector.parts


@dataclass(slots=True)
class _Collector:
    max_parts: int
    parts: list[Part] = field(default_factory=list)
    complete: bool = False
    _header: bytes = b""
    _value: bytes = b""
    _chunks: list[bytes] = field(default_factory=list)

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) == self.max_parts:
            raise BatchTooLarge("form fields", self.max_parts)
        self.parts.append(Part())

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        part, name = self.parts[-1], self._header.lower()
        if name == b"content-disposition":
            options = parse_options_header(self._value)[1]
            part.name = options.get(b"name", b"").decode("utf-8", "replace")
            filename = options.get(b"filename")
            part.filename = None if filename is None else filename.decode("utf-8", "replace")
        elif name == b"content-type":
            part.content_type = self._value.decode("latin-1")
        self._header = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _end(self) -> None:
        self.parts[-1].data = b"".join(self._chunks)
        self._chunks.clear()

    def _finish(self) -> None:
        self.complete = True
