#!/usr/bin/env python3
"""Build and remove the lab: containers with systemd as PID 1, reached by SSH, on a network of their own.

The inventory is the list of containers: every host of it with an ``ansible_host`` and a ``lab_ipv6`` becomes
``lab-<host>``. What runs inside is Ansible's business (``lab/world.yml``, ``playbooks/site.yml``).

    lab.py up [HOST …]       make what is missing, start what stands still, repair what is broken
    lab.py down [HOST …]     remove containers
    lab.py clean             remove everything the lab ever made on this machine

Everything it keeps lies in ``.lab/``: SSH keys, certificates, secrets, mailboxes. The peculiarities of the machine
(cgroup v1, no right to raise limits) are found out here and never asked of the user.

Exit status: 0 done, 1 something could not be done (said in plain words), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import hashlib
import io
import json
import os
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".lab"
INVENTORIES = (ROOT / "inventory/lab", ROOT / "molecule/inventory")
NETWORK = "lab"
SUBNET4, SUBNET6 = "198.18.25.0/24", "2001:db8:25::/64"
PACKAGE_PROXY = "http://198.18.25.100:3142"
DOMAIN = "example.org"
CAP_SYS_RESOURCE = 24
SSH_WAIT = 60  # seconds for a new container to answer on port 22

#: What a site keeps in its vault: private keys (RSA) and other secrets, and the members that have client certificates.
PRIVATE_KEYS = ("arc", "list-arc", "2026a._domainkey.ml.example.org", "2026a._domainkey.rua.example.org")
SECRETS = (
    *("srs", "list-rest", "list-archiver", "list-web", "list-unsubscribe", "list-oidc"),
    *("dmarc-events", "dmarc-reports", "grafana", "grafana-database", "grafana-key"),
)
MEMBERS = ("alice", "olga")
#: Who signs in at the submission host: the password in secrets/submission-<name>, its hash beside it.
SUBMITTERS = ("alice", "bob", "taro", "hanako")

#: What a freshly installed server has, and no more: role scenarios converge on bare hosts.
BASE_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt"),
    *("ca-certificates", "iproute2", "procps", "kmod", "netbase"),
)
PLATFORMS = {"debian-13": "trixie", "debian-12": "bookworm", "ubuntu-24.04": "noble"}
#: For thirty containers, each with a systemd and daemons that watch the journal. The kernel's 128 are used up by then.
INOTIFY_INSTANCES = 1024
IMAGE_HOOKS = (
    "rm -f $1/etc/ssh/ssh_host_*",  # every container is given the lab's own host key
    "echo force-unsafe-io > $1/etc/dpkg/dpkg.cfg.d/lab-no-sync",  # a container's disk need not survive a power cut
)


class LabError(Exception):
    """Something could not be done; the message says what and what to do."""


@dataclass(frozen=True)
class Host:
    """One container, as the inventory describes it."""

    name: str
    ipv4: str
    ipv6: str
    volumes: tuple[str, ...] = ()
    package_proxy: bool = True

    @property
    def container(self) -> str:
        return f"lab-{self.name}"

    @property
    def fqdn(self) -> str:
        return f"{self.name}.{DOMAIN}"


@dataclass(frozen=True)
class Quirks:
    """What this machine needs podman to be told (DESIGN: host quirks)."""

    args: tuple[str, ...] = field(default=())

    @classmethod
    def detect(cls, cgroup_root: Path = Path("/sys/fs/cgroup"), status: Path = Path("/proc/self/status")) -> Quirks:
        args: list[str] = []
        if not (cgroup_root / "cgroup.controllers").exists():
            args += ["--runtime", "runc"]  # crun refuses cgroup v1 and the hybrid layout
        capabilities = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("CapEff:"))
        if not int(capabilities, 16) >> CAP_SYS_RESOURCE & 1:
            for name, limit, most in (
                ("nofile", resource.RLIMIT_NOFILE, 20000),
                ("nproc", resource.RLIMIT_NPROC, 10000),
            ):
                hard = resource.getrlimit(limit)[1]
                ceiling = most if hard == resource.RLIM_INFINITY else min(most, hard)
                args += ["--ulimit", f"{name}={min(1024, ceiling)}:{ceiling}"]
        return cls(tuple(args))


def run(*command: str, stdin: bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run a command and return it with its output; LabError with its last words when it fails."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=600)
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is not installed: run `make setup`") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command[:3])} … did not end within ten minutes") from error
    if check and done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-5:]
        raise LabError(f"{' '.join(command[:3])} … failed: " + " / ".join(last))
    return done


def inventory_hosts(inventory: Path) -> list[Host]:
    """The containers of an inventory, in its order."""
    hosts: dict[str, Host] = {}

    def walk(group: dict) -> None:
        for name, variables in (group.get("hosts") or {}).items():
            if variables and "lab_ipv6" in variables:
                hosts[name] = Host(
                    name,
                    variables["ansible_host"],
                    variables["lab_ipv6"],
                    tuple(variables.get("lab_volumes", ())),
                    variables.get("lab_package_proxy", True),
                )
        for child in (group.get("children") or {}).values():
            walk(child or {})

    for group in yaml.safe_load((inventory / "hosts.yml").read_text()).values():
        walk(group or {})
    return list(hosts.values())


# --- state: keys, certificates, secrets -------------------------------------------------------------------------------


def write(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Write a file of the state directory whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.chmod(mode)
    new.replace(path)


def pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, openssh: bool = False
) -> bytes:
    form = serialization.PrivateFormat.OpenSSH if openssh else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def ensure_ssh(hosts: list[Host]) -> None:
    """One key for the operator, one host key for all containers, and the client configuration that knows both."""
    ssh = STATE / "ssh"
    for name in ("id_ed25519", "host_ed25519"):
        if not (ssh / name).exists() or not (ssh / f"{name}.pub").exists():
            key = ed25519.Ed25519PrivateKey.generate()
            public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            write(ssh / f"{name}.pub", public + b" lab\n", 0o644)
            write(ssh / name, pem(key, openssh=True))
    Path.home().joinpath(".ssh").mkdir(
        mode=0o700, exist_ok=True
    )  # the control sockets' place: .lab may be too long a path
    host_key = (ssh / "host_ed25519.pub").read_text()
    write(ssh / "known_hosts", f"198.18.25.*,2001:db8:25:* {host_key}", 0o644)
    config = [f"Host {host.name}\n  HostName {host.ipv4}\n" for host in hosts]
    config.append(
        f"Host *\n  User root\n  IdentityFile {ssh}/id_ed25519\n  UserKnownHostsFile {ssh}/known_hosts\n"
        "  IdentitiesOnly yes\n  ControlMaster auto\n  ControlPath ~/.ssh/lab-%C\n  ControlPersist 10m\n"
    )
    write(ssh / "config", "\n".join(config))


def certificate(
    name: str, issuer: str, public_key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey, ca: bool
) -> bytes:
    """A PEM certificate for host ``name``, valid for a year; a CA certificate when ``ca``."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.KeyUsage(not ca, *[False] * 4, ca, ca, *[False] * 2), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def ensure_authority(folder: Path, name: str, issuer: str, issued: str) -> ec.EllipticCurvePrivateKey:
    """The key of a certification authority; a new one takes away what the old one ``issued`` (a pattern of files)."""
    if not (folder / f"{name}.pem").exists() or not (folder / f"{name}.key").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write(folder / f"{name}.key", pem(key))
        write(folder / f"{name}.pem", certificate(issuer, issuer, key.public_key(), key, ca=True), 0o644)
        for old in folder.glob(issued):
            old.unlink()
    authority = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    return authority


