"""Open SMTP connections from any address of lab-world; runs there, driven over stdin and stdout.

One JSON request a line, one JSON answer a line. Bytes travel as base64. Every wait is bounded by the session's timeout.
"""

import base64
import json
import socket
import ssl
import sys


class Session:
    """One connection, with its own read buffer."""

    def __init__(self, source, host, port, timeout):
        self.sock = socket.create_connection((host, port), timeout, source_address=(source, 0))
        self.timeout = timeout
        self.buffer = b""

    def send(self, data, repeat=1):
        """Send bytes; a peer that has hung up is noticed when its reply is read."""
        self.sock.settimeout(self.timeout)
        try:
            for _ in range(repeat):
                self.sock.sendall(base64.b64decode(data))
        except (ConnectionError, ssl.SSLError):
            pass

    def reply(self, timeout):
        """Return one whole reply; code 0 means the connection is closed, -1 that nothing came in time."""
        self.sock.settimeout(timeout or self.timeout)
        lines = []
        while True:
            try:
                line = self._line()
            except TimeoutError:
                return {"code": -1, "text": "\n".join(lines)}
            if not line:
                return {"code": 0, "text": "\n".join(lines)}
            lines.append(line.decode("utf-8", "replace").rstrip("\r\n"))
            if line[3:4] != b"-":
                return {"code": int(line[:3]) if line[:3].isdigit() else 0, "text": "\n".join(lines)}

    def _line(self):
        while b"\n" not in self.buffer:
            try:
                chunk = self.sock.recv(65536)
            except (ConnectionError, ssl.SSLError):
                chunk = b""
            if not chunk:
                line, self.buffer = self.buffer, b""
                return line
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line + b"\n"

    def tls(self):
        """Do the TLS handshake after STARTTLS; certificates are another test's business."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.sock.settimeout(self.timeout)
        left_over = base64.b64encode(self.buffer).decode()
        self.buffer = b""
        self.sock = context.wrap_socket(self.sock)
        return {"version": self.sock.version(), "cipher": self.sock.cipher()[0], "left_over": left_over}

    def close(self):
        """Hang up."""
        self.sock.close()


def main():
    """Serve requests until stdin ends."""
    sessions = {}
    for line in sys.stdin:
        request = json.loads(line)
        number, method = request.pop("session"), request.pop("method")
        try:
            if method == "open":
                sessions[number] = Session(**request)
                answer = None
            else:
                answer = getattr(sessions[number], method)(**request)
            if method == "close":
                del sessions[number]
            print(json.dumps({"answer": answer}), flush=True)
        except OSError as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


main()
