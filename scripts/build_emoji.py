"""Build the packaged emoji data set from three npm packages.

    python scripts/build_emoji.py --packages DIR --out zoo/data/packaged/emoji.parquet
    python scripts/build_emoji.py --fetch DIR    --out zoo/data/packaged/emoji.parquet

`--packages DIR` reads packages that lie unpacked in `DIR/<name>-<version>/package`; `--fetch DIR` first gets them there
with `npm pack` and compares their sha512 with the one pinned below. The same packages, Pillow and pyarrow give the same
bytes.

One row is one emoji with both of its drawings:

    id       code points in lower case, joined by "-", the variation selector FE0F dropped: "1f3ca-1f3fb-200d-2642"
    base     id of the emoji without skin tone                    name_en  English name, as in names.en
    concept  the name without tone, gender, hair and direction    family   see `emoji_families.py`
    split    train, val or test, by family                        group, subgroup   Unicode's own categories
    tone     light ... dark, two joined by "+" for two people     gender   woman, man, person
    hair     red hair, curly hair ... beard                       direction   right (the plain variant looks left)
    short_name   the English name of the base in the drawing packages, as in :swimmer:
    google, twitter   64 x 64 drawing with alpha, lossless WebP of the drawing with 31 levels a channel (`quantize`)
    names    language -> name                                     tags   language -> keywords

Split: strict. A family is wholly in one split, by a hash of its name: 70 % train, 10 % val, 20 % test of the families.
The national flags are the one family that is put (into train) and not drawn: nothing in the picture of an unseen flag
says which country it is, so as test queries they would only measure chance, and they are 14 % of the untoned emoji.
"""

from __future__ import annotations

import argparse
import base64
import collections
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from emoji_families import PERSON_SUBGROUPS, Variant, family_of, take_apart

