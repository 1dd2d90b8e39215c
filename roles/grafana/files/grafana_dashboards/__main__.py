"""Write the dashboards: ``python3 -m grafana_dashboards DIRECTORY [--check]``.

One file for each dashboard, named by its uid. Files of dashboards that are no more are removed. With ``--check``
nothing is written; exit status 1 says that the directory is not what the code says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from grafana_dashboards.boards import BOARDS


def texts() -> dict[str, str]:
    """File name → content, for all dashboards."""
    boards = [build() for build in BOARDS]
    return {f"{board['uid']}.json": json.dumps(board, indent=1, ensure_ascii=False) + "\n" for board in boards}


def main(arguments: list[str]) -> int:
    """Write or compare; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="grafana_dashboards", description="Writes the dashboards as JSON files.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing, exit status 1 where something differs")
    options = parser.parse_args(arguments)
    wanted = texts()
    present = {path.name: path.read_text(encoding="utf-8") for path in options.directory.glob("*.json")}
    different = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if options.check:
        print("\n".join(different) or "all dashboards are what the code says")
        return int(bool(different))
    options.directory.mkdir(parents=True, exist_ok=True)
    for name in different:
        path = options.directory / name
        if name in wanted:
            path.write_text(wanted[name], encoding="utf-8")
        else:
            path.unlink()
        print(f"{'wrote' if name in wanted else 'removed'} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