def ensure_certificate(path: Path, name: str, issuer: str, authority: ec.EllipticCurvePrivateKey) -> None:
    """A key and its certificate in one file."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write(path, pem(key) + certificate(name, issuer, key.public_key(), authority, ca=False))


def ensure_pki(hosts: list[Host]) -> None:
    """The lab's certification authority, and for each host its key and certificate in one file."""
    pki, issuer = STATE / "pki", "Lab CA"
    authority = ensure_authority(pki, "ca", issuer, "*.example.*.pem")
    for host in hosts:
        ensure_certificate(pki / f"{host.fqdn}.pem", host.fqdn, issuer, authority)


def ensure_members() -> None:
    """The members' own certification authority, and the client certificates of two members and of a stranger.

    The stranger's certificate comes from an authority of the same name that nobody here knows.
    """
    issuer = "Lab Members CA"
    for folder, names in ((STATE / "pki", MEMBERS), (STATE / "pki/strangers", ("mallory",))):
        authority = ensure_authority(folder, "members-ca", issuer, "members/*.pem")
        for name in names:
            ensure_certificate(folder / f"members/{name}.pem", name, issuer, authority)


def ensure_login(path: Path) -> None:
    """A password, and its hash (SHA-512-crypt) as a site's vault would hold it."""
    if not path.exists():
        write(path, secrets.token_urlsafe(24))
    hashed = path.with_suffix(".hash")
    if not hashed.exists():
        crypted = run("openssl", "passwd", "-6", "-stdin", stdin=path.read_bytes()).stdout.decode().strip()
        write(hashed, f"{{SHA512-CRYPT}}{crypted}")


