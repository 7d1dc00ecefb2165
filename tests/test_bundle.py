"""A bundle comes back as it went, is written whole or not at all, and is refused when anything in it changed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
import yaml

from zoo import bundle as bundles
from zoo.bundle import MANIFEST, WEIGHTS, clear_leftovers, is_bundle, read_bundle, write_bundle
from zoo.errors import RecipeError, WeightsError, ZooError
from zoo.weights import sha256


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A bundle of the toy."""
    module = toy.build(tmp_path)
    return write_bundle(module, toy.recipe(tmp_path), tmp_path / "released", metrics={"val/recall@10": 0.5})


def test_round_trip_keeps_every_tensor(written: Path, tmp_path: Path) -> None:
    state = read_bundle(written).state()
    module = toy.build(tmp_path)
    for key, value in module.state_dict().items():
        if key != "tied.weight":
            assert torch.equal(state[key], value)


def test_tied_tensors_are_stored_once_and_views_of_one_storage_apart(tmp_path: Path) -> None:
    module = toy.build(tmp_path)
    storage = torch.arange(12.0)
    module.register_buffer("first", storage[:6])
    module.register_buffer("second", storage[6:])
    state = read_bundle(write_bundle(module, toy.recipe(tmp_path), tmp_path / "b")).state()
    assert "tied.weight" not in state
    assert state["first"].tolist() == list(range(6)) and state["second"].tolist() == list(range(6, 12))


def test_objective_travels_along(tmp_path: Path) -> None:
    module = toy.build(tmp_path)
    module.objective = torch.nn.Linear(1, 1)
    assert "objective.weight" in read_bundle(write_bundle(module, toy.recipe(tmp_path), tmp_path / "b")).state()


def test_recipe_points_into_the_bundle_wherever_it_is_moved(written: Path, tmp_path: Path) -> None:
    stored = yaml.safe_load((written / "recipe.yaml").read_text("utf-8"))
    assert stored["model"]["init_args"]["processor"]["init_args"]["words"] == "bundle:words.json"
    moved = written.rename(tmp_path / "elsewhere")
    words = read_bundle(moved).recipe["model"]["init_args"]["processor"]["init_args"]["words"]
    assert Path(words) == moved / "words.json"


def test_processor_named_by_class_alone_gets_its_arguments(tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path)
    recipe["model"]["init_args"]["processor"] = "toy.ToyProcessor"
    folder = write_bundle(toy.build(tmp_path), recipe, tmp_path / "b")
    assert yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))["model"]["init_args"]["processor"] == {
        "class_path": "toy.ToyProcessor",
        "init_args": {"words": "bundle:words.json"},
    }


def test_recipe_without_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="names no processor"):
        write_bundle(toy.build(tmp_path), {"model": {"class_path": "toy.ToyEncoder"}}, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_same_model_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    again = write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / "again", name="released")
    assert sha256(again / WEIGHTS) == sha256(written / WEIGHTS)
    assert (again / "recipe.yaml").read_bytes() == (written / "recipe.yaml").read_bytes()


def test_card_states_facts(written: Path) -> None:
    text = (written / "README.md").read_text("utf-8")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    for fact in ("A toy.\n", "| val/recall@10 | 0.5000 |", "zoo.load(", "parameters: 52"):
        assert fact in body
    manifest = json.loads((written / MANIFEST).read_text("utf-8"))
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_nested_results_become_rows(tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path)
    recipe["card"]["results"] = {"emoji test": {"text_to_image": {"recall@1": 0.04}}, "seconds": 3}
    text = (write_bundle(toy.build(tmp_path), recipe, tmp_path / "b") / "README.md").read_text("utf-8")
    assert "| emoji test, text_to_image, recall@1 | 0.0400 |\n| seconds | 3 |" in text


def test_half_precision_halves_matrices_and_spares_the_rest(tmp_path: Path) -> None:
    module = toy.build(tmp_path)
    state = read_bundle(write_bundle(module, toy.recipe(tmp_path), tmp_path / "b", dtype="float16")).state()
    assert state["linear.weight"].dtype == torch.float16 and state["linear.bias"].dtype == torch.float32
    torch.testing.assert_close(state["linear.weight"].float(), module.linear.weight.detach(), atol=1e-3, rtol=1e-3)


