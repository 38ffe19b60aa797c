"""What is read behind a URI, and above all what is not."""

import base64
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from clipflow.addresses import is_public
from clipflow.errors import (
    ClipflowError,
    ForbiddenSource,
    InvalidDocument,
    NotFound,
    Timeout,
    TooLarge,
    Unavailable,
)
from clipflow.sources import MAX_REDIRECTS, Sources

CONTENT = b'\xff\xd8 a picture \x00\x01'


def sources(*roots: Path, allow_http: bool = False, max_bytes: int = 1000, timeout: float = 10.0) -> Sources:
    return Sources(roots, allow_http, max_bytes, timeout)


@pytest.mark.parametrize(
    ('uri', 'expected'),
    [
        ('data:image/jpeg;base64,' + base64.b64encode(CONTENT).decode(), CONTENT),
        ('data:;base64,' + quote(base64.b64encode(CONTENT).decode()), CONTENT),
        ('data:,hello%20world', b'hello world'),
        ('data:text/plain,a,b', b'a,b'),
        ('DATA:,x', b'x'),
    ],
)
def test_a_data_uri_carries_its_content(uri: str, expected: bytes) -> None:
    assert sources().read(uri) == expected


@pytest.mark.parametrize(
    'uri',
    [
        'data:',
        'data:image/png;base64',
        'data:,',
        'data:;base64,',
        'data:;base64,!!!',
        'data:;base64,YQ',
        'data:;base64,é',
    ],
)
def test_a_broken_or_empty_data_uri_is_an_invalid_document(uri: str) -> None:
    with pytest.raises(InvalidDocument):
        sources().read(uri)


