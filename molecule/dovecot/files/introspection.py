"""A provider that is asked whose a token is (RFC 7662): HTTPS on 8443, one token that is good, one that has ended."""

import http.server
import json
import ssl
import urllib.parse

ANSWERS = {
    "good-token": {
        "active": True,
        "email": "alice@example.org",
        "aud": "submission",
        "iss": "https://sso.example.org/",
    },
    "ended-token": {"active": False, "email": "alice@example.org"},
}


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        token = urllib.parse.parse_qs(body).get("token", [""])[0]
        answer = json.dumps(ANSWERS.get(token, {"active": False})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Provider)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/introspection/sso.pem", "/etc/introspection/sso.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
