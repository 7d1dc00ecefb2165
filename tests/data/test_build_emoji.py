"""The script that builds the packaged emoji, on a tiny made-up package tree."""

import importlib.util
import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


families = load("emoji_families")
build = load("build_emoji")

# name, code points, subgroup, tones
EMOJI = [
    ("person swimming", "1F3CA", 0, True),
    ("woman swimming", "1F3CA-200D-2640-FE0F", 0, False),
    ("red heart", "2764-FE0F", 1, False),
    ("rocket", "1F680", 2, False),
]


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def packages(tmp_path):
    for number, style in enumerate(build.STYLES):
        folder = tmp_path / f"emoji-datasource-{style}-16.0.0" / "package"
        pictures = folder / "img" / style / "64"
        pictures.mkdir(parents=True)
        (folder / "package.json").write_text("{}")
        bases = []
        for place, (name, code, _, toned) in enumerate(EMOJI):
            skins = {"1F3FB": entry(f"{code}-1F3FB", style)} if toned else {}
            bases.append(entry(code, style) | {"short_name": name.split()[-1], "skin_variations": skins})
            for skin, data in enumerate([bases[-1], *skins.values()]):
                (pictures / data["image"]).write_bytes(png(100 * number + 10 * place + skin))
        bases.append(entry("1F9FF", style) | {"short_name": "amulet", f"has_img_{style}": style == "google"})
        (folder / "emoji.json").write_text(json.dumps(bases))
    folder = tmp_path / "emojibase-data-17.0.0" / "package"
    for language, known in (("en", 5), ("de", 5), ("xx", 2)):
        (folder / language).mkdir(parents=True)
        (folder / language / "data.json").write_text(json.dumps(texts(language)[:known]))
    (folder / "meta").mkdir()
    subgroups = {"0": "person-sport", "1": "heart", "2": "transport-air"}
    (folder / "meta" / "groups.json").write_text(json.dumps({"groups": {"0": "things"}, "subgroups": subgroups}))
    (folder / "package.json").write_text("{}")
    return tmp_path


def entry(code, style):
    return {"unified": code, "image": f"{code.lower()}.png", f"has_img_{style}": True}


def texts(language):
    entries = []
    for order, (name, code, subgroup, toned) in enumerate([*EMOJI, ("amulet", "1F9FF", 2, False)]):
        label = name if language == "en" else f"{language}  {name}"
        one = {"label": label, "hexcode": code, "tags": [f"{language} tag"], "group": 0, "subgroup": subgroup}
        one["order"] = 100 - order
        if toned:
            skin = {**one, "label": f"{label}: light skin tone", "hexcode": f"{code}-1F3FB", "order": 99.5}
            one["skins"] = [{key: value for key, value in skin.items() if key != "tags"}]
        entries.append(one)
    return entries


def test_rows(packages):
    rows = {row["id"]: row for row in build.build_rows(packages)}
    assert list(rows) == ["1f680", "2764", "1f3ca-200d-2640", "1f3ca-1f3fb", "1f3ca"]  # Unicode's order; one is undrawn
    light = rows["1f3ca-1f3fb"]
    assert (light["base"], light["concept"], light["family"]) == ("1f3ca", "swimming", "swimming")
    assert (light["tone"], light["gender"], light["short_name"]) == ("light", "person", "swimming")
    assert light["tags"] == {"de": ["de tag"], "en": ["en tag"]}  # of its base; "xx" is incomplete
    assert rows["1f3ca-200d-2640"]["names"] == {"de": "de woman swimming", "en": "woman swimming"}
    assert rows["1f3ca-200d-2640"]["gender"] == "woman"
    assert rows["2764"]["gender"] is rows["2764"]["tone"] is None
    assert len({row["split"] for row in rows.values() if row["concept"] == "swimming"}) == 1


def test_the_same_packages_give_the_same_bytes(packages, tmp_path, capsys):
    outs = [tmp_path / "one" / "emoji.parquet", tmp_path / "two" / "emoji.parquet"]
    for out in outs:
        assert build.main(["--packages", str(packages), "--out", str(out)]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert "5 emoji, 10 drawings, 2 languages" in capsys.readouterr().out
    table = pq.read_table(outs[0])
    assert table.num_rows == 5
    assert json.loads(table.schema.metadata[b"packages"])["emojibase-data"] == "17.0.0"


def test_missing_package_is_named(packages, tmp_path, capsys):
    (packages / "emojibase-data-17.0.0" / "package" / "package.json").unlink()
    assert build.main(["--packages", str(packages), "--out", str(tmp_path / "emoji.parquet")]) == 1
    assert "unpack emojibase-data 17.0.0 there, or use --fetch" in capsys.readouterr().err


def test_a_download_with_another_checksum_is_refused(tmp_path, capsys):
    (tmp_path / "emoji-datasource-google-16.0.0.tgz").write_bytes(b"not the package")
    assert build.main(["--fetch", str(tmp_path), "--out", str(tmp_path / "emoji.parquet")]) == 1
    assert "delete it and fetch again" in capsys.readouterr().err


def test_a_leak_stops_the_build(packages, tmp_path, capsys, monkeypatch):
    splits = itertools.cycle(["train", "test"])
    monkeypatch.setattr(build, "split_of", lambda family: next(splits))
    assert build.main(["--packages", str(packages), "--out", str(tmp_path / "emoji.parquet")]) == 1
    assert "the split is not strict" in capsys.readouterr().err
    assert not (tmp_path / "emoji.parquet").exists()


def test_quantize_keeps_drawings_nearly_and_alpha_ends_exactly():
    data = png(7)
    before = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    after = np.asarray(Image.open(io.BytesIO(build.quantize(data))).convert("RGBA")).astype(int)
    seen = after[..., 3] > 0
    assert abs(before - after)[seen].max() <= 5
    assert (after[..., 3][before[..., 3] == 255] == 255).all()
    assert (after[..., 3][before[..., 3] == 0] == 0).all()
    assert len(np.unique(after[..., 3])) <= 31


@pytest.mark.parametrize(
    ("name", "subgroup", "expected"),
    [
        ("woman swimming: dark skin tone", "person-sport", ("swimming", "dark", "woman", None, None)),
        ("man: red hair", "person", ("person", None, "man", "red hair", None)),
        ("person: medium-light skin tone, bald", "person", ("person", "medium-light", "person", "bald", None)),
        ("mermaid: light skin tone", "person-fantasy", ("merperson", "light", "woman", None, None)),
        (
            "man walking: medium skin tone, facing right",
            "person-activity",
            ("walking", "medium", "man", None, "right"),
        ),
        (
            "kiss: woman, man, light skin tone, dark skin tone",
            "family",
            ("kiss: woman, man", "light+dark", None, None, None),
        ),
        ("woman’s hat", "clothing", ("woman’s hat", None, None, None, None)),
        ("flag: Isle of Man", "country-flag", ("flag: Isle of Man", None, None, None, None)),
    ],
)
def test_names_are_taken_apart(name, subgroup, expected):
    assert families.take_apart(name, subgroup) == families.Variant(*expected)


def test_family_terms_match_whole_words():
    assert families.family_of("pig nose", "animal-mammal") == "pig"
    assert families.family_of("skateboard", "transport-ground") != "pig"  # "boar"
    assert families.family_of("hot dog", "food-prepared") != families.family_of("guide dog", "animal-mammal")
    assert families.family_of("something new", "other-object") == "something new"


def test_split_shares_follow_the_hash():
    splits = [build.split_of(f"family {i}") for i in range(4000)]
    shares = [splits.count(name) / len(splits) for name in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    assert build.split_of("country flag") == "train"