def test_a_value_that_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    module = toy.build(tmp_path)
    module.linear.weight.data[0, 0] = 1e6
    with pytest.raises(WeightsError, match=r"'linear\.weight' does not fit into float16.*1e\+06"):
        write_bundle(module, toy.recipe(tmp_path), tmp_path / "b", dtype="float16")


def test_an_earlier_bundle_is_replaced_but_no_other_folder(written: Path, tmp_path: Path) -> None:
    before = read_bundle(written).digest
    write_bundle(toy.build(tmp_path, seed=1), toy.recipe(tmp_path), written)
    assert read_bundle(written).digest != before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    with pytest.raises(ZooError, match="no bundle"):
        write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), precious)
    assert [p.name for p in precious.iterdir()] == ["thesis.txt"]


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [WEIGHTS, "recipe.yaml", "words.json", "README.md"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_every_damaged_file_is_named(written: Path, name: str, damage: str) -> None:
    path = written / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(WeightsError, match=name):
        read_bundle(written)


def test_every_single_bit_of_a_short_weight_file_counts(written: Path) -> None:
    path = written / WEIGHTS
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(WeightsError, match=WEIGHTS):
            read_bundle(written)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.clear(), "damaged"),
        (lambda m: m["files"].pop(WEIGHTS), f"does not list '{WEIGHTS}'"),
        (lambda m: m["files"].pop("words.json"), "needs 'words.json'"),
        (lambda m: m["files"].update({"../outside": {"sha256": "0"}}), "outside the bundle"),
        (lambda m: m.update(format=99), "upgrade"),
        (lambda m: m.update(files=[1]), "damaged"),
        (lambda m: m.update(kept_elsewhere=[1]), "damaged"),
        (lambda m: m.update(kept_elsewhere="text"), "damaged"),
        (lambda m: m.update(name="\x1b[2J"), "name that can't be shown"),
        (lambda m: m.update(name="a" * 5000), "name that can't be shown"),
    ],
)
def test_manifests_that_lie_are_refused(written: Path, edit: object, message: str) -> None:
    manifest = json.loads((written / MANIFEST).read_text("utf-8"))
    edit(manifest)  # type: ignore[operator]
    (written / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(WeightsError, match=message):
        read_bundle(written)


def rewrite_recipe(bundle: Path, text: str) -> None:
    """Another recipe in a bundle whose manifest vouches for it."""
    (bundle / "recipe.yaml").write_text(text, "utf-8")
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    manifest["files"]["recipe.yaml"]["sha256"] = sha256(bundle / "recipe.yaml")
    (bundle / MANIFEST).write_text(json.dumps(manifest), "utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {a: 1}\nmodel: {b: 2}\n", r"recipe\.yaml is no valid YAML: .*'model' stands twice"),
        ("model: [", r"recipe\.yaml is no valid YAML"),
        ("- model", r"recipe\.yaml is no recipe"),
        ("card: {}", r"recipe\.yaml has no `model:` mapping"),
        ("card: [1]\nmodel: {class_path: X}", r"recipe\.yaml has a `card:` that is no mapping"),
    ],
)
def test_a_recipe_that_is_none_is_named(written: Path, text: str, message: str) -> None:
    rewrite_recipe(written, text)
    with pytest.raises(RecipeError, match=message):
        read_bundle(written)


def test_numbers_mean_what_they_mean_in_every_recipe(written: Path) -> None:
    """YAML 1.1 alone reads 1e-3 as text and a date as no text."""
    text = (written / "recipe.yaml").read_text("utf-8")
    rewrite_recipe(written, f"{text}data: {{rate: 1e-3, day: 2026-11-24}}\n")
    assert read_bundle(written).recipe["data"] == {"rate": 0.001, "day": "2026-11-24"}


