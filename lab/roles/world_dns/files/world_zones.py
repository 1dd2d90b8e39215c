#!/usr/bin/python3
"""Write the zone files of the lab's DNS tree: a root of its own that delegates every zone, all of them signed by Knot.

Usage: world-zones /etc/knot/tree.json

The description gives ``server`` (name of the one name server), ``addresses`` (its addresses), ``ttl`` (seconds),
``zones`` (zone name → records as master-file text without SOA and NS) and ``pointers`` (address → host name, for the
reverse zones of a /24 or a /64). A zone that has no key yet gets one; its parent, the closest zone above it or the
root, gets the NS and DS records (RFC 4034 §5). Beside the zone files come the list of zones for knot.conf, the root
hints and the root's trust anchor. What changed is printed, one path a line; nothing printed means nothing changed.
"""

import ipaddress
import json
import subprocess
import sys
from pathlib import Path

STATE = Path("/var/lib/knot")
ZONES = STATE / "zones"
KEYS = STATE / "keys"
ZONE_LIST = Path("/etc/knot/zones.conf")
ROOT = "."
ROOT_SERVER = "a.root-servers.net."
DIGEST_SHA256 = "2"


def keymgr(zone, *command):
    """Return what keymgr prints about a zone; it runs as Knot's user, whose database it writes."""
    argv = ["/usr/sbin/keymgr", "--dir", str(KEYS), zone, *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True, user="knot", group="knot").stdout


def ds_record(zone):
    """Return the data of the zone's DS record; a zone without a key is given one."""
    if not keymgr(zone, "list").strip():
        keymgr(zone, "generate", "algorithm=ECDSAP256SHA256", "ksk=yes", "zsk=yes")
    for line in keymgr(zone, "ds").splitlines():
        fields = line.split()
        if fields[fields.index("DS") + 3] == DIGEST_SHA256:
            return " ".join(fields[fields.index("DS") + 1 :])
    raise SystemExit(f"world-zones: keymgr shows no SHA-256 DS record for {zone}")


def reverse_zone(address):
    """Return the reverse zone of an address's network: the /24 of an IPv4, the /64 of an IPv6 address."""
    pointer = ipaddress.ip_address(address).reverse_pointer
    host_labels = 1 if pointer.endswith("in-addr.arpa") else 16
    return ".".join(pointer.split(".")[host_labels:])


def parent_of(zone, zones):
    """Return the zone that delegates this one: the closest of the others above it, or the root."""
    labels = zone.split(".")
    above = (".".join(labels[start:]) for start in range(1, len(labels)))
    return next((name for name in above if name in zones), ROOT)


def address_records(name, addresses):
    """Return A and AAAA records as lines."""
    kinds = {4: "A", 6: "AAAA"}
    return [f"{name} {kinds[ipaddress.ip_address(address).version]} {address}" for address in addresses]


def build(tree):
    """Return everything to be written: path → text."""
    server, addresses = tree["server"].rstrip(".") + ".", tree["addresses"]
    zones = {name: [text.rstrip("\n")] for name, text in tree["zones"].items()}
    for address, host in sorted(tree["pointers"].items()):
        line = f"{ipaddress.ip_address(address).reverse_pointer}. PTR {host.rstrip('.')}."
        zones.setdefault(reverse_zone(address), []).append(line)

    root = [*address_records(ROOT_SERVER, addresses), *address_records(server, addresses)]
    for zone in sorted(zones):
        delegation = [f"{zone}. NS {server}", f"{zone}. DS {ds_record(zone)}"]
        parent = parent_of(zone, zones)
        (root if parent == ROOT else zones[parent]).extend(delegation)

    def zone_file(name, name_server, lines):
        origin = name if name == ROOT else f"{name}."
        head = [
            f"$ORIGIN {origin}",
            f"$TTL {tree['ttl']}",
            f"@ SOA {name_server} hostmaster.{server} 1 3600 60 604800 {min(10, tree['ttl'])}",
            f"@ NS {name_server}",
        ]
        # Texts may set an origin of their own; what follows them here is written out in full.
        return "\n".join([*head, *lines]) + "\n"

    files = {ZONES / f"{name}.zone": zone_file(name, server, lines) for name, lines in zones.items()}
    files[ZONES / "root.zone"] = zone_file(ROOT, ROOT_SERVER, root)
    entries = ["  - domain: .\n    file: root.zone", *(f"  - domain: {name}" for name in sorted(zones))]
    files[ZONE_LIST] = "zone:\n" + "\n".join(entries) + "\n"
    hints = [f". 3600 NS {ROOT_SERVER}", *address_records(f"{ROOT_SERVER} 3600", addresses)]
    files[STATE / "root.hints"] = "\n".join(hints) + "\n"
    files[STATE / "root-anchor.ds"] = f". IN DS {ds_record(ROOT)}\n"
    return files


def write(files):
    """Write what differs, remove zone files that are no longer wanted, and return the paths touched."""
    touched = []
    for path, text in files.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            new.write_text(text)
            new.replace(path)
            touched.append(path)
    for path in ZONES.glob("*.zone"):
        if path not in files:
            path.unlink()
            touched.append(path)
    return touched


def main():
    """Do the work of the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: world-zones DESCRIPTION.json")
    try:
        for path in write(build(json.loads(Path(sys.argv[1]).read_text()))):
            print(path)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"world-zones: {' '.join(error.cmd)}: {error.stderr.strip()}") from error


if __name__ == "__main__":
    main()
