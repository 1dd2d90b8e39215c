"""What testssl.sh finds out about a port's TLS.

testssl.sh is installed on lab-world (lab/roles/testssl). It runs there in everything but the network, which is that of
the host to be looked at: hundreds of handshakes come from its own loopback, the one client that no rate limit counts,
and reach also what the firewall closes to strangers.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from .hosts import CommandFailedError, Host

TIMEOUT = 900  # seconds for one port, on a busy machine
CHECKS = ("-p", "-s", "-f", "-P", "-S", "-U")  # all but the simulation of clients and HTTP's own headers
SEVERITIES = ("DEBUG", "OK", "INFO", "WARN", "LOW", "MEDIUM", "HIGH", "CRITICAL", "FATAL")


@dataclass(frozen=True)
class Finding:
    """One line of testssl.sh: WARN says that a check could not be made."""

    id: str
    severity: str
    text: str

    def above(self, severity: str) -> bool:
        """Whether it is graver than ``severity``."""
        return SEVERITIES.index(self.severity) > SEVERITIES.index(severity)


def tls_scan(host: str, name: str, port: int, starttls: str = "", authorities: str = "") -> dict[str, Finding]:
    """Every finding about a port of a host of the lab, by its id; the graver one where there are two.

    :param name: the name to ask for and to hold the certificate against.
    :param starttls: "smtp" where TLS begins with STARTTLS.
    :param authorities: the CAs to trust, PEM.
    :raises CommandFailedError: when testssl.sh gives no result.
    """
    world = Host("world")
    place = world.run("mktemp", "-d", "/tmp/testssl.XXXXXX").strip()
    try:
        world.run("sh", "-c", f"cat > {place}/ca.pem", stdin=authorities)
        options = ["--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none", "--add-ca", f"{place}/ca.pem"]
        options += ["--ip", "127.0.0.1", "--jsonfile", f"{place}/found.json", "--openssl-timeout", "30"]
        options += ["--connect-timeout", "30", *CHECKS, *(["--starttls", starttls] if starttls else [])]
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb", f"TMPDIR={place}"]
        command = [*environment, "timeout", str(TIMEOUT), "testssl", *options, f"{name}:{port}"]
        done = subprocess.run(
            ["nsenter", *_namespaces(host), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT + 30,
        )
        try:
            lines = json.loads(world.run("cat", f"{place}/found.json", check=False))
        except json.JSONDecodeError as error:
            said = (done.stdout + done.stderr).strip()[-800:]
            raise CommandFailedError(
                f"{host}: testssl.sh on port {port} ended with {done.returncode}: {said}"
            ) from error
    finally:
        world.run("rm", "-rf", place)
    found: dict[str, Finding] = {}
    for line in lines:
        # With an RSA and an ECDSA certificate: "cert_trust <hostCert#2>".
        finding = Finding(line["id"].partition(" <")[0], line["severity"], line["finding"])
        if finding.id not in found or finding.above(found[finding.id].severity):
            found[finding.id] = finding
    if "scanTime" not in found:
        raise CommandFailedError(f"{host}: testssl.sh did not come to an end on port {port}: {done.stdout[-800:]}")
    return found


def _namespaces(host: str) -> list[str]:
    """Options of nsenter(1): the files and processes of lab-world, the network of the host."""
    process = {}
    for name in ("world", host):
        asked = ["podman", "inspect", "--format", "{{.State.Pid}}", f"lab-{name}"]
        process[name] = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    outside = f"/proc/{process['world']}/ns"
    return [f"--mount={outside}/mnt", f"--pid={outside}/pid", f"--net=/proc/{process[host]}/ns/net"]
