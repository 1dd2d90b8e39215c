"""A web server of somebody who wants TLS reports by HTTPS: keeps the body of each POST; /refuse answers 503."""

from __future__ import annotations

import http.server
import ssl
import sys
from pathlib import Path

KEEP = Path("/var/lib/upload")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/refuse":
            self.send_error(503)
            return
        name = self.path.strip("/").replace("/", "_")
        (KEEP / f"{name}.type").write_text(self.headers["Content-Type"], encoding="ascii")
        (KEEP / f"{name}.gz").write_bytes(body)
        self.send_response(204)
        self.end_headers()


server = http.server.ThreadingHTTPServer(("127.0.0.20", 443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