def test_half_a_manifest_and_none(written: Path) -> None:
    path = written / MANIFEST
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(WeightsError, match="damaged"):
        read_bundle(written)
    path.unlink()
    assert not is_bundle(written)
    with pytest.raises(WeightsError, match="no bundle"):
        read_bundle(written)


# ---- whole or not at all ---------------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    """What lies in `folder` besides the toy's word list."""
    return sorted(p.name for p in folder.iterdir() if p.name != "words.json")


def test_no_space_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    module, recipe = toy.build(tmp_path), toy.recipe(tmp_path)
    monkeypatch.setattr(bundles, "card_text", full)  # in the middle: the weights are already there
    with pytest.raises(WeightsError, match=r"no space left.*released.*another disk.*Nothing was left"):
        write_bundle(module, recipe, tmp_path / "released")
    assert leftovers(tmp_path) == []


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(bundles.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WeightsError, match=r"no space left.*MB needed"):
        write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / "released")
    assert leftovers(tmp_path) == []


def test_failing_to_replace_keeps_the_earlier_bundle(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_bundle(written).digest

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundles, "card_text", full)
    with pytest.raises(WeightsError):
        write_bundle(toy.build(tmp_path, seed=1), toy.recipe(tmp_path), written)
    assert read_bundle(written).digest == before
    assert leftovers(tmp_path) == ["released"]


class Killed(BaseException):
    """Stands for a kill at that moment."""


def killed(*_: object, **__: object) -> None:
    raise Killed


def test_a_kill_while_replacing_leaves_the_new_bundle(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two change places at once."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs renameat2")
    before = read_bundle(written).digest
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        write_bundle(toy.build(tmp_path, seed=1), toy.recipe(tmp_path), written)
    assert read_bundle(written).digest != before
    assert leftovers(tmp_path) == ["released"]


def second_rename(monkeypatch: pytest.MonkeyPatch, how: BaseException) -> None:
    """As on a disk that can't exchange two folders; the second renaming does not happen."""
    rename, calls = Path.rename, [0]

    def counted(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == 2:
            raise how
        return rename(self, target)

    monkeypatch.setattr(bundles, "_exchanged", lambda *_: False)
    monkeypatch.setattr(Path, "rename", counted)


def test_failing_to_rename_puts_the_earlier_bundle_back(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_bundle(written).digest
    second_rename(monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(WeightsError, match="can't be written"):
        write_bundle(toy.build(tmp_path, seed=1), toy.recipe(tmp_path), written)
    assert read_bundle(written).digest == before
    assert leftovers(tmp_path) == ["released"]


def test_a_kill_between_two_renamings_is_undone(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_bundle(written).digest
    with monkeypatch.context() as patch:
        second_rename(patch, Killed())
        with pytest.raises(Killed):
            write_bundle(toy.build(tmp_path, seed=1), toy.recipe(tmp_path), written)
    (tmp_path / ".released.1.partial").mkdir()
    clear_leftovers(written)
    assert read_bundle(written).digest == before
    assert leftovers(tmp_path) == ["released"]


REAL_DISK = """
import sys, resource, signal
from pathlib import Path
import toy
from zoo.bundle import write_bundle
from zoo.errors import WeightsError
folder = Path(sys.argv[1])
module = toy.build(folder, width=20_000)
recipe = toy.recipe(folder)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_bundle(module, recipe, folder / "released")
except WeightsError as error:
    print("REFUSED", error)
print(sorted(p.name for p in folder.iterdir()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_a_write_that_the_system_really_stops(tmp_path: Path) -> None:
    """The weight file may not grow beyond 100 kB: safetensors itself fails in the middle."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", REAL_DISK, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert "REFUSED no space left to write" in done.stdout, done.stdout + done.stderr
    assert done.stdout.strip().endswith("['words.json']")


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    module, recipe = toy.build(tmp_path), toy.recipe(tmp_path)
    monkeypatch.setattr(bundles, "card_text", refused)
    with pytest.raises(WeightsError, match="can't be written"):
        write_bundle(module, recipe, tmp_path / "released")
