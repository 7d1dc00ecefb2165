"""The import rules of the zoo, read from the source: who may know whom, and where foreign libraries may be called.

Kept here, not in people's heads: `types <- nn <- objectives <- module <- architectures <- loading <- commands <- cli`;
`types <- data`; `types <- similarity <- objectives, metrics`; `types <- metrics <- callbacks`; `types <- export`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import zoo

PACKAGE = Path(zoo.__file__).parent
EVERYONE = {"errors", "types"}  # may be imported by all

# area (a module or package right below zoo/) -> the areas it may import besides EVERYONE
MAY_IMPORT: dict[str, set[str]] = {
    # names, files, messages: no torch
    "errors": set(),
    "types": set(),
    "ahead": set(),
    "progress": set(),
    "machine": set(),
    "tables": set(),
    "card": set(),
    "kinds": set(),
    "parsing": {"kinds"},
    "registry": set(),
    "trust": {"registry"},
    "hub": set(),
    "weights": {"hub"},
    "files": {"weights"},
    "locks": {"files"},
    "recipe": {"hub"},
    "catalog": {"files", "recipe", "registry"},
    "availability": {"recipe", "weights"},
    # tensors
    "distributed": set(),
    "convert": {"weights"},
    "nn": {"convert", "weights"},
    "similarity": set(),
    "objectives": {"similarity"},
    "metrics": {"similarity"},
    "data": {"distributed", "files", "locks", "machine", "progress", "tables", "trust"},
    # models
    "rows": {"distributed"},
    "module": {"data", "distributed", "nn", "objectives", "rows", "weights"},
    "architectures": {"data", "module", "nn", "objectives", "registry"},
    "latents": {"ahead", "data", "locks", "nn", "progress"},
    "callbacks": {
        "data",
        "distributed",
        "files",
        "latents",
        "locks",
        "machine",
        "metrics",
        "progress",
        "recipe",
        "weights",
    },
    # use
    "comparison": {"bundle", "callbacks", "catalog", "files", "metrics", "progress", "recipe"},
    "bundle": {"card", "recipe", "weights"},
    "export": {"bundle", "data", "files", "machine", "progress", "weights"},
    "items": {"data"},
    "identity": {"files", "registry", "weights"},
    "embedder": {"ahead", "bundle", "files", "identity", "items", "progress", "similarity", "weights"},
    "vectors": {"data", "embedder", "files", "identity", "locks", "metrics", "progress", "weights"},
    "building": {"module", "parsing", "registry", "trust"},
    "loading": {"building", "bundle", "catalog", "convert", "embedder", "hub", "module", "recipe", "trust", "weights"},
    "command_line": {"bundle", "catalog", "files", "loading", "recipe"},
}
# these put everything together, so they may import all but the commands
ASSEMBLY = {"testing", "evaluation", "serving"}
# ... and these may import each other's neighbours too, but nothing imports them
TOP = {"commands", "cli"}

FOREIGN = {"timm", "open_clip", "transformers", "peft", "sentence_transformers"}
LIGHT = (
    "__init__",
    "availability",
    "catalog",
    "cli",
    "errors",
    "files",
    "hub",
    "recipe",
    "registry",
    "tables",
    "types",
)
LIGHT += ("weights",)


@dataclass(frozen=True)
class Import:
    """One import of `target` (a dotted module) in the file `module` (dotted, below zoo), at `line`."""

    module: str
    target: str
    line: int
    late: bool  # inside a function
    typing: bool  # under `if TYPE_CHECKING`

    @property
    def area(self) -> str:
        return self.module.partition(".")[0]

    @property
    def target_area(self) -> str:
        """Area of zoo that is imported; empty for the package itself and for everything else."""
        top, _, rest = self.target.partition(".")
        return rest.partition(".")[0] if top == "zoo" else ""

    @property
    def library(self) -> str:
        """Third-party library that is imported, or empty."""
        top = self.target.partition(".")[0]
        return "" if top == "zoo" or top in sys.stdlib_module_names else top

    def __str__(self) -> str:
        return f"zoo/{self.module.replace('.', '/')}.py:{self.line} imports {self.target}"


def imports_of(module: str, source: str) -> list[Import]:
    """All imports of one file. `module` is its dotted name below zoo, e.g. `nn.pooling`."""
    found: list[Import] = []

    def visit(node: ast.AST, late: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, node.lineno, late, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            beside = node.level == 1 and module.endswith("_arrays")  # exported together, without the zoo around them
            assert beside or node.level == 0, (
                f"zoo/{module.replace('.', '/')}.py:{node.lineno}: write the import in full"
            )
            source = f"zoo.{module.rpartition('.')[0]}.{node.module}" if beside else node.module
            for alias in node.names:
                assert alias.name != "*", f"zoo/{module.replace('.', '/')}.py:{node.lineno}: name what is imported"
                found.append(Import(module, f"{source}.{alias.name}", node.lineno, late, typing))
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            in_else = isinstance(node, ast.If) and child in node.orelse
            visit(child, late or is_function, typing or (is_typing and not in_else))

    visit(ast.parse(source), False, False)
    return found


def modules() -> Iterator[tuple[str, str]]:
    """Dotted name below zoo and source of every file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "__pycache__" in path.parts or path.is_relative_to(PACKAGE / "_exports"):
            continue
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts), path.read_text("utf-8")