def ensure_state(hosts: list[Host]) -> None:
    """Everything that outlives a container: made once, then kept."""
    ensure_ssh(hosts)
    ensure_pki(hosts)
    ensure_members()
    for name in PRIVATE_KEYS:
        if not (STATE / f"secrets/{name}.pem").exists():
            write(STATE / f"secrets/{name}.pem", pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    for name in SECRETS:
        if not (STATE / f"secrets/{name}").exists():
            write(STATE / f"secrets/{name}", secrets.token_urlsafe(32))
    for name in SUBMITTERS:
        ensure_login(STATE / f"secrets/submission-{name}")
    for folder in ("mailboxes/world", "mailboxes/mail", "dns", "logs"):
        (STATE / folder).mkdir(parents=True, exist_ok=True)


# --- image, network, containers ---------------------------------------------------------------------------------------


def ensure_image(platform: str) -> str:
    """The base image of a platform, tagged by the hash of its recipe; returns its name."""
    suite = PLATFORMS[platform]
    recipe = hashlib.sha256(json.dumps([suite, BASE_PACKAGES, IMAGE_HOOKS]).encode()).hexdigest()[:12]
    image = f"localhost/lab-base:{platform}-{recipe}"
    if run("podman", "image", "exists", image, check=False).returncode == 0:
        return image
    print(f"building {image}", flush=True)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}"]
    command += [f"--customize-hook={hook}" for hook in IMAGE_HOOKS]
    tar = STATE / f"image-{platform}.tar"
    try:
        run(*command, suite, str(tar))
        run("podman", "import", "--quiet", str(tar), image)
    finally:
        tar.unlink(missing_ok=True)
    return image


def ensure_network() -> None:
    if run("podman", "network", "exists", NETWORK, check=False).returncode:
        run("podman", "network", "create", "--ipv6", "--subnet", SUBNET4, "--subnet", SUBNET6, "--disable-dns", NETWORK)
        print(f"created network {NETWORK}", flush=True)


def ensure_watches(limit: Path = Path("/proc/sys/fs/inotify/max_user_instances")) -> None:
    """Raise the kernel's limit (until it starts again) of inotify instances, which all containers share."""
    if int(limit.read_text()) < INOTIFY_INSTANCES:
        try:
            limit.write_text(str(INOTIFY_INSTANCES))
            print(f"{limit} is {INOTIFY_INSTANCES} now", flush=True)
        except OSError as error:
            print(f"{limit} stays low, and watchers in many containers may fail: {error}", file=sys.stderr)


def machine_resolver() -> bytes:
    """The resolv.conf that works on this machine also from inside a container."""
    for path in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        if Path(path).exists():
            return Path(path).read_bytes()
    raise LabError("this machine has no resolv.conf")


def container_files(host: Host) -> bytes:
    """A tar of the files that a container gets before its first start."""
    ssh = STATE / "ssh"
    files: dict[str, tuple[bytes, int]] = {
        "root/.ssh/authorized_keys": ((ssh / "id_ed25519.pub").read_bytes(), 0o600),
        "etc/ssh/ssh_host_ed25519_key": ((ssh / "host_ed25519").read_bytes(), 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": ((ssh / "host_ed25519.pub").read_bytes(), 0o644),
        "etc/hosts": (f"127.0.0.1 localhost\n::1 localhost\n{host.ipv4} {host.fqdn} {host.name}\n".encode(), 0o644),
        "etc/resolv.conf": (machine_resolver(), 0o644),
        "etc/resolv.conf.machine": (machine_resolver(), 0o644),
    }
    if host.package_proxy:
        # The lab's DNS knows no package archive: packages come through the proxy on lab-world.
        files["etc/apt/apt.conf.d/80lab-proxy"] = (f'Acquire::http::Proxy "{PACKAGE_PROXY}";\n'.encode(), 0o644)
    for authority in Path("/usr/local/share/ca-certificates").glob("*.crt"):  # a proxy with a CA of its own
        files[f"usr/local/share/ca-certificates/{authority.name}"] = (authority.read_bytes(), 0o644)
    # The CA of the outside world's mail and policy hosts, where a real site has the CAs that everybody knows.
    files["usr/local/share/ca-certificates/lab-ca.crt"] = ((STATE / "pki/ca.pem").read_bytes(), 0o644)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        # The second is dated 1970: the image has no package lists, and looks as if they had just been fetched.
        for name, mode in (("root/.ssh", 0o700), ("var/lib/apt/lists", 0o755)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def answers(host: Host, seconds: float) -> bool:
    """Whether sshd in the container answers with the lab's host key within the time given."""
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.ipv4, 22), timeout=2) as connection:
                connection.settimeout(2)
                if connection.recv(4) == b"SSH-":
                    login = (
                        "ssh",
                        "-F",
                        str(STATE / "ssh/config"),
                        "-o",
                        "ControlPath=none",
                        "-o",
                        "BatchMode=yes",
                        host.name,
                        "true",
                    )
                    return run(*login, check=False).returncode == 0
        except OSError:
            pass
        if time.monotonic() > end:
            return False
        time.sleep(0.3)


