#!/usr/bin/env python3
"""Embeds texts and pictures with a folder that `zoo export` wrote, without torch and without the zoo.

python embed.py FOLDER --text "a red fish" --image fish.png --instruction "what is this?"
python embed.py FOLDER --jsonl items.jsonl --side document --out vectors.npy
python embed.py FOLDER --text "a fish" --log-var      # of a probabilistic model: how sure it is, too
python embed.py FOLDER --check

from embed import Embedder
model = Embedder("FOLDER")
scores = model.encode_query(["a red fish"]) @ model.encode_document([Path("fish.png"), Path("cat.png")]).T
means, log_var = model.encode_gaussian(["a red fish"])  # of a probabilistic model
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageOps, UnidentifiedImageError
    from tokenizers import Tokenizer
except ImportError as error:
    raise ImportError(f"embed.py needs {error.name}: pip install onnxruntime numpy pillow tokenizers") from error

FORMAT = 2
Array = np.ndarray[Any, Any]
_VIEWS = {"query": "query", "document": "target"}
_FIELDS = ("text", "image", "images", "instruction", "place")
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MAX_PIXELS = 64_000_000
_ATTENTION_CELLS = 2**26  # the vision graph needs memory for pictures x patches^2 x heads: so many cells at a time


class EmbedError(ValueError):
    """A folder or an item that can't be used; the message says which and why."""


@dataclass(frozen=True)
class Item:
    """One thing to embed. `images` are paths, encoded bytes or PIL images; `place` is latitude and longitude in degrees."""

    text: str | None = None
    images: tuple[Any, ...] = ()
    instruction: str | None = None
    place: tuple[float, float] | None = None


