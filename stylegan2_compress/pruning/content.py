"""Content masks: which pixels of an image show what matters, a face but not what is behind it."""

from collections.abc import Callable
from pathlib import Path

import torch

from stylegan2_compress import files
from stylegan2_compress.errors import UserError

ContentMask = Callable[[torch.Tensor], torch.Tensor]


def load_content_mask(path: str | Path, device: torch.device | str = 'cpu') -> ContentMask:
    """A content mask from a TorchScript file.

    Raises:
        UserError: the file cannot be read, or is not TorchScript.
    """
    with files.opened(path) as (file, _size):
        try:
            return torch.jit.load(file, map_location=device).eval()
        except RuntimeError as error:
            raise UserError(
                f'The content mask {path} is not a TorchScript file: write it with torch.jit.save.'
            ) from error


def content(images: torch.Tensor, content_mask: ContentMask | None) -> torch.Tensor:
    """Where images show their content.

    Args:
        images: [N, C, H, W] in [-1, 1].
        content_mask: from such images to masks [N, 1, H, W], above 0.5 on the content; None is all of the image.

    Returns:
        [N, 1, H, W], bool.

    Raises:
        UserError: the mask fails, or is of another shape.
    """
    shape = [images.shape[0], 1, *images.shape[2:]]
    if content_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=images.device)
    try:
        with torch.no_grad():
            mask = content_mask(images)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f'The content mask fails on images {list(images.shape)}: {reason}') from error
    if not isinstance(mask, torch.Tensor) or list(mask.shape) != shape:
        found = list(mask.shape) if isinstance(mask, torch.Tensor) else f'of a {type(mask).__name__}'
        raise UserError(f'The content mask has shape {found} for images of {list(images.shape)}: not {shape}.')
    return mask > 0.5
