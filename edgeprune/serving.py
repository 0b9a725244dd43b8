"""A small server for one folder: what a browser needs to run networks on threads, and no more than that.

Only files of the folder are given out, by GET and HEAD, on a connection of their own. Browsers grant WebAssembly
threads to a page that is isolated from other origins, which takes three headers that plain file servers do not send.
"""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import logging
import os
import re
import socket
import socketserver
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from edgeprune.errors import InputError
from edgeprune.places import Places

LOOPBACK = "127.0.0.1"
PORT = 8000
INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}
_OTHER_TYPE = "application/octet-stream"  # .onnx, .ort and .bin among them
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Accept-Ranges": "none",
    "Cache-Control": "no-cache",  # a page that was exported again must not meet parts of the old one
}
_MAX_CONNECTIONS = 32  # a browser opens six
_MAX_HEAD_BYTES = 16 * 1024
_HEAD_SECONDS = 10.0
_LEAST_BYTES_PER_SECOND = 32 * 1024  # who takes a file more slowly than this is cut off
_CHUNK = 64 * 1024
_PORTS_TO_TRY = 50
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served, and where: `url` is for this machine on loopback, else for other devices."""

    folder: str
    host: str
    port: int
    url: str
    loopback: bool


def serve(
    folder: str | Path, host: str = LOOPBACK, port: int = PORT, ready: Callable[[Serving], None] = lambda _: None
) -> None:
    """Serve `folder` until Ctrl-C; `ready` hears of the address once it is open.

    Raises:
        InputError: as `open_server`.
    """
    with open_server(folder, host, port) as server:
        try:
            ready(server.serving)
            server.serve_forever()
        except KeyboardInterrupt:
            return


def open_server(folder: str | Path, host: str = LOOPBACK, port: int = PORT) -> FolderServer:
    """A server of `folder` that listens, and answers once `serve_forever` runs; port 0 takes any that is free.

    Raises:
        InputError: no such folder, no index.html in it, or the address cannot be had.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder, got {'a file' if root.exists() else 'nothing there'}")
    if not (root / INDEX).is_file():
        raise InputError(
            f"{root}: expected a folder with {INDEX}, got none; edgeprune export --web writes such a folder"
        )
    family, address = _address(host, port)
    try:
        return FolderServer(root, host, family, address)
    except OSError as error:
        raise InputError(_refusal(error, host, port, family, address)) from error


class FolderServer(ThreadingHTTPServer):
    """One folder on one address; a thread a connection, and at most 32 of them, see `places`."""

    daemon_threads = True
    block_on_close = False  # a slow client does not hold up Ctrl-C
    request_queue_size = 64

    def __init__(self, root: Path, host: str, family: socket.AddressFamily, address: tuple[Any, ...]) -> None:
        self.address_family = family
        self.root = root.resolve()
        self.places = Places(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)
        bound = ipaddress.ip_address(self.server_name)
        self.loopback = bound.is_loopback
        shown = _reachable(family) if bound.is_unspecified else host
        name = f"[{shown}]" if ":" in shown else shown
        self.serving = Serving(str(root), host, self.server_port, f"http://{name}:{self.server_port}/", self.loopback)

    def server_bind(self) -> None:
        """As the parent's, but without asking the network for this machine's name, which can take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or a short answer that there is none left."""
        if self.places.take(request, str(client_address[0])):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread could be started
                self.places.leave(request)
                raise
            return
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As the parent's; the place is free again at its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.leave(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or whose time was up, is no news."""
        _log.info("connection from %s ended", client_address, exc_info=True)


# --- requests


class _TooLarge(Exception):
    """A request whose head is longer than any browser's."""


