"""The page for people at `/`: static files of this package, with headers that let nothing foreign in."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from clipflow.errors import NotFound

FOLDER = Path(__file__).parent / 'page'
INDEX = 'index.html'
_TYPES = {
    '.html': 'text/html; charset=utf-8',
    '.css': 'text/css; charset=utf-8',
    '.js': 'text/javascript; charset=utf-8',
    '.svg': 'image/svg+xml',
}
# Pictures may come from elsewhere: an address of a picture that somebody drops is shown before it is searched with.
_POLICY = '; '.join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data: https: http:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
_DOCUMENTS = ('.html', '.svg')
_SECONDS = 60


@dataclass(frozen=True)
class _File:
    """One file, ready to be sent."""

    body: bytes
    small: bytes
    headers: Mapping[str, str]
    media_type: str

    @classmethod
    def read(cls, path: Path) -> '_File':
        body = path.read_bytes()
        headers = {
            'ETag': f'W/"{hashlib.sha256(body).hexdigest()[:16]}"',
            'Cache-Control': 'no-cache' if path.name == INDEX else f'max-age={_SECONDS}',
            'Vary': 'Accept-Encoding',
            'X-Content-Type-Options': 'nosniff',
        }
        if path.suffix in _DOCUMENTS:
            headers |= {'Content-Security-Policy': _POLICY, 'Referrer-Policy': 'same-origin'}
        return cls(body, gzip.compress(body, 9, mtime=0), headers, _TYPES[path.suffix])

    def respond(self, request: Request) -> Response:
        """The whole file, or 304 if the browser has it."""
        if self.headers['ETag'] in request.headers.get('if-none-match', ''):
            return Response(status_code=304, headers=self.headers)
        if 'gzip' not in request.headers.get('accept-encoding', ''):
            return Response(self.body, media_type=self.media_type, headers=self.headers)
        headers = {**self.headers, 'Content-Encoding': 'gzip'}
        return Response(self.small, media_type=self.media_type, headers=headers)


def router() -> APIRouter:
    """The routes. The files are read once, so that a name is looked up and never joined to a path."""
    files = {path.name: _File.read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}
    routes = APIRouter(include_in_schema=False)

    @routes.get('/')
    async def page_index(request: Request) -> Response:
        return files[INDEX].respond(request)

    @routes.get('/page/{name}')
    async def page_file(name: str, request: Request) -> Response:
        if name not in files:
            raise NotFound(f'the page has no file {name!r}')
        return files[name].respond(request)

    return routes