def ensure_container(host: Host, image: str, quirks: Quirks) -> None:
    """Make the container, or start it, or leave it alone; one that cannot be reached is made anew."""
    options = ["--hostname", host.name, "--systemd", "always", "--cap-add", "NET_ADMIN", "--no-hosts", "--dns", "none"]
    options += ["--network", f"{NETWORK}:ip={host.ipv4},ip6={host.ipv6}", *quirks.args]
    for volume in host.volumes:
        source, target = volume.split(":")
        options += ["--volume", f"{ROOT / source if '/' in source else source}:{target}"]
    recipe = hashlib.sha256(json.dumps([image, options]).encode() + container_files(host)).hexdigest()[:12]
    found = run(
        "podman",
        "inspect",
        "--format",
        '{{index .Config.Labels "lab.recipe"}} {{.State.Running}}',
        host.container,
        check=False,
    )
    label, _, running = found.stdout.decode().strip().partition(" ")
    if label == recipe:
        if running != "true":
            run("podman", "start", host.container)
            print(f"started {host.container}", flush=True)
        if answers(host, SSH_WAIT):
            return
    if found.returncode == 0:
        run("podman", "rm", "--force", "--time", "0", host.container)
    run("podman", "create", "--name", host.container, "--label", f"lab.recipe={recipe}", *options, image, "/sbin/init")
    run("podman", "cp", "-", f"{host.container}:/", stdin=container_files(host))
    run("podman", "start", host.container)
    if not answers(host, SSH_WAIT):
        raise LabError(f"{host.container} does not answer by SSH; look at `podman logs {host.container}`")
    run("podman", "exec", host.container, "update-ca-certificates")
    print(f"created {host.container}", flush=True)


def up(inventory: Path, names: list[str]) -> None:
    wanted = choose(inventory_hosts(inventory), names)
    ensure_state([host for path in INVENTORIES for host in inventory_hosts(path)])
    ensure_network()
    ensure_watches()
    # The lab itself runs Debian 13; PLATFORM chooses what the role scenarios run on.
    platform = os.environ.get("PLATFORM", "debian-13") if inventory == ROOT / "molecule/inventory" else "debian-13"
    if platform not in PLATFORMS:
        raise LabError(f"PLATFORM is {platform}; it may be {', '.join(PLATFORMS)}")
    image, quirks = ensure_image(platform), Quirks.detect()
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        for future in [pool.submit(ensure_container, host, image, quirks) for host in wanted]:
            future.result()


def choose(hosts: list[Host], names: list[str]) -> list[Host]:
    unknown = set(names) - {host.name for host in hosts}
    if unknown:
        raise LabError(f"no such host in this inventory: {', '.join(sorted(unknown))}")
    return [host for host in hosts if not names or host.name in names]


def down(inventory: Path, names: list[str]) -> None:
    for host in choose(inventory_hosts(inventory), names):
        if run("podman", "container", "exists", host.container, check=False).returncode == 0:
            run("podman", "rm", "--force", "--time", "0", host.container)
            print(f"removed {host.container}", flush=True)


def clean() -> None:
    """Leave nothing behind: containers, network, volumes, images and the state directory."""
    if shutil.which("podman"):
        for inventory in INVENTORIES:
            down(inventory, [])
        run("podman", "network", "rm", "--force", NETWORK, check=False)
        run("podman", "volume", "rm", "--force", "lab-package-cache", check=False)
        for image in (
            run("podman", "images", "--quiet", "--filter", "reference=localhost/lab-base").stdout.decode().split()
        ):
            run("podman", "rmi", "--force", image, check=False)
    shutil.rmtree(STATE, ignore_errors=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("up", "make, start or repair containers"), ("down", "remove containers")):
        command = commands.add_parser(name, help=text)
        command.add_argument("hosts", nargs="*", metavar="HOST", help="only these (default: all of the inventory)")
        command.add_argument("--inventory", type=Path, default=ROOT / "inventory/lab")
    commands.add_parser("clean", help="remove everything the lab made on this machine")
    options = parser.parse_args(arguments)
    try:
        if os.geteuid() != 0:
            raise LabError("the lab needs root (its containers have their own network): run it by sudo")
        if options.command == "up":
            up(options.inventory.resolve(), options.hosts)
        elif options.command == "down":
            down(options.inventory.resolve(), options.hosts)
        else:
            clean()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
