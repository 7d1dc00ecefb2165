"""README.md of an export folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.export.onnx import describe_sizes

_TEXT = """\
# {name}, exported

Gives the vectors of `zoo.load("{name}")` ({dim} values, unit norm) without torch. Needs Python and these packages:

    pip install onnxruntime numpy pillow tokenizers{cleaning}
    python embed.py . --text "a red fish" --image fish.png --side query
    python embed.py . --check        # the golden items against the vectors that torch gave

```python
from pathlib import Path

from embed import Embedder

model = Embedder(".")
scores = model.encode_query(["a red fish"]) @ model.encode_document([Path("fish.png")]).T
```
{variances}
| file | what it is |
|---|---|
{files}
| `tokenizer.json` | text to tokens |
| `{code}` | prompt, patches and positions: the very code that the model was trained with |
| `image_sources.py`, `png_rows.py`, `image_arrays.py` | how images are read and resized, as in training |
| `embed.py`, `embed_model.py`, `embed_items.py`, `embed_folder.py` | the runtime |
| `golden/` | inputs of every kind with torch's vectors |
| `manifest.json` | inputs and outputs of the graphs, settings of the processor, sha256 of every file |

Weights: {weights}. Licence: {license}. Measured with ONNX Runtime {onnxruntime} against torch {torch}:

| graph | sizes tested | largest difference |
|---|---|---|
{measured}
"""


_VARIANCES = """
The model is probabilistic. Its graphs have a second output, `log_var`: the log-variance of each of the {dim} values around
the vector, which is the mean.

```python
means, log_var = model.encode_gaussian(["a red fish"])  # both (1, {dim})
```

    python embed.py . --text "a red fish" --log-var        # with --out X.npy: X.log_var.npy beside it
"""


def readme(manifest: Mapping[str, Any]) -> str:
    """What the folder holds and how to use it, from its manifest."""
    graphs = manifest["graphs"]
    return _TEXT.format(
        name=manifest["name"],
        cleaning=" ftfy" if manifest["processor"].get("caption", {}).get("cleaning", "none") != "none" else "",
        dim=manifest["dim"],
        variances=_VARIANCES.format(dim=manifest["dim"]) if manifest.get("probabilistic") else "",
        code=manifest["processor"]["code"],
        files="\n".join(f"| `{g['file']}`, `{g['file']}.data` | graph and its weights |" for g in graphs.values()),
        weights=manifest["weights"]["source"] or "random",
        license=manifest["license"] or "not stated",
        onnxruntime=manifest["versions"]["onnxruntime"],
        torch=manifest["versions"]["torch"],
        measured="\n".join(
            f"| {name} | {'; '.join(describe_sizes(sizes) for sizes in graph['tested'])} | {graph['max_diff']:.1e} |"
            for name, graph in graphs.items()
        ),
    )
