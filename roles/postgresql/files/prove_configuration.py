"""Start a scratch cluster with a configuration that waits for its test, so that a wrong one never reaches the real one.

What ``postgres -C`` finds (names, units, ranges) is not all that can keep a server down: limits that contradict each
other, a library that is not there, a wrong line in pg_hba.conf and a key without its certificate show only at a start.
The scratch cluster has no port, no archiving, little memory and a socket of its own. Run as postgres:
``prove_configuration.py PROGRAMS CONFIG_DIRECTORY STAGED_DIRECTORY DATA_DIRECTORY``. Exit 0: it started; 1: the reason
is on standard error.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PATIENCE = 60  # seconds for each step; on an idle machine they take one


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """One step; its output is kept for the report."""
    # pg_ctl's child would hold a pipe open, so that the output goes to a file.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)
        output.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, output.read(), "")


def prove(programs: Path, config: Path, staged: Path, data: Path, scratch: Path) -> str:
    """Why the configuration does not do, or nothing at all."""
    cluster, tree, log = scratch / "data", scratch / "etc", scratch / "log"
    made = run(programs / "initdb", "--pgdata", cluster, "--no-sync", "--auth=peer", "--encoding=UTF8", "--locale=C")
    if made.returncode:
        return made.stdout
    tree.joinpath("conf.d").mkdir(parents=True)
    shutil.copy(config / "postgresql.conf", tree)
    for other in sorted(config.glob("conf.d/*.conf")):
        shutil.copy(other, tree / "conf.d")
    shutil.copy(staged / "estate.conf", tree / "conf.d/50-estate.conf")
    shutil.copy(data / "postgresql.auto.conf", cluster)
    replaced = {
        "config_file": tree / "postgresql.conf",
        "hba_file": staged / "pg_hba.conf",
        "ident_file": staged / "pg_ident.conf",
        "data_directory": cluster,
        "external_pid_file": scratch / "pid",
        "unix_socket_directories": scratch,
        "listen_addresses": "",
        "archive_mode": "off",
        "logging_collector": "off",
        "log_destination": "stderr",
        "huge_pages": "off",
        "shared_buffers": "16MB",  # the value in the file is read and judged all the same
    }
    options = " ".join(f"-c {name}='{value}'" for name, value in replaced.items())
    control = (programs / "pg_ctl", "--pgdata", cluster)
    started = run(*control, "--wait", f"--timeout={PATIENCE - 10}", "--log", log, "--options", options, "start")
    run(*control, "--mode=immediate", "stop")
    if started.returncode == 0:
        return ""
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else started.stdout


def main() -> int:
    """Prove it in a directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="prove-", dir="/var/tmp") as scratch:
        reason = prove(*map(Path, sys.argv[1:5]), Path(scratch))
    if reason:
        print("PostgreSQL does not start with the new configuration:", reason, sep="\n", file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
