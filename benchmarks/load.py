"""A closed-loop HTTP client that costs little of the machine it shares with the server it loads."""

import asyncio
import time
from dataclasses import dataclass, field


@dataclass
class Load:
    """What one run of a closed loop saw. Latencies in seconds, of the answers with status 200."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds


def post(host: str, port: int, path: str, body: bytes, content_type: str) -> bytes:
    """Return a whole HTTP/1.1 request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def closed_loop(
    host: str, port: int, requests: list[bytes], *, connections: int, seconds: float
) -> Load:
    """Keep `connections` requests in flight for some seconds; each connection goes round the requests."""
    load, start = Load(), time.perf_counter()
    until = start + seconds
    clients = [_client(host, port, requests[i:] + requests[:i], until, load) for i in range(connections)]
    await asyncio.gather(*clients)
    load.seconds = time.perf_counter() - start
    return load


async def _client(host: str, port: int, requests: list[bytes], until: float, load: Load) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    index = 0
    while (now := time.perf_counter()) < until:
        writer.write(requests[index % len(requests)])
        status = await _read_answer(reader)
        load.statuses[status] = load.statuses.get(status, 0) + 1
        if status == 200:
            load.latencies.append(time.perf_counter() - now)
        index += 1
    writer.close()


async def _read_answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    await reader.readexactly(length)
    return int(head[9:12])
