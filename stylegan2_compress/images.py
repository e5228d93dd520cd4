"""Images to look at: 8 bits per channel, in grids, with captions."""

from collections.abc import Sequence

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


def quantised(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1], rounded as in a file of 8 bits per channel, where they are."""
    return levels(images).to(torch.uint8).float() / 127.5 - 1


def to_uint8_as_the_host(images: torch.Tensor) -> np.ndarray:
    """The same with the host's arithmetic, which rounds some values otherwise: the pixels of its generate.py."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8).cpu().numpy()


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


def stacked(panels: Sequence[tuple[str, PIL.Image.Image]], gap: int = 8, caption: int = 24) -> PIL.Image.Image:
    """Panels one below the other, each below its caption of one line, on white.

    The picture has an even width and an even height, as films need them.
    """
    font = PIL.ImageFont.load_default(13)
    width = max(max(panel.width, round(font.getlength(text))) for text, panel in panels) + 2 * gap
    height = sum(panel.height + caption for _text, panel in panels) + gap
    picture = PIL.Image.new('RGB', (width + width % 2, height + height % 2), 'white')
    draw, top = PIL.ImageDraw.Draw(picture), 0
    for text, panel in panels:
        draw.text((gap, top + 4), text, fill='black', font=font)
        picture.paste(panel, (gap, top + caption))
        top += panel.height + caption
    return picture
