"""The HTTP half of the fake coordinator: signed requests for single objects."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler


def blob_store(blobs: dict[str, bytes], expired: set[int]) -> type[BaseHTTPRequestHandler]:
    """Serves blobs by digest to whoever shows a signature that has not expired, and takes them."""

    class Server(BaseHTTPRequestHandler):
        def _refused(self) -> bool:
            path, _, number = self.path.partition("?signature=")
            if int(number) in expired or self.headers["x-signed"] != "yes":
                self.send_error(403)
                return True
            self.digest = path.strip("/")
            return False

        def do_GET(self) -> None:
            if self._refused():
                return
            data = blobs.get(self.digest)
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def do_PUT(self) -> None:
            if self._refused():
                return
            blobs[self.digest] = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Server