@pytest.mark.parametrize('form', ['data:,{}', 'data:;base64,{}'])
def test_a_data_uri_has_the_limit_of_bytes(form: str) -> None:
    def uri(size: int) -> str:
        return form.format('x' * size if 'base64' not in form else base64.b64encode(b'x' * size).decode())

    assert len(sources(max_bytes=300).read(uri(300))) == 300
    for size in (301, 100_000):
        with pytest.raises(TooLarge):
            sources(max_bytes=300).read(uri(size))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`open/` may be read, `secret/` may not."""
    for name in ('open', 'open/deep', 'secret', 'open-not'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'a b.jpg').write_bytes(CONTENT)
    (tmp_path / 'open' / 'out.jpg').symlink_to(tmp_path / 'secret' / 'a b.jpg')
    (tmp_path / 'open' / 'outside').symlink_to(tmp_path / 'secret')
    (tmp_path / 'open' / 'in.jpg').symlink_to(tmp_path / 'open' / 'deep' / 'a b.jpg')
    (tmp_path / 'open' / 'empty').write_bytes(b'')
    (tmp_path / 'open' / 'large').write_bytes(b'x' * 1001)
    os.mkfifo(tmp_path / 'open' / 'pipe')
    return tmp_path


@pytest.mark.parametrize(
    'form',
    [
        '{}/open/a b.jpg',
        '{}/open/deep/a b.jpg',
        '{}/open/in.jpg',
        '{}/secret/../open/a b.jpg',
        'file://{}/open/a%20b.jpg',
        'file://localhost{}/open/a%20b.jpg',
        'file:{}/open/a%20b.jpg',
    ],
)
def test_a_file_below_a_root_is_read(tree: Path, form: str) -> None:
    assert sources(tree / 'secret' / 'x', tree / 'open').read(form.format(tree)) == CONTENT


@pytest.mark.parametrize(
    'form',
    [
        '{}/secret/a b.jpg',
        '{}/open/../secret/a b.jpg',
        'file://{}/open/%2e%2e/secret/a%20b.jpg',
        '{}/open-not/a b.jpg',
        '{}/open/out.jpg',
        '{}/open/outside/a b.jpg',
        '{}/open/none.jpg',
        '{}/open/deep',
        '{}/open/pipe',
        '{}/open/a b.jpg\0',
        '{}/open/' + 'x' * 5000,
        '/etc/passwd',
        'file:///proc/self/environ',
        'a b.jpg',
        'file:',
    ],
)
def test_another_file_is_forbidden_and_none_tells_whether_it_exists(tree: Path, form: str) -> None:
    with pytest.raises(ForbiddenSource) as caught:
        sources(tree / 'open').read(form.format(tree))
    assert 'no file below the directories that may be read' in caught.value.message


def test_without_roots_no_file_is_read(tree: Path) -> None:
    with pytest.raises(ForbiddenSource, match='CLIPFLOW_FILE_ROOTS'):
        sources().read(str(tree / 'open' / 'a b.jpg'))


def test_a_root_may_itself_be_a_link(tree: Path) -> None:
    (tree / 'alias').symlink_to(tree / 'open')
    assert sources(tree / 'alias').read(f'{tree}/alias/a b.jpg') == CONTENT


def test_files_have_the_limit_of_bytes_and_need_content(tree: Path) -> None:
    with pytest.raises(TooLarge):
        sources(tree / 'open').read(f'{tree}/open/large')
    with pytest.raises(InvalidDocument, match='no content'):
        sources(tree / 'open').read(f'{tree}/open/empty')


@pytest.mark.parametrize('uri', ['ftp://host/x', 'gopher://host/x', 's3://bucket/key', 'javascript:alert(1)', 'x:y:z'])
def test_another_scheme_is_forbidden(tree: Path, uri: str) -> None:
    with pytest.raises(ForbiddenSource):
        sources(tree / 'open', allow_http=True).read(uri)


@pytest.mark.parametrize('uri', ['http://example.com/a.jpg', 'https://example.com/a.jpg', 'HTTP://example.com/a.jpg'])
def test_nothing_is_fetched_unless_that_is_switched_on(uri: str) -> None:
    with pytest.raises(ForbiddenSource, match='CLIPFLOW_ALLOW_HTTP'):
        sources().read(uri)


@pytest.mark.parametrize(
    'host',
    [
        '127.0.0.1',
        'localhost',
        '127.1',
        '2130706433',
        '0x7f000001',
        '0.0.0.0',
        '10.0.0.1',
        '172.16.0.1',
        '192.168.1.1',
        '169.254.169.254',
        '100.64.0.1',
        '[::1]',
        '[::]',
        '[fe80::1]',
        '[fd00::1]',
        '[::ffff:127.0.0.1]',
        '[::ffff:10.0.0.1]',
        '[::127.0.0.1]',
        '[::ffff:0:127.0.0.1]',
        '[64:ff9b::7f00:1]',
        '[2002:7f00:1::1]',
        '[fec0::1]',
        '[ff02::1]',
        '224.0.0.1',
        'user:secret@127.0.0.1',
    ],
)
def test_private_addresses_are_refused_in_every_spelling(host: str) -> None:
    with pytest.raises(ForbiddenSource, match='no public address'):
        sources(allow_http=True).read(f'http://{host}:1/a.jpg')


def test_a_public_address_may_come_through_nat64() -> None:
    assert is_public('64:ff9b::0808:0808')
    assert is_public('2606:4700::1111')


@pytest.mark.parametrize(
    'uri',
    [
        'http://',
        'http:///a.jpg',
        'http:a.jpg',
        'http://[::1/a.jpg',
        'http://[zz]/a.jpg',
        'http://host:99999/a.jpg',
        'http://host:port/a.jpg',
        'file://[::1/a.jpg',
        'http://' + 'x' * 300 + '/a.jpg',
        'http://a..b/',
    ],
)
def test_a_uri_that_cannot_be_parsed_is_one_of_our_errors(tree: Path, uri: str) -> None:
    with pytest.raises(ClipflowError) as caught:
        sources(tree / 'open', allow_http=True).read(uri)
    assert caught.value.status < 500 or isinstance(caught.value, Unavailable)


@dataclass
class Site:
    """A real server. `http://pictures.example:<port>` leads to it, as if its address were public."""

    port: int
    hosts: list[str] = field(default_factory=list)

    def url(self, path: str) -> str:
        return f'http://pictures.example:{self.port}{path}'


class Handler(BaseHTTPRequestHandler):
    """/ok, /empty, /huge (endless), /drip?after= (a byte now and then), /status?code=, /to?url=, /echo/..."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        self.server.hosts.append(self.headers['Host'])  # type: ignore[attr-defined]
        if parts.path == '/to':
            self.answer(302, b'', Location=query['url'][0])
        elif parts.path == '/status':
            self.answer(int(query['code'][0]), b'not a picture')
        elif parts.path == '/huge':
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            try:
                while True:
                    self.wfile.write(b'x' * 65536)
            except OSError:
                return
        elif parts.path == '/drip':
            self.wfile.write(query.get('after', [''])[0].encode())
            self.close_connection = True
            while not self.server.ended.wait(0.05):  # type: ignore[attr-defined]
                try:
                    self.wfile.write(b'x')
                except OSError:
                    return
        elif parts.path == '/short':
            self.send_response(200)
            self.send_header('Content-Length', '100')
            self.end_headers()
            self.wfile.write(b'x')
            self.close_connection = True
        else:
            self.answer(200, {'/ok': CONTENT, '/empty': b''}.get(parts.path, self.path.encode()))

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {'Content-Length': str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    server.ended = threading.Event()  # type: ignore[attr-defined]
    found = Site(server.server_port)
    server.hosts = found.hosts  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    checked = Sources._public_address

    def address(self: Sources, host: str, port: int) -> str:
        return '127.0.0.1' if host.endswith('.example') else checked(self, host, port)

    monkeypatch.setattr(Sources, '_public_address', address)
    yield found
    server.ended.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_fetched_under_the_name_of_its_host(site: Site) -> None:
    assert sources(allow_http=True).read(site.url('/ok')) == CONTENT
    assert site.hosts == [f'pictures.example:{site.port}']


@pytest.mark.parametrize(
    ('path', 'expected'),
    [('/a%20b?q=1&r=2', b'/a%20b?q=1&r=2'), ('/ä b', b'/%C3%A4%20b'), ('?q=1', b'/?q=1'), ('/x#part', b'/x')],
)
def test_path_and_query_arrive(site: Site, path: str, expected: bytes) -> None:
    assert sources(allow_http=True).read(site.url(path)) == expected


def test_a_name_in_another_script_is_one_of_our_errors_or_is_fetched(site: Site) -> None:
    with pytest.raises(ClipflowError) as caught:
        sources(allow_http=True).read(f'http://猫.example:{site.port}/ok')
    assert caught.value.status < 500


def test_line_breaks_in_a_url_become_no_header(site: Site) -> None:
    sources(allow_http=True).read(site.url('/x\r\nHost: evil\r\n\r\n'))
    assert site.hosts == [f'pictures.example:{site.port}']


@pytest.mark.parametrize('code', [204, 304, 400, 403, 404, 500, 503])
def test_an_answer_other_than_200_is_not_found_and_names_the_status(site: Site, code: int) -> None:
    with pytest.raises(NotFound, match=str(code)):
        sources(allow_http=True).read(site.url(f'/status?code={code}'))


def test_content_without_end_is_cut_off_at_the_limit(site: Site) -> None:
    with pytest.raises(TooLarge):
        sources(allow_http=True, max_bytes=200_000).read(site.url('/huge'))


def test_an_empty_answer_is_an_invalid_document_and_one_that_breaks_off_unavailable(site: Site) -> None:
    with pytest.raises(InvalidDocument, match='no content'):
        sources(allow_http=True).read(site.url('/empty'))
    with pytest.raises(Unavailable):
        sources(allow_http=True).read(site.url('/short'))


def test_redirects_are_followed_relative_ones_too(site: Site) -> None:
    assert sources(allow_http=True).read(site.url('/to?url=/ok')) == CONTENT
    assert sources(allow_http=True).read(site.url(f'/to?url={quote(site.url("/to?url=ok"))}')) == CONTENT


def test_a_chain_of_redirects_ends(site: Site) -> None:
    path = '/to?url=/loop'
    for _ in range(MAX_REDIRECTS + 1):
        path = f'/to?url={quote(path)}'
    with pytest.raises(ForbiddenSource, match='redirects'):
        sources(allow_http=True).read(site.url(path))
    assert len(site.hosts) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    'target',
    [
        'http://127.0.0.1:{port}/ok',
        'http://localhost:{port}/ok',
        'http://[::1]:{port}/ok',
        'http://169.254.169.254/latest/meta-data',
        '//10.0.0.1/ok',
        'file:///etc/hostname',
        'data:,hello',
        'ftp://pictures.example/x',
    ],
)
def test_a_redirect_to_what_may_not_be_read_is_refused(site: Site, target: str) -> None:
    with pytest.raises(ForbiddenSource):
        sources(allow_http=True).read(site.url('/to?url=' + quote(target.format(port=site.port), safe='')))
    assert len(site.hosts) == 1


