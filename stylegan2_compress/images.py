"""Images to look at: 8 bits per channel, in grids, with captions."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] as uint8, with -1 as 0 and 1 as 255; other values are clamped."""
    return levels(images).to(torch.uint8).cpu().numpy()


def levels(images: torch.Tensor) -> torch.Tensor:
    """The same as `to_uint8` as numbers of float32, where the images are."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255)


def grid(images: np.ndarray, columns: int) -> PIL.Image.Image:
    """A grid of uint8 images [N, C, H, W], row by row; N is a multiple of `columns`, C is 1 or 3."""
    count, channels, height, width = images.shape
    sheet = images.reshape(count // columns, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(count // columns * height, columns * width, channels)
    return PIL.Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)


def side_by_side(panels: dict[str, PIL.Image.Image], gap: int = 16, caption: int = 40) -> PIL.Image.Image:
    """Panels of the same size side by side, each below its caption, which may have several lines.

    Args:
        panels: images by caption.
        gap: pixels around each panel.
        caption: height of the captions in pixels.
    """
    width, height = next(iter(panels.values())).size
    picture = PIL.Image.new('RGB', (len(panels) * (width + gap) + gap, height + caption + gap), 'white')
    draw = PIL.ImageDraw.Draw(picture)
    for index, (text, panel) in enumerate(panels.items()):
        left = gap + index * (width + gap)
        draw.multiline_text((left, 6), text, fill='black', font=PIL.ImageFont.load_default(13))
        picture.paste(panel, (left, caption))
    return picture
