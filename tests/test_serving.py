"""The server of a folder, over real sockets."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeprune import places, serving
from edgeprune.errors import InputError
from edgeprune.places import Places
from edgeprune.serving import FolderServer, open_server

CONTENT = bytes(range(256)) * 400
SECRET = b"not for others"
COMMAND = "import typer; from edgeprune.cli.serve import serve; app = typer.Typer(); app.command()(serve); app()"


@dataclass(frozen=True)
class Answer:
    """A response as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


def answer_of(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), {name.lower(): value for name, value in headers.items()}, body)


def connected(server: FolderServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=10)


def rest_of(connection: socket.socket) -> bytes:
    raw = b""
    while part := connection.recv(1 << 16):
        raw += part
    return raw


def exchanged(server: FolderServer, request: bytes) -> bytes:
    with connected(server) as connection:
        connection.sendall(request)
        return rest_of(connection)


def ask(server: FolderServer, target: str, method: str = "GET", **headers: str) -> Answer:
    given = {"Host": "localhost", **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return answer_of(exchanged(server, "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page, its files, and what lies around and between them that is nobody's business."""
    folder = tmp_path / "web"
    (folder / "probes").mkdir(parents=True)
    (folder / ".git").mkdir()
    (tmp_path / "secret.txt").write_bytes(SECRET)
    for name in (
        "page.js",
        "ort.mjs",
        "ort.wasm",
        "slim.onnx",
        "manifest.json",
        "page.css",
        "probes/0000.onnx",
        "a b.bin",
    ):
        (folder / name).write_bytes(CONTENT)
    (folder / "index.html").write_text("<!doctype html><p>hello")
    for hidden in (".hidden", ".git/config", "probes/.key"):
        (folder / hidden).write_bytes(SECRET)
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "seen.txt").symlink_to(".hidden")
    (folder / "same.onnx").symlink_to("slim.onnx")
    (folder / "ring").symlink_to("ring")
    (folder / "unreadable.bin").write_bytes(SECRET)
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FolderServer]:
    yield from running(folder)


def running(folder: Path) -> Iterator[FolderServer]:
    with open_server(folder, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# --- what it gives


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/ort.mjs", "text/javascript; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/ort.wasm", "application/wasm"),
        ("/manifest.json", "application/json"),
        ("/slim.onnx", "application/octet-stream"),
        ("/probes/0000.onnx", "application/octet-stream"),
        ("/a%20b.bin", "application/octet-stream"),
        ("/same.onnx", "application/octet-stream"),
    ],
)
def test_a_file_comes_whole_with_its_type_and_the_headers_that_threads_need(
    server: FolderServer, target: str, kind: str
) -> None:
    got = ask(server, target)
    assert (got.status, got.body) == (200, CONTENT)
    assert got.headers["content-type"] == kind
    assert got.headers["content-length"] == str(len(CONTENT))
    assert got.headers["cross-origin-opener-policy"] == "same-origin"
    assert got.headers["cross-origin-embedder-policy"] == "require-corp"
    assert got.headers["cross-origin-resource-policy"] == "same-origin"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["server"] == "edgeprune"


def test_the_root_is_the_index(server: FolderServer) -> None:
    assert ask(server, "/").body == b"<!doctype html><p>hello"
    assert ask(server, "/").headers["content-type"] == "text/html; charset=utf-8"


def test_a_query_changes_nothing(server: FolderServer) -> None:
    assert ask(server, "/slim.onnx?file=../secret.txt").body == CONTENT
    assert ask(server, "/?/../secret.txt").body.startswith(b"<!doctype")


def test_head_gives_the_headers_alone(server: FolderServer) -> None:
    got = ask(server, "/slim.onnx", "HEAD")
    assert (got.status, got.body) == (200, b"")
    assert got.headers["content-length"] == str(len(CONTENT))
    missing = ask(server, "/missing", "HEAD")
    assert (missing.status, missing.body) == (404, b"")


def test_a_file_that_the_browser_has_is_not_sent_again_until_it_changes(server: FolderServer, folder: Path) -> None:
    tag = ask(server, "/slim.onnx").headers["etag"]
    again = ask(server, "/slim.onnx", If_None_Match=tag)
    assert (again.status, again.body) == (304, b"")
    (folder / "slim.onnx").write_bytes(b"another")
    assert ask(server, "/slim.onnx", If_None_Match=tag).body == b"another"


# --- what it does not give


