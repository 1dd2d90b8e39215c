"""Fetches the original archive of a Debian source package from the package archive that this machine is set up for."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
import urllib.request
from pathlib import Path

RELEASES = ("trixie", "sid", "bookworm")
SECONDS = 180


class NotFetched(Exception):
    """The archive was not reached, or has not got the package."""


def fetch_source(package: str, cache: Path) -> Path:
    """The path of `<package>_<version>.orig.tar.*`, from the cache if it is there. Raises NotFetched."""
    found = sorted(cache.glob(f"{package}_*.orig.tar.*[!t]"))
    if found:
        return found[-1]
    cache.mkdir(parents=True, exist_ok=True)
    problems = []
    for release in _releases():
        try:
            return _fetch(package, release, cache)
        except (NotFetched, OSError, subprocess.SubprocessError) as error:
            problems.append(f"{release}: {error}")
    raise NotFetched(f"{package} cannot be had from this machine's package archive: {'; '.join(problems)}")


def _fetch(package: str, release: str, cache: Path) -> Path:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "lists/partial").mkdir(parents=True)
        (work / "cache/archives/partial").mkdir(parents=True)
        (work / "parts").mkdir()
        (work / "parts/source.list").write_text(_source_line(release))
        options = [f"-oDir::State::Lists={work}/lists", f"-oDir::Cache={work}/cache", "-qq"]
        options += [
            "-oDir::Etc::SourceList=/dev/null",
            f"-oDir::Etc::SourceParts={work}/parts",
            "-oAPT::Sandbox::User=root",
        ]
        _run(["apt-get", *options, "update"])
        wanted = _run(["apt-get", *options, "source", "--print-uris", package])
        match = re.search(r"'([^']+)' (\S+\.orig\.tar\.\w+) \d+ SHA256:([0-9a-f]{64})", wanted)
        if match is None:
            raise NotFetched("no such source package")
        address, name, digest = match.groups()
        # only this one file: some archives have lost the others
        with urllib.request.urlopen(address, timeout=SECONDS) as reply:
            content = reply.read()
        if hashlib.sha256(content).hexdigest() != digest:
            raise NotFetched(f"{name} is not what the archive's signed list says")
        target = cache / name
        part = target.with_suffix(".part")
        part.write_bytes(content)
        part.replace(target)
        return target


def _source_line(release: str) -> str:
    """A line for sources.list with the archive and components that this machine gets its packages from."""
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = dict(re.findall(r"(?m)^([\w-]+):[ \t]*(\S.*)$", stanza))
            if "main" in fields.get("Components", "").split() and "security" not in fields.get("Suites", "security"):
                key = f"[signed-by={fields['Signed-By']}] " if fields.get("Signed-By", "").startswith("/") else ""
                return f"deb-src {key}{fields['URIs'].split()[0]} {release} {fields['Components']}\n"
    for path in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))):
        for line in path.read_text().splitlines() if path.exists() else []:
            match = re.match(r"deb\s+(\[.*?\]\s+)?(\S+)\s+(\S+)\s+(.*\bmain\b.*)", line)
            if match and "security" not in match[3]:
                return f"deb-src {match[1] or ''}{match[2]} {release} {match[4]}\n"
    raise NotFetched("no package archive is configured")


def _releases() -> list[str]:
    """This machine's own release last: its archive may have lost older sources."""
    own = re.search(r"(?m)^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    return [*RELEASES, *([own[1]] if own and own[1] not in RELEASES else [])]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise NotFetched(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
