"""Resampling on a CPU does no work that it then throws away."""

import torch
from torch.nn import functional
from torch_utils.ops import upfirdn2d

WHAT = 'CPU: resampling (upfirdn2d) in one convolution'
WHY = (
    'Without its CUDA kernel the host writes out the zeros between samples, filters all of them, then drops what it '
    'does not keep: a training step on a CPU takes 14 to 20 % longer for it.'
)
VERSIONS = 'all'

_host_function = upfirdn2d._upfirdn2d_ref


def needed() -> bool:
    """Whether the host still has its own: it is the algorithm, not a version, that costs the time."""
    return upfirdn2d._upfirdn2d_ref is not _upfirdn2d


def apply() -> None:
    """Replace what runs where the host has no kernel of its own."""
    upfirdn2d._upfirdn2d_ref = _upfirdn2d


def _upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | list[int] = 1,
    down: int | list[int] = 1,
    padding: int | list[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """Upsample with zeros, pad, filter, downsample; arguments and result as of the host's `upfirdn2d`.

    On CUDA, and for what no StyleGAN2 asks for (no filter; up and down at once), it is the host's function.
    """
    (up_x, up_y), (down_x, down_y) = upfirdn2d._parse_scaling(up), upfirdn2d._parse_scaling(down)
    if x.device.type != 'cpu' or f is None or (max(up_x, up_y) > 1 and max(down_x, down_y) > 1):
        return _host_function(x, f, up=up, down=down, padding=padding, flip_filter=flip_filter, gain=gain)
    left, right, top, bottom = upfirdn2d._parse_padding(padding)
    if f.ndim == 1:  # A separable filter: rows, then columns.
        x = _upfirdn2d(x, f[None, :], [up_x, 1], [down_x, 1], [left, right, 0, 0], flip_filter, gain)
        return _upfirdn2d(x, f[:, None], [1, up_y], [1, down_y], [0, 0, top, bottom], flip_filter)

    channels, height, width = x.shape[1:]
    filter_height, filter_width = f.shape
    kernel = (f * gain).to(x.dtype)
    # Convolutions of torch correlate, and transposed ones convolve.
    if flip_filter == (max(up_x, up_y) > 1):
        kernel = kernel.flip([0, 1])
    kernel = kernel.expand(channels, 1, filter_height, filter_width)
    if max(up_x, up_y) == 1:
        if left == right >= 0 and top == bottom >= 0:
            return functional.conv2d(x, kernel, stride=(down_y, down_x), padding=(top, left), groups=channels)
        x = functional.pad(x, [left, right, top, bottom])
        return functional.conv2d(x, kernel, stride=(down_y, down_x), groups=channels)
    y = functional.conv_transpose2d(x, kernel, stride=(up_y, up_x), groups=channels)
    # That is all of the convolution, from the first sample that the filter touches; cut out what was asked for.
    skip_x, skip_y = filter_width - 1 - left, filter_height - 1 - top
    out_width = width * up_x + left + right - filter_width + 1
    out_height = height * up_y + top + bottom - filter_height + 1
    edges = [-skip_x, out_width + skip_x - y.shape[3], -skip_y, out_height + skip_y - y.shape[2]]
    return functional.pad(y, edges) if any(edges) else y
