#!/usr/bin/env python3
"""Make the board's vendored files anew: ``echarts.min.js``, its licences and ``world.json``.

Wanted in one folder: ``npm pack echarts@6.1.0 world-atlas@2.0.2`` (checked by SHA-256), and Debian's package iso-codes.
The map is Natural Earth's (public domain) at 1:110 million as GeoJSON (RFC 7946), with ISO 3166-1 codes for names.

    vendored.py FOLDER [SITE]
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

PACKAGES = {
    "echarts-6.1.0.tgz": "681aff88cc1038c3fa941a3a53d1b177a52250b05335efc607d6105ae13be481",
    "world-atlas-2.0.2.tgz": "032e7765f2ce00edaeafec23ff22bc3b77e42987c257da944cc585b452c05b97",
}
COPIES = {
    "dist/echarts.min.js": "echarts.min.js",
    "LICENSE": "licenses/echarts-LICENSE",
    "NOTICE": "licenses/echarts-NOTICE",
    "licenses/LICENSE-d3": "licenses/echarts-LICENSE-d3",
}
ISO_3166 = Path("/usr/share/iso-codes/json/iso_3166-1.json")


def member(folder: Path, package: str, path: str) -> bytes:
    """One file of a package.

    :raises ValueError: when the package is not the one that is pinned.
    """
    archive = folder / package
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != PACKAGES[package]:
        raise ValueError(f"{archive} has the SHA-256 {found}; {PACKAGES[package]} is wanted")
    with tarfile.open(archive) as files:
        file = files.extractfile(f"package/{path}")
        assert file is not None
        return file.read()


def arcs(topology: dict[str, Any]) -> list[list[list[float]]]:
    """The lines of a TopoJSON topology: quantised differences become degrees of longitude and latitude."""
    (scale_x, scale_y), (left, bottom) = topology["transform"]["scale"], topology["transform"]["translate"]
    lines = []
    for arc in topology["arcs"]:
        x = y = 0
        line = []
        for dx, dy in arc:
            x, y = x + dx, y + dy
            line.append([x * scale_x + left, y * scale_y + bottom])
        lines.append(line)
    return lines


def ring(numbers: list[int], lines: list[list[list[float]]]) -> list[list[float]]:
    """A closed line out of arcs; a negative number is an arc that is walked backwards."""
    points: list[list[float]] = []
    for number in numbers:
        line = lines[number] if number >= 0 else lines[~number][::-1]
        points += line[1:] if points else line
    return [[round(x, 2), round(y, 2)] for x, y in points]


def unfolded(polygon: list[list[list[float]]]) -> list[list[list[float]]]:
    """A polygon over the antimeridian in one piece; it would be drawn right across the map."""
    across = [x for line in polygon for x, _ in line]
    if max(across) > 150 and min(across) < -150:
        return [[[x + 360 if x < 0 else x, y] for x, y in line] for line in polygon]
    return polygon


def world(topology: dict[str, Any], codes: dict[str, str]) -> dict[str, Any]:
    """All countries but Antarctica; a territory without an ISO code keeps an empty name and so never has figures."""
    lines, features = arcs(topology), []
    for country in topology["objects"]["countries"]["geometries"]:
        if country["properties"]["name"] == "Antarctica":
            continue
        polygons = [country["arcs"]] if country["type"] == "Polygon" else country["arcs"]
        shape = [unfolded([ring(numbers, lines) for numbers in polygon]) for polygon in polygons]
        features.append(
            {
                "type": "Feature",
                "properties": {"name": codes.get(country.get("id", ""), "")},
                "geometry": {"type": "MultiPolygon", "coordinates": shape},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def main(folder: Path, site: Path) -> None:
    for path, name in COPIES.items():
        (site / name).write_bytes(member(folder, "echarts-6.1.0.tgz", path))
    (site / "licenses/world-atlas-LICENSE").write_bytes(member(folder, "world-atlas-2.0.2.tgz", "LICENSE"))
    codes = {country["numeric"]: country["alpha_2"] for country in json.loads(ISO_3166.read_text())["3166-1"]}
    topology = json.loads(member(folder, "world-atlas-2.0.2.tgz", "countries-110m.json"))
    (site / "world.json").write_text(json.dumps(world(topology, codes), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).resolve().parents[1] / "site")
