"""`Embedding`: a frozen network behind a differentiable preprocessing."""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.embeddings.specs import DTYPES, Spec
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import devices


class Embedding(nn.Module):
    """A frozen network as a differentiable function of [-1, 1] images.

    The network is not a submodule. It is therefore not affected by `train()`, `requires_grad_()` or `to()` of this
    module or one that holds it, and not seen by optimizers, DistributedDataParallel and state dicts.

    Attributes:
        spec: canonical spec string, without the options that change only speed and memory.
        dim: width of the feature vectors.
        preprocessing: how images are prepared for the network.
        network: the frozen network, in eval mode, on the device it was loaded to.
    """

    network: nn.Module

    def __init__(self, spec: Spec, network: nn.Module, own: Preprocessing, device: torch.device):
        """Wrap a network.

        Args:
            spec: name and options of the network.
            network: maps [N, 3, H, W] to [N, dim], or to maps [N, dim, h, w] that are then averaged over h and w.
            own: the network's own preprocessing, which `spec` may override.
            device: where the network will run.

        Raises:
            UserError: the network does not take images of that size and precision, or does not map them to vectors.
        """
        super().__init__()
        self.spec = spec.key
        self.preprocessing = spec.preprocessing(own)
        self._dtype = DTYPES[spec.dtype]
        if self._dtype == torch.float64 and not devices.has_float64(device):
            raise UserError(f'Embedding {spec} needs double precision, which {device} does not have: use dtype=fp32.')
        self._outside_dtype = torch.float64 if spec.dtype == 'fp64' else torch.float32
        self._checkpoint = spec.checkpoint
        self._is_compiled = spec.compile
        self._factor, self._offset = (
            torch.tensor(values, dtype=self._outside_dtype, device=device).reshape(1, 3, 1, 1)
            for values in self.preprocessing.affine()
        )
        network = network.to(device=device, dtype=self._dtype).eval().requires_grad_(False)
        object.__setattr__(self, 'network', network)  # torch would make an ordinary attribute a submodule.
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

    def require_images(self, resolution: int) -> None:
        """Check that the network tells images of a size apart, where they are not resized to its own.

        Raises:
            UserError: it does not take them, nor do its layers, or has the same features for all of them.
        """
        if self.preprocessing.size is not None:
            return
        noise = torch.rand([2, 3, resolution, resolution], generator=torch.Generator().manual_seed(0))
        images = (2 * noise - 1).to(self._factor.device)
        problem = f'cannot process a {resolution}x{resolution} image'
        try:
            with torch.no_grad():
                features = self(images)
                if self.has_layers:
                    self.layers(images)
        except (RuntimeError, ValueError, AssertionError):
            features = None
        if features is not None and features.shape[1] == self.dim:
            if not torch.equal(*features):
                return
            problem = f'has the same features for all {resolution}x{resolution} images'
        raise UserError(f'Embedding {self.spec} {problem}: add @size=PIXELS, which resizes them.')

    @property
    def has_layers(self) -> bool:
        """Whether the network exposes its layers."""
        return self._layers is not None

    @property
    def _layers(self) -> Callable[[Tensor], list[Tensor]] | None:
        return getattr(self.network, 'layers', None)

    @property
    def channel_weights(self) -> list[Tensor] | None:
        """How much each channel of each layer counts in a perceptual distance, where the network has learned it."""
        learned = getattr(self.network, 'channel_weights', None)
        return None if learned is None else [weight.to(self._outside_dtype) for weight in learned]

    def layers(self, images: Tensor) -> list[Tensor]:
        """Intermediate feature maps of the network, for images as in `forward`; never compiled.

        Returns:
            A list of [N, channels, h, w] float32, input side first.

        Raises:
            UserError: the network exposes no layers.
        """
        if self._layers is None:
            raise UserError(f'Embedding {self.spec} exposes no layers: use one that does, such as efficientnet_lite0.')
        return [maps.to(self._outside_dtype) for maps in self._run(self._layers, self._prepare(images))]

    @property
    def pools_layers(self) -> bool:
        """Whether features are means of its layers, which are at hand: `@layers`, not compiled, nothing recomputed."""
        return hasattr(self.network, 'means') and not (self._is_compiled or self._checkpoint)

    def pooled(self, maps: list[Tensor]) -> Tensor:
        """The features [N, dim] of images with these layers, of an embedding that pools them."""
        return self.network.means(maps)  # pyright: ignore[reportCallIssue]  # A method.

    @property
    def library(self) -> str:
        """The library whose code computes the features, with its version; empty where the code is ours or the file's.

        Not in the fingerprint: what is cached is computed again for another version, files are still read.
        """
        return getattr(self.network, 'library', '')

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of spec, preprocessing and weights in hexadecimal: equal fingerprints mean equal features.

        The exception is code whose numbers are not weights, for example in a `module:` factory. Of a TorchScript
        archive, all of the file counts.
        """
        contents = getattr(self.network, 'contents', '')
        digest = hashlib.sha256(f'{self.spec} {dataclasses.astuple(self.preprocessing)}{contents}'.encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}'.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _prepare(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f'An embedding takes images [N, 1 or 3, H, W], not {list(images.shape)}')
        resized = self.preprocessing.resize(images.to(self._outside_dtype))
        return (resized * self._factor + self._offset).to(self._dtype)  # Broadcasts one channel to three.

    def _run(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        """`function(x)`, with `checkpoint` in parts of the batch whose activations the backward pass recomputes."""
        if not self._checkpoint:
            return function(x)
        # Nothing is drawn in it, and CUDA graphs do not let the state of random numbers be read.
        outputs = [
            checkpoint(function, part, use_reentrant=False, preserve_rng_state=False)
            for part in x.split(self._checkpoint)
        ]
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)
        return [torch.cat(maps) for maps in zip(*outputs, strict=True)]

    def _probe(self, spec: Spec, device: torch.device) -> int:
        """Width of the features of one image."""
        side = self.preprocessing.size or 256
        try:
            with torch.no_grad():
                features = self.network(torch.zeros([1, 3, side, side], dtype=self._dtype, device=device))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UserError(
                f'Embedding {spec} cannot process a {side}x{side} image ({reason}): '
                'use another @size=PIXELS or @dtype=fp32.'
            ) from error
        if not isinstance(features, Tensor) or features.ndim not in (2, 4):
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(
                f'Embedding {spec} returns {shape} for one image: it has to return [1, dim] or [1, dim, h, w].'
            )
        return features.shape[1]
