"""TypeScript's verdict on dashboards, by the types that Grafana itself publishes (npm package ``@grafana/schema``).

The package's enumerations of words become unions of those words first: in JSON ``"mode": "palette-classic"`` is a
word, which TypeScript would not take for a member of an enumeration.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

TYPES = Path(__file__).resolve().parents[1] / "types"
PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "types"
_ENUM = re.compile(r"export declare enum (\w+) \{(.*?)\n\}", re.DOTALL)
_MEMBER = re.compile(r'^\s*(\w+) = ("[^"]*")', re.MULTILINE)
CONFIGURATION = """{
  "compilerOptions": {
    "strict": true, "noEmit": true, "module": "preserve", "moduleResolution": "bundler", "target": "es2022",
    "skipLibCheck": true, "types": [], "paths": {"@grafana/schema": ["./types/index.d.ts"]}
  },
  "files": ["boards.ts"]
}
"""


def prepare() -> Path:
    """Fetch the packages by their hashes, and make the copy of the types; returns the place of the compiler."""
    lock = (TYPES / "package-lock.json").read_bytes()
    done = PLACE / "done"
    compiler = PLACE / "node_modules/.bin/tsc"
    if not (done.exists() and done.read_bytes() == lock):
        shutil.rmtree(PLACE, ignore_errors=True)
        PLACE.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(TYPES / name, PLACE)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=PLACE, check=True, capture_output=True, text=True, timeout=120)
        words_for_enumerations(PLACE / "node_modules/@grafana/schema/dist/types", PLACE / "types")
        done.write_bytes(lock)
    return compiler


def words_for_enumerations(source: Path, copy: Path) -> None:
    """Copy declaration files; ``enum E { A = "a" }`` becomes ``type E = "a"``, and ``E.A`` becomes ``"a"``."""
    shutil.copytree(source, copy)
    files = {path: path.read_text(encoding="utf-8") for path in copy.rglob("*.d.ts")}
    members: dict[str, str] = {}
    for path, text in files.items():

        def union(found: re.Match[str]) -> str:
            words = dict(_MEMBER.findall(found[2]))
            if not words:
                return found[0]  # numbers, which TypeScript takes as they are
            members.update({f"{found[1]}.{name}": word for name, word in words.items()})
            return f"export type {found[1]} = {' | '.join(words.values())};"

        files[path] = _ENUM.sub(union, text)
    uses = re.compile(r"\b(?:\w+\.)?(" + "|".join(map(re.escape, sorted(members, key=len, reverse=True))) + r")\b")
    for path, text in files.items():
        path.write_text(uses.sub(lambda found: members[found[1]], text), encoding="utf-8")


def complaints(boards: Mapping[str, str]) -> list[str]:
    """What TypeScript has to say about dashboards (name → JSON); nothing, when they are well."""
    compiler = prepare()
    shutil.copy(TYPES / "board.ts", PLACE)
    lines = ['import type { Dashboard } from "./board";']
    lines += [f"export const board{place}: Dashboard = {text};" for place, text in enumerate(boards.values())]
    (PLACE / "boards.ts").write_text("\n".join(lines), encoding="utf-8")
    (PLACE / "tsconfig.json").write_text(CONFIGURATION, encoding="utf-8")
    done = subprocess.run(
        [compiler, "--project", "tsconfig.json"], cwd=PLACE, capture_output=True, text=True, timeout=120
    )
    found = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line or line.startswith(" ")]
    if done.returncode and not found:
        found = [done.stdout + done.stderr or f"tsc ended with {done.returncode}"]
    return found
