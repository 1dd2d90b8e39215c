#!/usr/bin/python3
"""The outside web server for MTA-STS policies: ``policies.py CHAIN ADDRESS…``, port 443, one file for each domain."""

import http.server
import socket
import ssl
import sys
import threading
from pathlib import Path

TEXTS = Path("/srv/outside-policies")


class Handler(http.server.BaseHTTPRequestHandler):
    timeout = 10

    def do_GET(self):
        domain = self.headers.get("Host", "").partition(":")[0].removeprefix("mta-sts.")
        names = {file.name: file for file in TEXTS.iterdir()}
        if self.path != "/.well-known/mta-sts.txt" or domain not in names:
            self.send_error(404)
            return
        body = names[domain].read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, address, context):
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 443), Handler)
        self.context = context

    def finish_request(self, request, client_address):
        request.settimeout(10)
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)


def main(chain, *addresses):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    threads = [threading.Thread(target=Server(address, context).serve_forever) for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