@pytest.mark.parametrize('target', ['http://[::1', 'http://pictures.example:99999/', 'http://'])
def test_a_redirect_that_cannot_be_parsed_is_one_of_our_errors(site: Site, target: str) -> None:
    with pytest.raises((InvalidDocument, ForbiddenSource)):
        sources(allow_http=True).read(site.url('/to?url=' + quote(target, safe='')))


@pytest.mark.usefixtures('site')
def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    with socket.create_server(('127.0.0.1', 0)) as silent, pytest.raises(Timeout):
        sources(allow_http=True, timeout=0.05).read(f'http://pictures.example:{silent.getsockname()[1]}/ok')


@pytest.mark.parametrize(
    'head',
    ['', 'HTTP/1.1 200 OK\r\nX: ', 'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n', 'HTTP/1.0 200 OK\r\n\r\n'],
)
def test_a_server_that_sends_a_byte_now_and_then_is_not_listened_to_for_longer(site: Site, head: str) -> None:
    begun = time.monotonic()
    with pytest.raises(Timeout):
        sources(allow_http=True, timeout=0.3).read(site.url('/drip?after=' + quote(head)))
    assert time.monotonic() - begun < 10


@pytest.mark.skipif(shutil.which('openssl') is None, reason='openssl makes the certificate, and is not installed')
def test_a_certificate_is_checked(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / 'key.pem', tmp_path / 'certificate.pem'
    command = [
        'openssl',
        'req',
        '-x509',
        '-newkey',
        'rsa:2048',
        '-nodes',
        '-days',
        '2',
        '-subj',
        '/CN=pictures.example',
    ]
    command += ['-addext', 'subjectAltName=DNS:pictures.example', '-keyout', str(key), '-out', str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.hosts = []  # type: ignore[attr-defined]
    server.socket = secure.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
    try:
        with pytest.raises(Unavailable, match='SSLCertVerificationError'):
            sources(allow_http=True).read(f'https://pictures.example:{server.server_port}/ok')
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
        assert sources(allow_http=True).read(f'https://pictures.example:{server.server_port}/ok') == CONTENT
        with pytest.raises(Unavailable, match='SSLCertVerificationError'):
            sources(allow_http=True).read(f'https://other.example:{server.server_port}/ok')
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.usefixtures('site')
def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Unavailable):
        sources(allow_http=True).read(f'http://pictures.example:{port}/ok')