PACKAGES = {
    "emoji-datasource-google": (
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "emoji-datasource-twitter": (
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "emojibase-data": (
        "17.0.0",
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
}
STYLES = ("google", "twitter")
LEVELS = 30  # ours: 31 levels a channel, 12 instead of 20 MB; 44 dB on white on average, peak error 8 of 255
# Picked among a few hundred for shares near 70/10/20 in emoji, in bases and in each group, with the plain `person`
# family in train and `direction` on both sides; picked from these counts alone, before any training.
SPLIT_SALT = "emoji-20"
TRAIN_ONLY = frozenset({"country flag"})

Row = dict[str, Any]


class BuildError(Exception):
    """The packages are not what this script expects."""


def emoji_id(code_points: str) -> str:
    """Lower case without the variation selector: 1F3CA-200D-2642-FE0F -> 1f3ca-200d-2642."""
    return "-".join(point for point in code_points.lower().split("-") if point != "fe0f")


def package_folder(root: Path, name: str) -> Path:
    """Folder of one unpacked package under `root`."""
    folder = root / f"{name}-{PACKAGES[name][0]}" / "package"
    if not (folder / "package.json").is_file():
        raise BuildError(f"{folder} is missing: unpack {name} {PACKAGES[name][0]} there, or use --fetch")
    return folder


def fetch(root: Path) -> None:
    """Get the pinned packages with `npm pack`, check their sha512, and unpack them under `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for name, (version, integrity) in PACKAGES.items():
        archive = root / f"{name}-{version}.tgz"
        if not archive.is_file():
            subprocess.run(["npm", "pack", f"{name}@{version}", "--pack-destination", str(root)], check=True)
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != integrity:
            raise BuildError(f"{archive} has sha512 {found}, expected {integrity}: delete it and fetch again")
        with tarfile.open(archive) as tar:
            tar.extractall(root / f"{name}-{version}", filter="data")


def read_drawings(root: Path, style: str) -> dict[str, tuple[Path, str]]:
    """Emoji id -> (picture file, short name of its base) for one style; only emoji that have their own drawing."""
    folder = package_folder(root, f"emoji-datasource-{style}")
    drawings: dict[str, tuple[Path, str]] = {}
    for base in json.loads((folder / "emoji.json").read_text("utf-8")):
        for entry in (base, *(base.get("skin_variations") or {}).values()):
            if entry[f"has_img_{style}"]:
                picture = folder / "img" / style / "64" / entry["image"]
                drawings[emoji_id(entry["unified"])] = (picture, base["short_name"])
    return drawings


def read_language(folder: Path, language: str) -> dict[str, Row]:
    """Emoji id -> its emojibase entry, skins included, with the fields that skins inherit from their base filled in."""
    entries: dict[str, Row] = {}
    for base in json.loads((folder / language / "data.json").read_text("utf-8")):
        for entry in (base, *base.get("skins", ())):
            inherited = {"tags": base.get("tags", []), "base": emoji_id(base["hexcode"])}
            entries[emoji_id(entry["hexcode"])] = {**inherited, **entry}
    return entries


def complete_languages(folder: Path, ids: list[str]) -> dict[str, dict[str, Row]]:
    """The languages of emojibase in which every emoji of `ids` has a name."""
    languages = {}
    for path in sorted(folder.glob("*/data.json")):
        entries = read_language(folder, path.parent.name)
        if all(entries.get(key, {}).get("label") for key in ids):
            languages[path.parent.name] = entries
    return languages


def quantize(png: bytes) -> bytes:
    """A drawing as lossless WebP with 31 levels a channel, alpha included; invisible pixels are cleared."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(np.int64)
    if pixels.shape != (64, 64, 4):
        raise BuildError(f"expected a 64 x 64 drawing, got {pixels.shape[1]} x {pixels.shape[0]}")
    levels = (pixels * LEVELS + 127) // 255
    values = (levels * 255 + LEVELS // 2) // LEVELS
    values[values[..., 3] == 0] = 0
    out = io.BytesIO()
    Image.fromarray(values.astype(np.uint8), "RGBA").save(out, "WEBP", lossless=True, quality=80, method=4)
    return out.getvalue()


def split_of(family: str) -> str:
    """The split that a family belongs to."""
    if family in TRAIN_ONLY:
        return "train"
    digest = hashlib.sha256(f"{SPLIT_SALT}/{family}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


def clean(text: str) -> str:
    """One line of text in the composed form."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _genders(variants: dict[str, Variant]) -> dict[str, str | None]:
    """Gender per id. `person` only where the concept also has a man or a woman: else there is nothing to tell apart."""
    gendered = {v.concept for v in variants.values() if v.gender in ("woman", "man")}
    return {
        key: (v.gender or ("person" if v.concept in gendered else None)) if v.concept in gendered else None
        for key, v in variants.items()
    }


def build_rows(root: Path) -> Iterator[Row]:
    """One dict per emoji, in Unicode's own order."""
    drawings = {style: read_drawings(root, style) for style in STYLES}
    folder = package_folder(root, "emojibase-data")
    english = read_language(folder, "en")
    categories = json.loads((folder / "meta" / "groups.json").read_text("utf-8"))
    ids = [key for key in english if all(key in drawings[style] for style in STYLES)]
    ids.sort(key=lambda key: english[key]["order"])
    languages = complete_languages(folder, ids)
    subgroups = {key: categories["subgroups"][str(english[key]["subgroup"])] for key in ids}
    variants = {key: take_apart(clean(english[key]["label"]), subgroups[key]) for key in ids}
    genders = _genders({key: v for key, v in variants.items() if subgroups[key] in PERSON_SUBGROUPS})
    for key in ids:
        family = family_of(variants[key].concept, subgroups[key])
        yield {
            "id": key,
            "base": english[key]["base"],
            "name_en": clean(english[key]["label"]),
            "concept": variants[key].concept,
            "family": family,
            "split": split_of(family),
            "group": categories["groups"][str(english[key]["group"])],
            "subgroup": subgroups[key],
            "tone": variants[key].tone,
            "gender": genders.get(key),
            "hair": variants[key].hair,
            "direction": variants[key].direction,
            "short_name": drawings["google"][key][1],
            **{style: quantize(drawings[style][key][0].read_bytes()) for style in STYLES},
            "names": {language: clean(entries[key]["label"]) for language, entries in languages.items()},
            "tags": {language: [clean(t) for t in entries[key]["tags"]] for language, entries in languages.items()},
        }


def write(rows: list[Row], out: Path) -> None:
    """Write the rows as one zstd parquet file, small columns in a dictionary, pictures as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    languages = list(rows[0]["names"])
    text = [key for key, value in rows[0].items() if key not in (*STYLES, "names", "tags")]
    schema = pa.schema(
        [(key, pa.string()) for key in text]
        + [(style, pa.binary()) for style in STYLES]
        + [
            ("names", pa.struct([(language, pa.string()) for language in languages])),
            ("tags", pa.struct([(language, pa.list_(pa.string())) for language in languages])),
        ],
        metadata={
            "packages": json.dumps({name: version for name, (version, _) in PACKAGES.items()}),
            "styles": json.dumps(STYLES),
            "languages": json.dumps(languages),
            "licence": "google: Apache-2.0; twitter: CC-BY-4.0; text: Unicode-3.0 and MIT. See emoji-NOTICE.md",
        },
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out, compression="zstd", compression_level=19, use_dictionary=True, row_group_size=len(rows))


def leaks(rows: list[Row]) -> list[str]:
    """Every way in which a near-copy crosses the split: shared family, base, concept, or picture."""
    found = []
    for what in ("family", "base", "concept", *STYLES):
        splits: dict[Any, set[str]] = collections.defaultdict(set)
        for row in rows:
            value = row[what].casefold() if isinstance(row[what], str) else row[what]
            splits[value].add(row["split"])
        found += [f"{what} {value!r:.60} is in {sorted(in_)}" for value, in_ in splits.items() if len(in_) > 1]
    return found


def report(rows: list[Row]) -> str:
    """Counts of a build, one line each."""
    lines = [f"{len(rows)} emoji, {len(rows) * len(STYLES)} drawings, {len(rows[0]['names'])} languages"]
    for split in ("train", "val", "test"):
        part = [row for row in rows if row["split"] == split]
        families, bases = {row["family"] for row in part}, {row["base"] for row in part}
        share = 100 * len(part) / len(rows)
        lines.append(f"{split:5} {len(part):5} emoji ({share:.1f} %), {len(bases)} bases, {len(families)} families")
    for field in ("group", "tone", "gender", "hair", "direction"):
        counts = collections.Counter(row[field] for row in rows if row[field] and not re.search(r"\+", row[field]))
        lines.append(f"{field}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--packages", type=Path, metavar="DIR", help="folder with the unpacked packages")
    where.add_argument("--fetch", type=Path, metavar="DIR", help="get the packages into this folder first")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    args = parser.parse_args(argv)
    try:
        if args.fetch:
            fetch(args.fetch)
        rows = list(build_rows(args.fetch or args.packages))
        if problems := leaks(rows):
            raise BuildError("the split is not strict:\n  " + "\n  ".join(problems))
    except BuildError as error:
        print(f"build_emoji: {error}", file=sys.stderr)
        return 1
    write(rows, args.out)
    print(report(rows))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
