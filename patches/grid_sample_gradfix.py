"""grid_sample, as the augmentation pipe uses it, has gradients of any order with respect to the image."""

import warnings

import torch
from torch_utils.ops import grid_sample_gradfix

WHAT = 'grid_sample_gradfix: a second derivative for R1 behind ADA, without a warning at every call'
WHY = (
    'The replacement knows torch 1.7 to 1.9; on any other it warns at each call and falls back to '
    'torch.nn.functional.grid_sample, which in many versions cannot be differentiated twice: "derivative for '
    'aten::grid_sampler_2d_backward is not implemented".'
)
VERSIONS = 'torch >= 1.10; a derivative of our own where torch has none (2.7 has none; 2.13 has it)'


def needed() -> bool:
    """Whether the host's grid_sample warns that this torch is not supported."""
    enabled = grid_sample_gradfix.enabled
    grid_sample_gradfix.enabled = True
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            grid_sample_gradfix.grid_sample(torch.zeros([1, 1, 1, 1]), torch.zeros([1, 1, 1, 2]))
    finally:
        grid_sample_gradfix.enabled = enabled
    return len(caught) > 0


def apply() -> None:
    """Use torch's grid_sample where it can be differentiated twice, `twice_differentiable` elsewhere."""
    grid_sample_gradfix.grid_sample = torch_grid_sample if torch_can_differentiate_twice() else twice_differentiable


@torch.enable_grad()
def torch_can_differentiate_twice() -> bool:
    """Try it once."""
    image = torch.zeros([1, 1, 2, 2], requires_grad=True)
    grad_output = torch.ones([1, 1, 1, 1], requires_grad=True)
    sample = torch_grid_sample(image, torch.zeros([1, 1, 1, 2]))
    (grad_image,) = torch.autograd.grad(sample, image, grad_output, create_graph=True)
    try:
        torch.autograd.grad(grad_image.sum(), grad_output)
    except RuntimeError:
        return False
    return True


def torch_grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample `input` [N, C, H, W] bilinearly at `grid` [N, H', W', 2] in [-1, 1], zero outside: [N, C, H', W']."""
    return torch.nn.functional.grid_sample(input, grid, mode='bilinear', padding_mode='zeros', align_corners=False)


def twice_differentiable(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Do as `torch_grid_sample` does, with gradients of any order with respect to `input`.

    The pipe draws its grids at random and never asks for their gradient; one that is asked for is torch's first.
    """
    if grid.requires_grad:
        return torch_grid_sample(input, grid)
    return _Sample.apply(input, grid)


class _Sample(torch.autograd.Function):
    """y = A x: for a given grid, sampling is linear in the image."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = x.shape
        return torch_grid_sample(x, grid)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _SampleTransposed.apply(dy, grid, ctx.shape), None


class _SampleTransposed(torch.autograd.Function):
    """x = Aᵀ y, whose derivative is A again; so the two are each other's backward, to any order."""

    @staticmethod
    def forward(ctx, y: torch.Tensor, grid: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        ctx.save_for_backward(grid)
        x = y.new_empty(shape)  # Only its shape matters.
        bilinear, zeros, align_corners, gradients_of_x_and_grid = 0, 0, False, [True, False]
        return torch.ops.aten.grid_sampler_2d_backward(
            y, x, grid, bilinear, zeros, align_corners, gradients_of_x_and_grid
        )[0]

    @staticmethod
    def backward(ctx, dx: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(dx, grid), None, None