class _Head(io.RawIOBase):
    """What a client sends, for as long and as much as a request may take."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._end = time.monotonic() + _HEAD_SECONDS
        self._left = _MAX_HEAD_BYTES

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes; a client that sends them one by one has no more time than another."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        if self._left <= 0:
            raise _TooLarge
        self._connection.settimeout(seconds)
        n = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= n
        return n


class _Handler(BaseHTTPRequestHandler):
    """One request on one connection."""

    server: FolderServer
    protocol_version = "HTTP/1.1"
    default_request_version = protocol_version  # of a request that cannot be read, so that its answer has headers

    def setup(self) -> None:
        """Bound what a client may send before anything of it is read."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Head(self.connection), 4096)
        self.command, self.requestline, self.request_version = "", "", self.protocol_version

    def handle(self) -> None:
        """The one request; connections are not kept."""
        self.close_connection = True
        with contextlib.suppress(TimeoutError, ConnectionError):
            try:
                self.handle_one_request()
            except _TooLarge:
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def parse_request(self) -> bool:
        """Whether there is a request to answer: of HTTP/1, without a body, and meant for this server."""
        if not super().parse_request():
            return False
        self.close_connection = True
        has_version = len(self.requestline.split()) == 3  # HTTP/0.9 had none, and no headers
        if (
            not has_version
            or self.headers.get("Transfer-Encoding")
            or self.headers.get("Content-Length", "0").strip() != "0"
        ):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        if self.server.loopback and not _is_local(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return False
        return True

    def do_GET(self) -> None:
        """Send a file."""
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        """Send what GET would, without the content."""
        self._answer(with_content=False)

    def _answer(self, with_content: bool) -> None:
        path = _file_of(self.server.root, self.path)
        try:
            opened = open(path, "rb", opener=_opened) if path else None
        except OSError:  # gone since, or not for us to read
            opened = None
        if path is None or opened is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with opened as file:
            state = os.fstat(file.fileno())
            tag = f'"{state.st_mtime_ns:x}-{state.st_size:x}"'
            if self.headers.get("If-None-Match") == tag:
                self._begin(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
                return
            kind = _TYPES.get(path.suffix.lower(), _OTHER_TYPE)
            self._begin(HTTPStatus.OK, {"Content-Type": kind, "Content-Length": str(state.st_size), "ETag": tag})
            if with_content:
                self._send(file, state.st_size)

    def _send(self, file: io.BufferedReader, size: int) -> None:
        """The content, to clients that take it at a bearable pace."""
        end = time.monotonic() + _HEAD_SECONDS + size / _LEAST_BYTES_PER_SECOND
        while size and (chunk := file.read(min(_CHUNK, size))):  # never more than was announced
            self.connection.settimeout(max(end - time.monotonic(), 0.001))
            self.connection.sendall(chunk)
            self.server.places.moved(self.connection)
            size -= len(chunk)

    def _begin(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A short answer in words that repeats nothing of the request."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:  # how the parent answers a method that it does not find
            status = HTTPStatus.METHOD_NOT_ALLOWED
        content = f"{status.value} {status.phrase}\n".encode()
        if status is HTTPStatus.MISDIRECTED_REQUEST:
            content += b"This server answers to localhost only; start it with --host to reach it by another name.\n"
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(content))}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        self._begin(status, headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        """No versions for strangers."""
        return "edgeprune"

    def log_message(self, format: str, *args: Any) -> None:
        """Into the log, which is quiet unless somebody listens."""
        _log.info("%s %s", self.address_string(), format % args)


# --- paths


def _file_of(root: Path, target: str) -> Path | None:
    """The file below `root` that a request's target names, or None where it names none that may be given out.

    A folder is no file, except `/`, which is the index. Hidden files stay hidden, and links are followed only to what
    lies in the folder itself.
    """
    path = target.split("?", 1)[0].split("#", 1)[0]
    try:
        text = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return None
    if not text.startswith("/") or re.search(r"[\x00-\x1f\x7f\\]", text):
        return None
    parts = (text[1:] or INDEX).split("/")
    if not all(map(_is_open, parts)):
        return None
    try:
        found = root.joinpath(*parts).resolve(strict=True)
        below = found.relative_to(root)
        return found if found.is_file() and all(map(_is_open, below.parts)) else None
    except (OSError, RuntimeError, ValueError):  # nothing there, a ring of links, a name that is too long, or outside
        return None


def _opened(path: str, flags: int) -> int:
    """A regular file's descriptor; a pipe or a link that took its place since is not waited for, nor followed."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "no regular file", path)
    return descriptor


def _is_open(part: str) -> bool:
    """Whether a part of a path may be asked for; what starts with a dot is hidden, or leads upwards."""
    return bool(part) and not part.startswith(".")


# --- addresses


def _is_local(host: str) -> bool:
    """Whether a Host header means this machine: another name on loopback is how foreign pages would read from it."""
    name = host.rsplit(":", 1)[0] if re.search(r":\d*$", host) and not host.endswith("]") else host
    name = name.removeprefix("[").removesuffix("]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    if not 0 <= port <= 65535:
        raise InputError(f"--port: expected 0 to 65535, got {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: expected an address of this machine such as 0.0.0.0, got {error}") from error
    return found[0][0], found[0][4]


def _refusal(error: OSError, host: str, port: int, family: socket.AddressFamily, address: tuple[Any, ...]) -> str:
    """What to do about an address that cannot be had."""
    if error.errno == errno.EADDRINUSE:
        free = _free_port(family, address)
        advice = "--port 0 takes any free one" if free is None else f"{free} is free: --port {free}"
        return f"--port {port}: expected a free port of {host}, got one in use; {advice}"
    if error.errno == errno.EACCES:
        return f"--port {port}: expected a port that you may open, got no permission; take one from 1024 on"
    return f"--host {host}: expected an address of this machine such as 0.0.0.0, got {error.strerror or error}"


def _free_port(family: socket.AddressFamily, address: tuple[Any, ...]) -> int | None:
    """The next port above that is free now, or None."""
    for port in range(address[1] + 1, min(address[1] + _PORTS_TO_TRY, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind((address[0], port, *address[2:]))
            return port
    return None


def _reachable(family: socket.AddressFamily) -> str:
    """The address that other devices reach this machine by; a datagram socket knows it without sending anything."""
    outside = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"  # reserved for documentation
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((outside, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
