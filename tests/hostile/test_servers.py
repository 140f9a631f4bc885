"""Servers that pack, send on, and name files without end."""

import gzip
import http.server
import threading
import tracemalloc

import pytest

from porter.errors import CheckpointError
from porter.sources import open_checkpoint, protos
from porter.sources.redirects import check_redirect, is_public
from porter.sources.sstable_writer import table_bytes


@pytest.fixture
def serve():
    """Answer every path by a function: path -> (status, headers, body); the paths asked for are kept."""
    servers = []

    def serve(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                status, headers, body = answer(self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        asked = []
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", asked

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_answer_that_unpacks_to_gigabytes(serve):
    packed = gzip.compress(bytes(256 << 20), 1)
    place, _ = serve(lambda path: (200, {"Content-Encoding": "gzip"}, packed))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="is sent packed"):
        open_checkpoint(f"{place}/a.pb")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_an_index_of_many_shards(serve):
    header = protos.BundleHeaderProto(num_shards=99_999)
    header.version.producer = 1
    index = table_bytes([(b"", header.SerializeToString())])
    place, asked = serve(lambda path: (200, {}, index) if path.endswith(".index") else (404, {}, b""))
    with pytest.raises(CheckpointError, match="model-1: takes more than 1,000 requests"):
        open_checkpoint(f"{place}/model-1")
    assert len(asked) < 10


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a", "file:///etc/passwd"])
def test_redirects_to_other_schemes(serve, target):
    place, _ = serve(lambda path: (302, {"Location": target}, b""))
    with pytest.raises(CheckpointError, match=r"leads to|cannot be read"):
        open_checkpoint(f"{place}/a.pb")


def test_the_probe_for_ranges_follows_no_redirect_to_other_schemes(serve):
    import fsspec

    from porter.sources.remote import _has_ranges, web_options

    place, _ = serve(lambda path: (302, {"Location": "ftp://127.0.0.1/a"}, b""))
    system = fsspec.filesystem("http", **web_options())
    with pytest.raises(CheckpointError, match="leads to ftp"):
        _has_ranges(system, f"{place}/a")


def test_redirects_on_one_machine_are_followed(serve, demo_folder):
    index = next(demo_folder.rglob("*.index"))
    data = {f"/{path.name}": path.read_bytes() for path in index.parent.iterdir() if path.is_file()}
    inner, _ = serve(lambda path: (200, {}, data[path]) if path in data else (404, {}, b""))
    outer, asked = serve(lambda path: (302, {"Location": f"{inner}{path}"}, b""))
    assert len(open_checkpoint(f"{outer}/{index.stem}")) > 200
    assert asked


ADDRESSES = {
    "public.example": ["93.184.216.34"],
    "v6.example": ["2606:2800:220:1:248:1893:25c8:1946"],
    "rebound.example": ["93.184.216.34", "127.0.0.1"],
    "unknown.example": [],
}


def resolve(host):
    return ADDRESSES.get(host, [host])


@pytest.mark.parametrize(
    "target",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
        *("[::1]", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "[::ffff:169.254.169.254]", "224.0.0.1"),
        "rebound.example",
    ],
)
def test_no_redirect_from_the_internet_into_a_network(target):
    """The decision alone: nothing is sent."""
    with pytest.raises(CheckpointError, match="its network; not followed"):
        check_redirect("https://public.example/a", f"http://{target}/latest", resolve)
    check_redirect("http://127.0.0.1/a", f"http://{target}/latest", resolve)


def test_redirects_within_the_internet():
    for target in ("v6.example", "public.example", "8.8.8.8", "unknown.example"):
        check_redirect("https://public.example/a", f"https://{target}/b", resolve)
    assert not is_public("127.0.0.1", resolve)
