"""`Embedding`: a frozen network behind a differentiable preprocessing."""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.embeddings.specs import DTYPES, Spec
from stylegan2_compress.errors import UserError


class Embedding(nn.Module):
    """A frozen network as a differentiable function of [-1, 1] images.

    The network is no submodule, so that nothing done to this module, or to one that holds it, reaches it: not
    `train()`, not `requires_grad_()`, not `to()`, not an optimizer, not DistributedDataParallel, not a state dict.

    Attributes:
        spec: Canonical spec string, without the options that change only speed and memory.
        dim: Width of the feature vectors.
        preprocessing: How images reach the network.
        network: The frozen network, in eval mode, on the device it was loaded to.
    """

    def __init__(self, spec: Spec, network: nn.Module, own: Preprocessing, device: torch.device):
        """Wrap a network.

        Args:
            spec: Where the network came from, and the options.
            network: Maps [N, 3, H, W] to [N, dim], or to maps [N, dim, h, w] that are then averaged over h and w.
            own: The network's own preprocessing; `spec` may override it.
            device: Where the network will run.

        Raises:
            UserError: The network does not take images of that size and precision, or gives no vectors for them.
        """
        super().__init__()
        self.spec = spec.key
        self.preprocessing = spec.preprocessing(own)
        self._dtype = DTYPES[spec.dtype]
        self._outside_dtype = torch.float64 if spec.dtype == 'fp64' else torch.float32
        self._checkpoint = spec.checkpoint
        self._factor, self._offset = (
            torch.tensor(values, dtype=self._outside_dtype, device=device).reshape(1, 3, 1, 1)
            for values in self.preprocessing.affine()
        )
        network = network.to(device=device, dtype=self._dtype).eval().requires_grad_(False)
        object.__setattr__(self, 'network', network)  # torch would make an ordinary attribute a submodule
        self.dim = self._probe(spec, device)
        if spec.compile:
            self.network.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: [N, C, H, W] of any float dtype, values in [-1, 1] (not clamped), C = 1 or 3.

        Returns:
            [N, dim] float32 (float64 under `dtype=fp64`).
        """
        features = self._run(self.network, self._prepare(images))
        return (features.mean(dim=(2, 3)) if features.ndim == 4 else features).to(self._outside_dtype)

    @property
    def has_layers(self) -> bool:
        """Whether `layers` is available."""
        return hasattr(self.network, 'layers')

    def layers(self, images: Tensor) -> list[Tensor]:
        """The network's intermediate feature maps, for images as in `forward`; never compiled.

        Returns:
            A list of [N, channels, h, w] float32, input side first.

        Raises:
            UserError: The network shows no layers.
        """
        if not self.has_layers:
            raise UserError(f'Embedding {self.spec} shows no layers: use one that does, such as efficientnet_lite0.')
        return [maps.to(self._outside_dtype) for maps in self._run(self.network.layers, self._prepare(images))]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of spec, preprocessing and weights: equal fingerprints, equal numbers.

        Only code that holds numbers outside its weights (a `module:` factory, say) can change them unnoticed.
        """
        digest = hashlib.sha256(f'{self.spec} {dataclasses.astuple(self.preprocessing)}'.encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}'.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _prepare(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f'An embedding takes images [N, 1 or 3, H, W], not {list(images.shape)}')
        resized = self.preprocessing.resize(images.to(self._outside_dtype))
        return (resized * self._factor + self._offset).to(self._dtype)  # one channel becomes three by broadcasting

    def _run(self, function: Callable, x: Tensor) -> Tensor | list[Tensor]:
        """`function(x)`, or the same in pieces of the batch whose activations the backward pass recomputes."""
        if not self._checkpoint:
            return function(x)
        pieces = [checkpoint(function, piece, use_reentrant=False) for piece in x.split(self._checkpoint)]
        if isinstance(pieces[0], Tensor):
            return torch.cat(pieces)
        return [torch.cat(same_layer) for same_layer in zip(*pieces, strict=True)]

    def _probe(self, spec: Spec, device: torch.device) -> int:
        """Width of the features of one image."""
        side = self.preprocessing.size or 256
        try:
            with torch.no_grad():
                features = self.network(torch.zeros([1, 3, side, side], dtype=self._dtype, device=device))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UserError(
                f'Embedding {spec} cannot take a {side}x{side} image ({reason}): '
                'give another @size=PIXELS or @dtype=fp32.'
            ) from error
        if not isinstance(features, Tensor) or features.ndim not in (2, 4):
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f'Embedding {spec} gives {shape} for one image; it has to give [1, dim] or [1, dim, h, w].')
        return features.shape[1]