@pytest.mark.parametrize(
    "target",
    [
        "/../secret.txt",
        "/probes/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/%252e%252e/secret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/./slim.onnx",
        "/up/secret.txt",
        "/up/web/slim.onnx/../../secret.txt",
        "/out.txt",
        "/.hidden",
        "/%2ehidden",
        "/seen.txt",
        "/.git/config",
        "/probes/.key",
        "//secret.txt",
        "/probes//0000.onnx",
        "/probes",
        "/probes/",
        "/slim.onnx/",
        "/slim.onnx%00.html",
        "/slim.onnx%0d%0aX-Evil:1",
        "/%ff",
        "/missing",
        "/ring",
        "/pipe",
        "/" + "a" * 5000,
        "/" + "a/" * 2000,
        "slim.onnx",
        "*",
        "http://localhost/slim.onnx",
        "file:///etc/passwd",
        "/C:/Windows/win.ini",
    ],
)
def test_nothing_else_of_the_machine_comes_out(server: FolderServer, target: str) -> None:
    got = ask(server, target)
    assert (got.status, got.body) == (404, b"404 Not Found\n")
    assert "x-evil" not in got.headers


def test_an_absolute_path_is_taken_below_the_folder(server: FolderServer, folder: Path) -> None:
    assert ask(server, str(folder.parent / "secret.txt")).status == 404
    assert ask(server, "/%2Fetc%2Fpasswd").status == 404


def test_a_file_that_cannot_be_read_is_not_there(server: FolderServer, folder: Path) -> None:
    (folder / "unreadable.bin").chmod(0)
    if os.access(folder / "unreadable.bin", os.R_OK):
        pytest.skip("this user reads everything")
    assert ask(server, "/unreadable.bin").status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
def test_other_methods_are_refused(server: FolderServer, method: str) -> None:
    got = ask(server, "/slim.onnx", method)
    assert got.status == 405
    assert got.headers["allow"] == "GET, HEAD"
    assert got.headers["cross-origin-resource-policy"] == "same-origin"


def test_an_error_repeats_nothing_of_the_request(server: FolderServer) -> None:
    raw = exchanged(server, b"GET /<script> EVIL/9.9\r\n\r\n")
    assert answer_of(raw).status == 400
    assert b"script" not in raw and b"EVIL" not in raw
    assert answer_of(raw).headers["content-type"] == "text/plain; charset=utf-8"


def test_a_request_of_the_time_before_headers_is_refused(server: FolderServer) -> None:
    assert answer_of(exchanged(server, b"GET /slim.onnx\r\n\r\n")).status == 400


@pytest.mark.parametrize("header", [{"Content_Length": "5"}, {"Transfer_Encoding": "chunked"}, {"Content_Length": "x"}])
def test_a_body_is_refused(server: FolderServer, header: dict[str, str]) -> None:
    assert ask(server, "/slim.onnx", **header).status == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("192.168.1.5", 421),
        ("", 421),
    ],
)
def test_on_loopback_a_foreign_name_is_refused(server: FolderServer, host: str, status: int) -> None:
    """A foreign page could else give its own name this machine's address, and read from here as its own."""
    assert ask(server, "/slim.onnx", Host=host).status == status


# --- clients that want too much


def test_a_long_head_is_refused(server: FolderServer) -> None:
    assert ask(server, "/slim.onnx", X="a" * 20_000).status == 431
    assert ask(server, "/" + "a" * 20_000).status == 431