class Embedder:
    """Embeds texts, pictures and mixes of them, and places where the model has an encoder for them.

    One thing to embed is a str (text), a Path, bytes or PIL image (picture), or a dict with any of `text`, `image` (or
    `images`), `place` and `instruction`, in which a str under `image` is a path.

    A model is `probabilistic` if it gives a log-variance beside every value of a vector.

    Args:
        folder: what `zoo export` wrote.
        threads: for onnxruntime; None = all cores.
        providers: onnxruntime's execution providers, first choice first.

    Raises:
        EmbedError: a file of the folder is missing or truncated, its code was changed, or a newer zoo wrote it.
    """

    def __init__(
        self, folder: str | Path, *, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder)
        self.name: str = self.manifest["name"]
        self.dim: int = self.manifest["dim"]
        self.probabilistic: bool = self.manifest.get("probabilistic", False)
        self._outputs = ("embeddings", "log_var") if self.probabilistic else ("embeddings",)
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 3  # errors
        self._options.intra_op_num_threads = threads or 0
        self._providers = list(providers)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._arrays = _arrays(self.folder, self.manifest)
        self._compose = {"vlm": self._of_language_model, "dual": self._of_towers}[self.manifest["processor"]["kind"]]

    def encode_query(self, items: Any, **options: Any) -> Array:
        """`encode` with the prompt of queries."""
        return self.encode(items, side="query", **options)

    def encode_document(self, items: Any, **options: Any) -> Array:
        """`encode` with the prompt of documents (candidates)."""
        return self.encode(items, side="document", **options)

    def encode(
        self, items: Any, *, side: str = "document", instruction: str | None = None, batch_size: int = 32
    ) -> Array:
        """Things -> unit vectors (N, E) float32 in the order given; (E,) for one thing.

        Args:
            items: one thing (see the class) or a list of them.
            side: "query" or "document": whose prompt to use.
            instruction: for items that have none of their own.
            batch_size: how many items run at once.

        Raises:
            EmbedError: an item can't be used; names its position.
        """
        vectors = self._encoded(items, side, instruction, batch_size)[0]
        return vectors[0] if _is_single(items) else vectors

    def encode_gaussian(
        self, items: Any, *, side: str = "document", instruction: str | None = None, batch_size: int = 32
    ) -> tuple[Array, Array]:
        """Things -> unit means and log-variances, both (N, E) float32; N = 1 for one thing. Arguments as of `encode`.

        Raises:
            EmbedError: the model is not probabilistic. Others: as `encode`.
        """
        if not self.probabilistic:
            raise EmbedError(
                f"{self.name} gives vectors without variances: use encode, or export a probabilistic model (one that an "
                "older zoo exported has to be exported again)"
            )
        means, log_var = self._encoded(items, side, instruction, batch_size)
        return means, log_var

    def check(self) -> dict[str, float]:
        """Embed the golden items of the folder: description -> largest difference to the values that torch gave.

        Relative to the largest of them where that is above 1, as log-variances are; infinite for what is not finite.
        """
        items = json.loads((self.folder / self.manifest["golden"]).read_text("utf-8"))
        differences = {}
        for item in items:
            images = tuple(self.folder / image for image in item["images"])
            given = Item(item["text"], images, item["instruction"], tuple(item["place"]) if "place" in item else None)
            expected = [item["vector"], item["log_var"]] if self.probabilistic else [item["vector"]]
            found = self._encoded(given, item["side"], None, 1)[:, 0]
            differences[item["name"]] = max(map(_difference, found, np.array(expected, np.float32)))
        return differences

    def verify_files(self) -> None:
        """Raise EmbedError if a file is not the one that was exported (sha256)."""
        for name, entry in self.manifest["files"].items():
            with (self.folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise EmbedError(
                        f"{self.folder / name} was changed after the export; copy or export the folder again"
                    )

    def _encoded(self, items: Any, side: str, instruction: str | None, batch_size: int) -> Array:
        """(1, N, E) vectors, or (2, N, E) means and log-variances, in the order given."""
        if side not in _VIEWS:
            raise EmbedError(f"side must be 'query' or 'document', not '{side}'")
        things = [items] if _is_single(items) else items
        listed = [_item(thing, instruction, i) for i, thing in enumerate(things)]
        order = sorted(range(len(listed)), key=lambda i: (len(listed[i].images), len(listed[i].text or "")))
        found = np.zeros((len(self._outputs), len(listed), self.dim), np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found[:, rows] = self._embed([listed[row] for row in rows], rows, side)
        return found

    def _embed(self, items: list[Item], rows: list[int], side: str) -> Array:
        images = [[_open(image, f"item {row}") for image in item.images] for item, row in zip(items, rows, strict=True)]
        query = _VIEWS[side] in self.manifest["processor"]["query_views"]
        try:
            places = self._places(items)
            arrays = self._arrays([i.text for i in items], images, [i.instruction for i in items], query, *places)
        except ValueError as error:
            if len(items) == 1:
                raise EmbedError(f"item {rows[0]}: {error}") from error
            for item, row in zip(items, rows, strict=True):
                self._embed([item], [row], side)  # finds the culprit
            raise
        return self._compose(arrays)

    def _places(self, items: Sequence[Item]) -> list[list[tuple[float, float] | None]]:
        """What the arrays are given about places: nothing, where the model can't know any."""
        if self.manifest["processor"]["kind"] == "dual":
            return [[item.place for item in items]]
        if any(item.place is not None for item in items):
            raise ValueError("this model takes no places; leave the place out")
        return []

    def _of_language_model(self, arrays: dict[str, Array]) -> Array:
        """Pictures become features, and a language model reads them with the text."""
        return np.stack(self._run("language", arrays | {"image_features": self._image_features(arrays)}, self._outputs))

    def _of_towers(self, arrays: dict[str, Array]) -> Array:
        """The unit vectors of an item's pictures, texts and places are added up and normalised.

        Variances add up as well, and shrink with the square of the norm that is divided by.
        """
        total = np.zeros((len(arrays["rows"]), self.dim), np.float32)
        log_var = np.full_like(total, -np.inf)  # a sum of variances, kept as its logarithm: no variance is out of range
        for graph in ("image", "text", "place"):
            owner = f"{graph}_rows"
            if owner not in arrays:
                continue
            vectors, *variances = self._run(graph, arrays, self._outputs)
            np.add.at(total, arrays[owner], vectors)
            for values in variances:
                np.logaddexp.at(log_var, arrays[owner], values)
        norm = np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        return np.stack([total / norm, log_var - 2 * np.log(norm)][: len(self._outputs)])

    def _image_features(self, arrays: Mapping[str, Array]) -> Array:
        if "patches" not in arrays:  # text only: one row that no token asks for
            shape = next(
                i["shape"] for i in self.manifest["graphs"]["language"]["inputs"] if i["name"] == "image_features"
            )
            return np.zeros((1, 1, shape[-1]), np.float32)
        count, patches = arrays["patches"].shape[:2]
        step = max(1, _ATTENTION_CELLS // patches**2)
        names = ("patches", "patch_positions", "patch_mask")
        parts = [self._run("vision", {n: arrays[n][i : i + step] for n in names})[0] for i in range(0, count, step)]
        return np.concatenate(parts)

    def _run(self, graph: str, arrays: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """The outputs of these names; None = all."""
        if graph not in self._sessions:  # at first use: a text search never loads the vision graph
            path = self.folder / self.manifest["graphs"][graph]["file"]
            self._sessions[graph] = onnxruntime.InferenceSession(str(path), self._options, providers=self._providers)
        inputs = {entry["name"]: arrays[entry["name"]] for entry in self.manifest["graphs"][graph]["inputs"]}
        result: list[Array] = self._sessions[graph].run(outputs, inputs)
        return result


def _difference(found: Array, expected: Array) -> float:
    """See `Embedder.check`."""
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))


# ---- the folder ------------------------------------------------------------------------------------------------------


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise EmbedError(
            f"{folder} is no export: it has no manifest.json (write one with: zoo export NAME --to {folder})"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise EmbedError(f"{path} is damaged ({error}); copy or export the folder again") from error
    if manifest["format"] != FORMAT:
        raise EmbedError(f"{folder} has format {manifest['format']}; use the embed.py that lies in it")
    for name, entry in manifest["files"].items():
        if not (folder / name).is_file():
            raise EmbedError(f"{folder / name} is missing; copy or export the folder again")
        if (folder / name).stat().st_size != entry["bytes"]:
            raise EmbedError(f"{folder / name} is truncated or changed; copy or export the folder again")
    return manifest


def _arrays(folder: Path, manifest: Mapping[str, Any]) -> Any:
    """What turns items into inputs: the code that the model was trained with; it lies in the folder."""
    spec = manifest["processor"]
    package = (
        f"export_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"  # folders may differ in version
    )
    sys.modules[package] = ModuleType(package)
    _module(folder, manifest["images"], manifest["files"], package)  # which the other one imports
    code = _module(folder, spec["code"], manifest["files"], package)
    if spec["kind"] == "dual":
        tokenizer = Tokenizer.from_file(str(folder / spec["tokenizer"])) if spec["tokenizer"] else None
        more = {"rendering": code.Rendering(**spec["rendering"])} if "rendering" in spec else {}
        if "places" in spec:
            more["places"] = spec["places"]
        return code.DualArrays(tokenizer, code.Picture(**spec["picture"]), code.Caption(**spec["caption"]), **more)
    settings = {key: spec[key] for key in ("position_mode", "padding_side", "max_length", "pad_token")}
    if spec.get("target_template"):
        settings["target_template"] = code.Template(**spec["target_template"])
    return code.VlmArrays(
        Tokenizer.from_file(str(folder / spec["tokenizer"])),
        template=code.Template(**spec["template"]),
        pixels=code.Pixels(**spec["pixels"]),
        **settings,
    )


def _module(folder: Path, file: str, listed: Mapping[str, Any], package: str) -> ModuleType:
    """Run a file of the folder that the manifest lists, if it is the one that was exported."""
    path = folder / file
    if Path(file).name != file or file not in listed:
        raise EmbedError(f"{folder / 'manifest.json'} names the code '{file}', which is no file of the export; not run")
    source = path.read_bytes()
    if hashlib.sha256(source).hexdigest() != listed[file]["sha256"]:
        raise EmbedError(f"{path} was changed after the export and is not run; copy or export the folder again")
    name = f"{package}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise EmbedError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    exec(compile(source, path, "exec"), module.__dict__)  # what was compared, and no bytecode that may lie beside it
    return module


# ---- items -----------------------------------------------------------------------------------------------------------


def _is_single(items: Any) -> bool:
    """Whether this is one thing to embed, and not several."""
    return isinstance(items, str | bytes | Path | Mapping | Item | Image.Image)


def _item(thing: Any, instruction: str | None, position: int) -> Item:
    name = f"item {position}"
    if isinstance(thing, str):
        item = Item(text=thing)
    elif isinstance(thing, Path | bytes | Image.Image):
        item = Item(images=(thing,))
    elif isinstance(thing, Mapping):
        item = _item_of_fields(thing, name)
    elif isinstance(thing, Item):
        item = thing
    else:
        raise EmbedError(f"{name}: a {type(thing).__name__} can't be embedded; give a text, a picture, or a dict")
    if item.text is not None and not item.text.strip():
        raise EmbedError(f"{name}: the text is empty; leave it out for an item without text")
    if item.text is None and not item.images and item.place is None:
        raise EmbedError(f"{name}: neither text nor picture nor place, there is nothing to embed")
    return replace(item, instruction=item.instruction if item.instruction is not None else instruction)


def _item_of_fields(fields: Mapping[str, Any], name: str) -> Item:
    for key in ("text", "instruction"):
        if fields.get(key) is not None and not isinstance(fields[key], str):
            raise EmbedError(f"{name}: '{key}' is a {type(fields[key]).__name__}, not a str")
    unknown = [key for key in fields if key not in _FIELDS]
    if unknown:
        raise EmbedError(f"{name}: unknown field '{unknown[0]}' (there are {', '.join(_FIELDS)})")
    images: list[Any] = []
    for key in ("image", "images"):
        value = fields.get(key)
        if value is not None:
            images += value if isinstance(value, list | tuple) else [value]
    pictures = tuple(Path(image) if isinstance(image, str) else image for image in images)
    return Item(fields.get("text"), pictures, fields.get("instruction"), _place(fields.get("place"), name))


def _place(value: Any, name: str) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = [v for v in value if isinstance(v, int | float)] if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or len(value) != 2:
        raise EmbedError(f"{name}: 'place' is a latitude and a longitude in degrees, e.g. [48.2, 16.4], not {value!r}")
    return float(numbers[0]), float(numbers[1])


def _open(source: Any, name: str) -> Image.Image:
    """A picture as RGB, exactly as in training: turned as its camera noted, transparency on white, first frame."""
    where = f"{name}: picture {source}" if isinstance(source, str | Path) else f"{name}: picture"
    try:
        if isinstance(source, Image.Image):
            return _rgb(source, where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter, and an error
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as picture:
                return _rgb(picture, where)
    except FileNotFoundError as error:
        raise EmbedError(f"{where} does not exist") from error
    except UnidentifiedImageError as error:
        raise EmbedError(f"{where} is not a picture in one of the formats {', '.join(_FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, EmbedError):
            raise
        raise EmbedError(f"{where} can't be read: {error}") from error


def _rgb(picture: Image.Image, where: str) -> Image.Image:
    if picture.width * picture.height > _MAX_PIXELS:
        raise EmbedError(
            f"{where} has {picture.width}x{picture.height} pixels, more than {_MAX_PIXELS}; shrink it first"
        )
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):  # Pillow's own conversion would clip them at 255
        values = np.asarray(picture, np.float64)
        top = 65535.0 if picture.mode != "F" else max(1.0, float(values.max()))
        return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        page = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(page, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


# ---- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("embed.py", description="Embed texts and pictures with an exported folder.")
    parser.add_argument("folder", type=Path, help="what `zoo export` wrote")
    parser.add_argument("--text", help="the text of the item")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], help="a picture of the item; may be repeated"
    )
    parser.add_argument("--instruction", help="what to look for in the item")
    parser.add_argument(
        "--jsonl", type=Path, help="many items: a file of lines with text, image(s), place and instruction"
    )
    parser.add_argument(
        "--side", choices=list(_VIEWS), default="document", help="whose prompt to use (default document)"
    )
    parser.add_argument("--out", type=Path, help="write the vectors here as .npy instead of printing them")
    parser.add_argument(
        "--log-var", action="store_true", help="the log-variances, too: printed, or beside OUT as NAME.log_var.npy"
    )
    parser.add_argument("--threads", type=int, help="processor threads; default all")
    parser.add_argument("--check", action="store_true", help="verify all files and the golden items")
    args = parser.parse_args(arguments)
    try:
        model = Embedder(args.folder, threads=args.threads)
        if args.check:
            return _check(model)
        encode = model.encode_gaussian if args.log_var else model.encode
        found = encode(list(_requested(args)), side=args.side, instruction=args.instruction)
        means, log_var = found if args.log_var else (found, None)
        if args.out is None:
            _print(means, log_var)
        else:
            _write(args.out, means, log_var)
    except (EmbedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _requested(args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    if args.jsonl is None:
        yield {"text": args.text, "images": args.image}
        return
    if args.text is not None or args.image:
        raise EmbedError("give either --jsonl, or --text and --image")
    for number, line in enumerate(args.jsonl.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise EmbedError(f"{args.jsonl}, line {number}: no JSON ({error})") from error
        if not isinstance(fields, dict):
            raise EmbedError(f"{args.jsonl}, line {number}: not an object with any of {', '.join(_FIELDS)}")
        yield fields


def _print(means: Array, log_var: Array | None) -> None:
    """One line of JSON per item: its vector, or an object with both."""
    for row, mean in enumerate(means):
        vector = _rounded(mean)
        print(json.dumps(vector if log_var is None else {"vector": vector, "log_var": _rounded(log_var[row])}))


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 7) for value in values]


def _write(out: Path, means: Array, log_var: Array | None) -> None:
    """The vectors as `out`, the log-variances beside it (X.npy, X.log_var.npy)."""
    beside = out.with_name(f"{out.stem}.log_var{out.suffix}")
    for path, values in ((beside, log_var), (out, means)):
        if values is not None:
            with path.open("wb") as file:  # np.save would append .npy to another name
                np.save(file, values)
    more = "" if log_var is None else f"; their log-variances: {beside}"
    print(f"{out}: {len(means)} vectors of {means.shape[1]} values{more}")


def _check(model: Embedder) -> int:
    model.verify_files()
    differences = model.check()
    allowed: float = model.manifest["tolerance"]
    for name, difference in differences.items():
        print(f"{difference:.1e}  {name}")
    worst = max(differences.values())
    print(f"{model.name}: largest difference to torch {worst:.1e}, allowed {allowed:.0e}")
    return 0 if worst <= allowed else 1


if __name__ == "__main__":
    sys.exit(main())
