"""Image embedding against open_clip: the tower alone, and from JPEG files to vectors.

    python benchmarks/image_tower.py                                   # ViT-B-32, 224 pixels, random weights
    python benchmarks/image_tower.py --device cuda --batch 1024 --workers 8

Tower: the same weights and pixels, the zoo's module against `encode_image(normalize=True)`; vectors must be
equal to 1e-6 (on a GPU to 1e-5). Files: the zoo's Embedder against open_clip's `image_transform` in a DataLoader and
`encode_image`; pixels must be equal to the bit, vectors to 1e-5. The files are noise with a spectrum like that of
photos, quality 90.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from alternating import alternate, machine, row
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import zoo
from zoo.embedder import Embedder
from zoo.types import Item, Sample


class Files(Dataset):  # type: ignore[type-arg]
    """What users of open_clip write."""

    def __init__(self, paths: list[Path], transform) -> None:  # type: ignore[no-untyped-def]
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as picture:
            found: Tensor = self.transform(picture)
        return found


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Noise whose amplitude falls with frequency, as that of photos does."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(width, height)
    channels = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * generator.random(frequency.shape))
        values = np.fft.irfft2(phase / frequency, (height, width))
        channels.append(np.clip(128 + 48 * values / values.std(), 0, 255))
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def tower(ours: Embedder, theirs: torch.nn.Module, batch: int, repeats: int) -> str:
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(ours.device)
    rows = torch.arange(batch, device=ours.device)
    inputs = {"rows": rows, "pixels": pixels, "image_rows": rows}

    @torch.inference_mode()
    def zoo_step() -> Tensor:
        return ours.module.encode(inputs).vector

    @torch.inference_mode()
    def open_clip_step() -> Tensor:
        found: Tensor = theirs.encode_image(pixels, normalize=True)  # type: ignore[operator]
        return found

    worst = float((zoo_step() - open_clip_step()).abs().max())
    assert worst < (1e-6 if ours.device.type == "cpu" else 1e-5), worst
    seconds = alternate(zoo_step, open_clip_step, repeats)
    return row(f"tower, {batch} pictures", *seconds, f"vectors {worst:.0e}; {batch / seconds[0]:,.0f} pictures/s")


def files(
    ours: Embedder, theirs: torch.nn.Module, transform, paths: list[Path], arguments: argparse.Namespace, name: str
) -> str:  # type: ignore[no-untyped-def]
    def zoo_pass() -> Tensor:
        return torch.from_numpy(ours.encode([Item(images=(path,)) for path in paths], batch_size=arguments.batch))

    @torch.inference_mode()
    def open_clip_pass() -> Tensor:
        loader = DataLoader(Files(paths, transform), batch_size=arguments.batch, num_workers=arguments.workers)
        encode: Any = theirs.encode_image
        return torch.cat([encode(pixels.to(ours.device), normalize=True).cpu() for pixels in loader])

    samples = [Sample(path.name, {"target": Item(images=(path,))}) for path in paths[:8]]
    mine = ours.processor(samples).views["target"]["pixels"]
    assert torch.equal(mine, torch.stack([Files(paths, transform)[i] for i in range(8)])), "pixels differ"
    worst = float((zoo_pass() - open_clip_pass()).abs().max())
    assert worst < 1e-5, worst
    seconds = alternate(zoo_pass, open_clip_pass, arguments.repeats)
    return row(name, *seconds, f"pixels equal, vectors {worst:.0e}; {len(paths) / seconds[0]:,.0f} files/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=128, help="files of each size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of open_clip's DataLoader")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    theirs, _, transform = open_clip.create_model_and_transforms(arguments.model)
    theirs.eval().to(arguments.device)
    ours = zoo.load(f"open_clip:{arguments.model}", weights=False, device=arguments.device)
    ours.module.image.model.load_state_dict(theirs.visual.state_dict())  # type: ignore[union-attr]
    print(f"{machine()}, {arguments.device}")
    print("| task | ours s | theirs s | theirs / ours | equality |\n|---|---|---|---|---|")
    print(tower(ours, theirs, arguments.batch, arguments.repeats), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for width, height in ((640, 480), (1600, 1200)):
            paths = [Path(folder) / f"{width}-{i:04d}.jpg" for i in range(arguments.count)]
            for i, path in enumerate(paths):
                photo(width, height, i % 16).save(path, quality=90)
            name = f"{arguments.count} JPEG files of {width} x {height} to vectors"
            print(files(ours, theirs, transform, paths, arguments, name), flush=True)


if __name__ == "__main__":
    main()