def test_a_slow_client_is_cut_off(server: FolderServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_HEAD_SECONDS", 0.4)
    with connected(server) as connection:
        started = time.monotonic()
        gone = False
        for byte in b"GET /slim.onnx HTTP/1.1\r\nHost: localhost\r\nX: aaaaaaaaaaaaaaaaaa":
            try:
                connection.sendall(bytes([byte]))
            except ConnectionError:
                gone = True
                break
            if select.select([connection], [], [], 0.05)[0]:
                gone = connection.recv(100) == b""
                break
        assert gone
        assert time.monotonic() - started < 2.0


def test_a_client_that_does_not_read_is_cut_off(
    server: FolderServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "large.bin").write_bytes(bytes(32 << 20))
    monkeypatch.setattr(serving, "_HEAD_SECONDS", 0.3)
    monkeypatch.setattr(serving, "_LEAST_BYTES_PER_SECOND", 1 << 30)
    with connected(server) as connection:
        connection.sendall(b"GET /large.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.8)
        try:
            n_received = len(rest_of(connection))
        except ConnectionError:
            n_received = 0
    assert n_received < 32 << 20


def test_no_more_connections_than_there_are_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_MAX_CONNECTIONS", 2)
    monkeypatch.setattr(places, "_STALLED_SECONDS", 60.0)
    for server in running(folder):
        waiting = [connected(server) for _ in range(2)]
        deadline = time.monotonic() + 5
        while len(server.places) < 2 and time.monotonic() < deadline:  # until both are being served
            time.sleep(0.01)
        assert exchanged(server, b"").startswith(b"HTTP/1.1 503 ")
        for connection in waiting:
            connection.close()
        while len(server.places) == 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ask(server, "/slim.onnx").status == 200


def test_clients_that_do_not_read_make_room_for_one_that_does(
    server: FolderServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_STALLED_SECONDS", 0.2)
    (folder / "large.bin").write_bytes(bytes(32 << 20))
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(32)]
        for connection in slow:
            connection.sendall(b"GET /large.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 20
        while len(server.places) < 32 and time.monotonic() < deadline:
            time.sleep(0.01)
        while ask(server, "/slim.onnx").status != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [ask(server, "/slim.onnx").body for _ in range(6)] == [CONTENT] * 6


def test_places_go_to_who_takes_something() -> None:
    now = 0.0
    taken = Places(12, lambda: now)
    pairs = [socket.socketpair() for _ in range(16)]
    ours = [one for one, _ in pairs]
    assert all(taken.take(one, "greedy") for one in ours[:11]) and taken.take(ours[11], "other")
    now = 0.5
    for one in (*ours[1:11], ours[11]):
        taken.moved(one)
    assert taken.take(ours[12], "other")  # nobody is slow, but one holds more than its share
    assert pairs[0][1].recv(1) == b""  # of its places the one that moved last
    assert not taken.take(ours[13], "greedy")
    now = 1.6
    for one in (*ours[2:11], ours[11], ours[12]):
        taken.moved(one)
    assert taken.take(ours[13], "greedy") and pairs[1][1].recv(1) == b""
    taken.leave(ours[13])
    assert len(taken) == 11 and taken.take(ours[14], "third")
    for pair in pairs:
        for one in pair:
            one.close()


# --- places and addresses


def test_a_folder_without_a_page_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder with index.html, got none; edgeprune export --web writes"):
        open_server(tmp_path)
    with pytest.raises(InputError, match="expected a folder, got nothing there"):
        open_server(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected a folder, got a file"):
        open_server(tmp_path / "file")


def test_a_port_in_use_names_a_free_one(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: .* got one in use; (\d+) is free: --port \1") as error:
            open_server(folder, port=port)
    [free] = re.findall(r"(\d+) is free", str(error.value))
    with open_server(folder, port=int(free)) as server:
        assert server.serving.url == f"http://127.0.0.1:{free}/"


@pytest.mark.parametrize(
    ("host", "port", "told"),
    [
        ("no such host", 0, "--host no such host: expected an address of this machine"),
        ("192.0.2.7", 0, "--host 192.0.2.7: expected an address of this machine"),
        ("127.0.0.1", 70000, "--port: expected 0 to 65535, got 70000"),
        ("127.0.0.1", -1, "--port: expected 0 to 65535, got -1"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(folder: Path, host: str, port: int, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        open_server(folder, host, port)


def test_for_other_devices_the_address_is_one_that_they_reach(folder: Path) -> None:
    with open_server(folder, "0.0.0.0", 0) as server:
        assert not server.serving.loopback
        assert re.fullmatch(rf"http://[^/]+:{server.server_port}/", server.serving.url)
        assert "0.0.0.0" not in server.serving.url


def test_for_other_devices_any_name_will_do(folder: Path) -> None:
    with open_server(folder, "0.0.0.0", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert ask(server, "/slim.onnx", Host="box.local").status == 200
        server.shutdown()
        thread.join()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_loopback(folder: Path) -> None:
    try:
        server = open_server(folder, "::1", 0)
    except InputError:
        pytest.skip("this machine has no IPv6 loopback")
    with server:
        assert server.serving.url == f"http://[::1]:{server.server_port}/"
        assert server.serving.loopback


# --- the command


@contextlib.contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which is gone afterwards."""
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_the_command_cleanly(folder: Path) -> None:
    with started(str(folder), "--port", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        [port] = re.findall(r"^http://127\.0\.0\.1:(\d+)/$", process.stdout.readline())
        assert "Ctrl-C ends it" in process.stdout.readline()
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5):  # a client that waits does not hold it up
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing"], "missing: expected a folder, got nothing there"),
        (["."], "expected a folder with index.html"),
        ([".", "--port", "70000"], "expected 0 to 65535, got 70000"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    with started(*arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert told in " ".join(errors.replace("│", " ").split())
    assert "Traceback" not in errors


def in_terminal(folder: Path, host: str, until: Callable[[str], bool]) -> str:
    """What the command draws on a terminal; it is ended with Ctrl-C."""
    ours, theirs = pty.openpty()
    said = b""
    deadline = time.monotonic() + 60
    with started(str(folder), "--host", host, "--port", "0", stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        while not until(said.decode(errors="ignore")) and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                said += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    os.close(ours)
    return said.decode(errors="ignore")


def test_a_qr_code_is_drawn_for_other_devices_only(folder: Path) -> None:
    def complete(said: str) -> bool:
        return "Ctrl-C ends it" in said

    assert "█▀" in in_terminal(folder, "0.0.0.0", complete)
    assert "█" not in in_terminal(folder, "127.0.0.1", complete)
