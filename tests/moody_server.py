"""A server of one file: with ranges, without, breaking off, lying."""

import base64
import contextlib
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import crc32c

CONTENT = bytes(range(256)) * 4000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        start = 0
        same = self.headers.get("If-Range") in (None, server.tag)
        if server.knows_ranges and same and (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")):
            start = int(match[1])
        if self.path == "/missing.tgz":
            return self.send_error(404)
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if server.tag:
            self.send_header("ETag", server.tag)
        for value in server.hashes:
            self.send_header("x-goog-hash", value)
        self.end_headers()
        end = len(CONTENT)
        if server.breaks_off:
            end, server.breaks_off = start + 300_000, False
        self.wfile.write(server.content[start:end])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving():
    """The server, at ``url``; its attributes say how it behaves."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # its end does not wait for an answer that nobody reads
    server.knows_ranges, server.breaks_off, server.ranges, server.content = True, False, [], CONTENT
    server.tag = None
    server.hashes = [
        f"crc32c={base64.b64encode(crc32c.crc32c(CONTENT).to_bytes(4, 'big')).decode()}",
        f"md5={base64.b64encode(hashlib.md5(CONTENT).digest()).decode()}",
    ]
    server.url = f"http://127.0.0.1:{server.server_port}/v3.tgz"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