# ---- the rules: each gives the imports that break it -----------------------------------------------------------------


def against_layers(found: list[Import]) -> list[Import]:
    """Areas import only what MAY_IMPORT grants. (Imports for types alone tie nothing together at run time.)"""
    return [i for i in found if i.target_area and not i.typing and not _granted(i)]


def _granted(i: Import) -> bool:
    if i.target_area == i.area or i.target_area in EVERYONE or i.area in TOP | {"__init__"}:
        return True
    if i.target_area in TOP | ASSEMBLY:
        return False
    return i.area in ASSEMBLY or i.target_area in MAY_IMPORT.get(i.area, set())


def against_siblings(found: list[Import]) -> list[Import]:
    """Architectures never import one another; commands neither."""
    return [
        i
        for i in found
        if i.area in ("architectures", "commands")
        and i.target.startswith(f"zoo.{i.area}.")
        and not f"{i.target}.".startswith(f"zoo.{i.module}.")
    ]


def against_pure_math(found: list[Import]) -> list[Import]:
    """Objectives, similarities and metrics know torch and nothing else, and never ask how many processes there are."""
    allowed = {
        "objectives": {"torch"},
        "similarity": {"torch"},
        "metrics": {"torch", "torchmetrics"},
        "metrics.functional": {"torch"},
    }
    wrong = []
    for i in found:
        libraries = allowed.get(i.module, allowed.get(i.area))
        if libraries is not None and not i.typing:
            foreign = i.library and i.library not in libraries
            distributed = i.target.startswith("torch.distributed")
            wrong += [i] if foreign or distributed else []
    return wrong


def against_one_place_for_libraries(found: list[Import]) -> list[Import]:
    """Model libraries: only in nn/backbones and nn/adapters, inside functions. Processors may read tokenizers, too."""
    wrong = []
    for i in found:
        home = i.module.startswith("nn.backbones.") or i.module == "nn.adapters"
        processor = i.module.startswith("data.processors.")
        if (
            i.library in FOREIGN
            and not i.typing
            and not (i.late and (home or (processor and i.library == "transformers")))
        ):
            wrong.append(i)
        if i.library == "tokenizers" and processor and not i.late and not i.typing:
            wrong.append(i)
    return wrong


def against_one_place_for_processes(found: list[Import]) -> list[Import]:
    """torch.distributed is called in one file, so that every other one is right on one process and on many."""
    return [i for i in found if i.target.startswith("torch.distributed") and i.module != "distributed"]


def against_light_start(found: list[Import]) -> list[Import]:
    """What `zoo --help`, `zoo list` and the help of a command import: the standard library and YAML."""
    light = [i for i in found if i.module in LIGHT or (i.area == "commands" and i.module != "commands.fit")]
    return [i for i in light if i.library not in ("", "yaml") and not i.late and not i.typing]


