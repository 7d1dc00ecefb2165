"""Write the packaged table of places from `zone.tab` of the tz database, as the PyPI package `tzdata` has it.

    python scripts/build_places.py --out zoo/data/packaged/places.tsv

One line for each time zone of each country: ISO code of the country, latitude and longitude of the zone's principal place
in degrees, name of the zone. A country's most populous zone stands first.
"""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path


def degrees(text: str) -> float:
    """`+DDMM`, `+DDDMM`, `+DDMMSS` or `+DDDMMSS` (ISO 6709) -> degrees."""
    sign, digits = (-1 if text[0] == "-" else 1), text[1:]
    seconds = int(digits[-2:]) if len(digits) > 5 else 0
    digits = digits[:-2] if len(digits) > 5 else digits
    return sign * round(int(digits[:-2]) + int(digits[-2:]) / 60 + seconds / 3600, 5)


def rows(table: str) -> list[tuple[str, float, float, str]]:
    """Country, latitude, longitude and name of every zone."""
    found = []
    for line in table.splitlines():
        if line and not line.startswith("#"):
            country, place, zone = line.split("\t")[:3]
            latitude, longitude = re.findall(r"[+-]\d+", place)
            found.append((country, degrees(latitude), degrees(longitude), zone))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    places = rows(files("tzdata").joinpath("zoneinfo", "zone.tab").read_text("utf-8"))
    lines = ["\t".join(map(str, row)) for row in [("country", "latitude", "longitude", "zone"), *places]]
    parser.parse_args().out.write_text("\n".join(lines) + "\n", "utf-8")
