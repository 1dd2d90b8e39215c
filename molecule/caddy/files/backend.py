"""A back end that answers with what it was asked, and takes its time below /slow."""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers with the request line's path and all headers, as JSON."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"path": self.path, "headers": [[n.lower(), v] for n, v in self.headers.items()]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Own", "back end")
        self.send_header("X-Frame-Options", "ALLOW-FROM https://example.com")
        self.end_headers()
        if self.path.startswith("/slow"):
            self.wfile.write(body[:1])
            self.wfile.flush()
            time.sleep(4)
            body = body[1:]
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