RULES = [
    against_layers,
    against_siblings,
    against_pure_math,
    against_one_place_for_libraries,
    against_one_place_for_processes,
    against_light_start,
]


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule) -> None:
    broken = [i for module, source in modules() for i in rule(imports_of(module, source))]
    assert not broken, f"{rule.__doc__}\n" + "\n".join(map(str, broken))


def test_every_area_has_a_layer() -> None:
    areas = {module.partition(".")[0] for module, _ in modules()}
    assert not areas - set(MAY_IMPORT) - ASSEMBLY - TOP - {"__init__"}, (
        "say in MAY_IMPORT what the new areas may import"
    )
    assert not set(MAY_IMPORT) - areas, "these areas of MAY_IMPORT are gone"


def test_no_import_cycles() -> None:
    sources = dict(modules())
    graph = {
        module: {
            name
            for i in imports_of(module, source)
            if i.target_area and not i.late and not i.typing
            for name in (i.target.removeprefix("zoo."), i.target.removeprefix("zoo.").rpartition(".")[0])
            if name in sources and name != module
        }
        for module, source in sources.items()
    }
    done: set[str] = set()

    def walk(module: str, above: list[str]) -> None:
        assert module not in above, "import cycle: " + " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, [*above, module])
            done.add(module)

    for module in graph:
        walk(module, [])


# ---- the rules see what they should ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (against_layers, "objectives.x", "from zoo.nn.pooling import LastToken"),
        (against_layers, "objectives.x", "def f():\n    import zoo.module"),
        (against_layers, "data.x", "from zoo.module import EmbeddingModule"),
        (against_layers, "loading", "import zoo.cli"),
        (against_layers, "testing", "from zoo.commands import fit"),
        (against_siblings, "architectures.x", "from zoo.architectures.y import Y"),
        (against_siblings, "architectures.x", "from zoo.architectures import y"),
        (against_pure_math, "objectives.x", "import numpy as np"),
        (against_pure_math, "similarity.x", "import numpy as np"),
        (against_pure_math, "objectives.x", "from torch import distributed"),
        (against_pure_math, "metrics.functional", "import torchmetrics"),
        (against_one_place_for_libraries, "architectures.x", "def f():\n    import timm"),
        (against_one_place_for_libraries, "nn.backbones.x", "from transformers import AutoModel"),
        (against_one_place_for_libraries, "data.processors.x", "from tokenizers import Tokenizer"),
        (against_one_place_for_processes, "module", "import torch.distributed as dist"),
        (against_light_start, "catalog", "import numpy"),
        (against_light_start, "commands.search", "if True:\n    from rich.table import Table"),
    ],
)
def test_rule_sees(rule, module: str, source: str) -> None:
    assert rule(imports_of(module, source))


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (against_layers, "objectives.x", "from zoo.types import Encoded\nfrom zoo.objectives.y import Y"),
        (against_layers, "bundle", "if TYPE_CHECKING:\n    from zoo.module import EmbeddingModule"),
        (against_siblings, "architectures.x", "from zoo.module import EmbeddingModule"),
        (against_pure_math, "objectives.x", "import math\nfrom torch import nn"),
        (against_one_place_for_libraries, "nn.backbones.x", "def f():\n    from transformers import AutoModel"),
        (against_one_place_for_libraries, "data.processors.x", "def f():\n    from tokenizers import Tokenizer"),
        (against_light_start, "commands.search", "def run(args):\n    import torch"),
        (against_light_start, "types", "if TYPE_CHECKING:\n    import torch"),
    ],
)
def test_rule_lets_pass(rule, module: str, source: str) -> None:
    assert not rule(imports_of(module, source))


def test_the_else_of_type_checking_is_run() -> None:
    found = imports_of("types", "if TYPE_CHECKING:\n    import a\nelse:\n    import torch")
    assert [(i.target, i.typing) for i in found] == [("a", True), ("torch", False)]
