"""Temporary reader."""
import io
from PIL import Image
def open_image(source, name):
    im = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else (Image.open(source) if not isinstance(source, Image.Image) else source)
    if im.mode == "RGBA":
        bg = Image.new("RGBA", im.size, (255, 255, 255, 255)); bg.alpha_composite(im); im = bg
    return im.convert("RGB")
