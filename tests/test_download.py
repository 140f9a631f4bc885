"""Downloads against a local HTTP server: with ranges, without, breaking off, lying."""

import hashlib
import threading

import pytest
from moody_server import CONTENT

from porter.mapping.files import list_variants


@pytest.fixture
def fetch(run, server, tmp_path):
    def fetch(*options):
        return run("download", "--variant", "small_075", "--url", server.url, "-o", tmp_path / "v3.tgz", *options)

    return fetch


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download(fetch, tmp_path):
    ran = fetch("--sha256", hashlib.sha256(CONTENT).hexdigest())
    assert ran.code == 0, ran.err
    assert (tmp_path / "v3.tgz").read_bytes() == CONTENT
    assert names(tmp_path) == ["v3.tgz"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_resume(server, fetch, tmp_path, knows_ranges):
    server.knows_ranges, server.breaks_off = knows_ranges, True
    ran = fetch()
    assert ran.code == 2
    assert "continues from there" in ran.err
    assert ran.err.count("\n") == 1
    assert names(tmp_path) == ["v3.tgz.part"]
    assert fetch().code == 0
    assert server.ranges == [None, "bytes=300000-"]
    assert (tmp_path / "v3.tgz").read_bytes() == CONTENT


@pytest.mark.parametrize("tags", [('"1"', '"1"'), ('"1"', '"2"'), (None, None), ('W/"1"', 'W/"1"')])
def test_resume_goes_on_with_the_same_version_alone(server, fetch, tmp_path, tags):
    """Without digests: the second half of another version must not be appended to the first half of this."""
    server.hashes, server.breaks_off, server.tag = [], True, tags[0]
    assert fetch().code == 2
    server.tag = tags[1]
    server.content = CONTENT if tags[0] == tags[1] == '"1"' else CONTENT[::-1]
    assert fetch().code == 0
    assert (tmp_path / "v3.tgz").read_bytes() == server.content
    assert names(tmp_path) == ["v3.tgz"]


def test_part_that_is_already_whole(fetch, tmp_path):
    (tmp_path / "v3.tgz.part").write_bytes(CONTENT)
    assert fetch().code == 0
    assert (tmp_path / "v3.tgz").read_bytes() == CONTENT


def test_what_can_be_downloaded(run, fetch, server, tmp_path, monkeypatch):
    """The error names every variant with an address, and no other; a mirror needs none."""
    monkeypatch.chdir(tmp_path)
    for variant in ("lraspp_small", "smal_075"):
        ran = run("download", "--variant", variant)
        assert ran.code == 2
        assert f"{variant}: no released tarball" in ran.err
        assert ("did you mean small_075?" in ran.err) == (variant == "smal_075")
        offered = ran.err.partition("there are ")[2].partition(". ")[0].split(", ")
        assert offered == list(list_variants())
    assert "--variant is missing" in run("download").err
    ran = run("download", "--url", server.url, "-o", "mirrored.tgz")
    assert (ran.code, (tmp_path / "mirrored.tgz").read_bytes()) == (0, CONTENT)


def test_wrong_content(server, fetch, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    ran = fetch()
    assert ran.code == 2
    assert "crc32c is" in ran.err
    assert names(tmp_path) == []
    server.hashes = []
    assert "sha256 is" in fetch("--sha256", hashlib.sha256(CONTENT).hexdigest()).err
    assert names(tmp_path) == []


def test_existing_file_is_kept(fetch, tmp_path):
    (tmp_path / "v3.tgz").write_bytes(b"mine")
    assert "exists already" in fetch().err
    assert fetch("--force").code == 0


def test_no_such_file_and_no_server(run, server, tmp_path):
    out = tmp_path / "x.tgz"
    ran = run("download", "--variant", "small_075", "--url", server.url.replace("v3", "missing"), "-o", out)
    assert (ran.code, "404" in ran.err) == (2, True)
    ran = run("download", "--variant", "small_075", "--url", "http://127.0.0.1:9/x.tgz", "-o", out)
    assert (ran.code, "refuses the connection" in ran.err) == (2, True)
    ran = run("download", "--variant", "small_075", "--url", "no-url", "-o", out)
    assert (ran.code, "unknown url type" in ran.err) == (2, True)
    assert names(tmp_path) == []


def serving(answer):
    """A server on this machine whose every answer is ``answer(handler)``; gives its address."""
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/a.tgz"


def sends(status, headers, body=b"x" * 10):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (sends(302, {"Location": "ftp://127.0.0.1/a"}), "leads to ftp://127.0.0.1/a"),
        (sends(200, {"Content-Length": str(5 << 30)}), "announces 5368709120 bytes"),
        (sends(206, {"Content-Range": "bytes 0-9/10"}), "sends another part ('bytes 0-9/10')"),
        (sends(200, {"x-goog-hash": "md5=a"}), "md5=a is damaged"),
    ],
)
def test_servers_that_lie(run, tmp_path, answer, message):
    if "another part" in message:
        (tmp_path / "a.tgz.part").write_bytes(b"12345")
    ran = run("download", "--variant", "small_075", "--url", serving(answer), "-o", tmp_path / "a.tgz")
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "a.tgz").exists()


def test_only_the_web_is_fetched(run, tmp_path):
    ran = run("download", "--variant", "small_075", "--url", "file:///etc/passwd", "-o", tmp_path / "a.tgz")
    assert ran.code == 2
    assert "only https and http" in ran.err


def test_a_part_that_is_a_link(run, tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.tgz.part").symlink_to("victim")
    url = serving(sends(200, {"Content-Length": "10"}))
    ran = run("download", "--variant", "small_075", "--url", url, "-o", tmp_path / "a.tgz")
    assert ran.code == 2
    assert (tmp_path / "victim").read_text() == "precious"
