"""The folder that `zoo export` wrote: its manifest, files and code, each the one that was exported. Used by `embed.py`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import onnxruntime
from tokenizers import Tokenizer

from .embed_items import EmbedError

FORMAT = 2
_AGAIN = "copy or export the folder again"


class Folder:
    """An export.

    Args:
        path: where it lies.

    Raises:
        EmbedError: no export, one of another format, a file is missing or truncated, or the manifest names one that is no
            file of the export.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _manifest(path)
        try:
            self._check_sizes()
            self.name, self.dim = str(self.manifest["name"]), int(self.manifest["dim"])
            self.processor: dict[str, Any] = self.manifest["processor"]
            self.kind, self.query_views = str(self.processor["kind"]), list(self.processor["query_views"])
            self.graphs: dict[str, Any] = {name: dict(graph) for name, graph in self.manifest["graphs"].items()}
            self.tolerance = float(self.manifest["tolerance"])
            self.golden = str(self.manifest["golden"])
            self.sources, self.images, self.code = self._code()
            self.arrays = self._arrays()
        except (KeyError, TypeError, AttributeError) as error:
            raise EmbedError(
                f"{path / 'manifest.json'} is damaged ({type(error).__name__}: {error}); {_AGAIN}"
            ) from error

    def verify(self) -> None:
        """Raise EmbedError if a file is not the one that was exported (sha256)."""
        for name in self.manifest["files"]:
            self.sound(name)

    def session(
        self, graph: str, options: onnxruntime.SessionOptions, providers: Sequence[Any]
    ) -> onnxruntime.InferenceSession:
        """One graph, ready to run.

        Raises:
            EmbedError: it or its weights were changed, or it can't be loaded; the first provider does not start.
        """
        file = str(self.graphs[graph]["file"])
        path = self.sound(file)
        if f"{file}.data" in self.manifest["files"]:
            self.sound(f"{file}.data")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime has no public base class of its errors
            raise EmbedError(f"{path} can't be loaded by onnxruntime {onnxruntime.__version__}: {error}") from error
        if providers and _name(providers[0]) not in session.get_providers():  # it only warns
            raise EmbedError(
                f"onnxruntime could not start {_name(providers[0])} and would use {session.get_providers()}; see what its "
                "installation lacks, or leave it out of `providers`"
            )
        return session

    def _check_sizes(self) -> None:
        for name, entry in self.manifest["files"].items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise EmbedError(
                    f"{self.path / 'manifest.json'} names the file '{name}', which is no file of the export"
                )
            if not (self.path / name).is_file():
                raise EmbedError(f"{self.path / name} is missing; {_AGAIN}")
            if (self.path / name).stat().st_size != entry["bytes"]:
                raise EmbedError(f"{self.path / name} is truncated or changed; {_AGAIN}")

    def sound(self, name: str) -> Path:
        """The path of a listed file, if that is the one that was exported."""
        if name not in self.manifest["files"]:
            raise EmbedError(f"{self.path / 'manifest.json'} names the file '{name}', which is no file of the export")
        with (self.path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.manifest["files"][name]["sha256"]:
            raise EmbedError(f"{self.path / name} was changed after the export; {_AGAIN}")
        return self.path / name

    # ---- code --------------------------------------------------------------------------------------------------------

    def _code(self) -> tuple[ModuleType, ModuleType, ModuleType]:
        """What reads images, and what turns items into inputs: as the model was trained with."""
        package = f"export_{hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:12]}"  # versions may differ
        sys.modules[package] = ModuleType(package)  # within which they import each other
        modules = [self._module(name, package) for name in self.manifest["images"]]
        return modules[0], modules[-1], self._module(self.processor["code"], package)

    def _module(self, file: str, package: str) -> ModuleType:
        """Run a file of the folder that the manifest lists, if it is the one that was exported."""
        path = self.path / file
        if Path(file).name != file or file not in self.manifest["files"]:
            raise EmbedError(
                f"{self.path / 'manifest.json'} names the code '{file}', which is no file of the export; not run"
            )
        source = path.read_bytes()
        if hashlib.sha256(source).hexdigest() != self.manifest["files"][file]["sha256"]:
            raise EmbedError(f"{path} was changed after the export and is not run; {_AGAIN}")
        name = f"{package}.{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise EmbedError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        exec(
            compile(source, path, "exec"), module.__dict__
        )  # what was compared, and no bytecode that may lie beside it
        return module

    def _arrays(self) -> Any:
        spec, code = self.processor, self.code
        if self.kind == "dual":
            more = {"rendering": code.Rendering(**spec["rendering"])} if "rendering" in spec else {}
            if "places" in spec:
                more["places"] = spec["places"]
            return code.DualArrays(
                self._tokenizer(), code.Picture(**spec["picture"]), code.Caption(**spec["caption"]), **more
            )
        if self.kind != "vlm":
            raise EmbedError(f"{self.path} has a processor of kind '{self.kind}'; use the embed.py that lies in it")
        settings = {key: spec[key] for key in ("position_mode", "padding_side", "max_length", "pad_token")}
        if spec.get("target_template"):
            settings["target_template"] = code.Template(**spec["target_template"])
        return code.VlmArrays(
            self._tokenizer(),
            template=code.Template(**spec["template"]),
            pixels=code.Pixels(**spec["pixels"]),
            **settings,
        )

    def _tokenizer(self) -> Tokenizer | None:
        file = self.processor["tokenizer"]
        if not file:
            return None
        path = self.sound(file)
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust reader raises bare Exception
            raise EmbedError(f"{path} can't be used as tokenizer: {error}") from error


def check_providers(providers: Sequence[Any]) -> None:
    """Raise EmbedError if onnxruntime, as it is installed here, lacks one: it would take another in silence."""
    there = onnxruntime.get_available_providers()
    for provider in providers:
        if _name(provider) not in there:
            raise EmbedError(
                f"onnxruntime has no '{_name(provider)}' here, only {', '.join(there)}; install the build that has it "
                "(CUDA and TensorRT: onnxruntime-gpu)"
            )


def _name(provider: Any) -> str:
    """A provider is a name, or a name and its options."""
    return str(provider if isinstance(provider, str) else provider[0])


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise EmbedError(
            f"{folder} is no export: it has no manifest.json (write one with: zoo export NAME --to {folder})"
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise EmbedError(f"{path} is damaged ({error}); {_AGAIN}") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise EmbedError(f"{path} is damaged (it states no format); {_AGAIN}")
    if manifest["format"] != FORMAT:
        raise EmbedError(f"{folder} has format {manifest['format']}; use the embed.py that lies in it")
    return manifest
