"""TorchScript archives: the host's detectors, OpenAI's CLIP, and any other."""

import os
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_compress import files
from stylegan2_compress.embeddings import weights
from stylegan2_compress.embeddings.preprocessing import CLIP, LIKELY, Preprocessing
from stylegan2_compress.embeddings.specs import DTYPES, Spec
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import downloads

DETECTORS = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/'
INCEPTION = DETECTORS + 'inception-2015-12-05.pt'
VGG16 = DETECTORS + 'vgg16.pt'
CLIP_RN50_SHA256 = 'afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762'
CLIP_RN50 = f'https://openaipublic.azureedge.net/clip/models/{CLIP_RN50_SHA256}/RN50.pt'

# The host's detectors resize images themselves, and take values from 0 to 255.
DETECTOR = Preprocessing(size=None, mean=(0.0,) * 3, std=(1 / 255,) * 3)
CLIP_224 = Preprocessing(size=224, **CLIP, fixed=True)

# Numbers of precisions in TorchScript (c10::ScalarType).
_SCALAR_TYPES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}


class Scripted(nn.Module):
    """One method of an archive.

    Attributes:
        contents: SHA-256 of the file, in hexadecimal: an archive may have its weights in its code (`torch.jit.freeze`).

    Raises:
        UserError: the file is not a TorchScript archive.
    """

    def __init__(self, spec: Spec, path: str, device: torch.device, method: str = 'forward', **arguments):
        super().__init__()
        self.archive = read(spec, path, device)
        self.contents = files.sha256(path)
        self.method = method
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.archive, self.method)(x, **self.arguments)


def load_inception(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `inception`: the 2048 features of the host's FID and KID."""
    return Scripted(spec, weights.local_path(spec, INCEPTION), device, return_features=True), DETECTOR


def load_vgg16(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `vgg16`: the 4096 features of the host's precision and recall."""
    return Scripted(spec, weights.local_path(spec, VGG16), device, return_features=True), DETECTOR


def load_clip_rn50(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `clip_rn50`: OpenAI's archive, 1024 features."""
    path = weights.local_path(spec, CLIP_RN50, CLIP_RN50_SHA256)
    return Scripted(spec, path, device, 'encode_image'), CLIP_224


def load(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `torchscript:PATH_OR_URL[#method]`."""
    location, method = _location_and_method(spec)
    path = location
    if _is_url(location):
        path = downloads.download(location, way_out='download it yourself and use its path')
    network = Scripted(spec, path, device, method)
    if not hasattr(network.archive, method):
        raise UserError(f'Embedding {spec} has no method {method!r} in {location}: use another one after the #.')
    return network, LIKELY


def check(spec: Spec) -> None:
    """Refuse a `torchscript:` spec whose file does not exist."""
    location, _method = _location_and_method(spec)
    if not _is_url(location) and not os.path.isfile(location):
        raise UserError(f'Embedding {spec} cannot be loaded: there is no file {location!r}.')


def read(spec: Spec, path: str, device: torch.device) -> torch.jit.ScriptModule:
    """Open an archive, and adapt the constants for device and precision that tracing has left in it.

    Raises:
        UserError: the file is not a TorchScript archive.
    """
    try:
        archive = torch.jit.load(path, map_location='cpu')
    except (RuntimeError, ValueError) as error:
        raise UserError(f'Embedding {spec} cannot read {path!r}: it is not a TorchScript archive.') from error
    _move_constants(archive, device)
    if any(tensor.dtype == torch.float16 for tensor in archive.state_dict().values()):
        _convert_constants(archive, DTYPES[spec.dtype])
    return archive


def _location_and_method(spec: Spec) -> tuple[str, str]:
    location, _hash, method = spec.rest.partition('#')
    return location.removeprefix('file://'), method or 'forward'


def _is_url(location: str) -> bool:
    return re.match('https?://', location) is not None


def _graphs(archive: torch.jit.ScriptModule) -> Iterator[Any]:  # Of torch.Graph, which is typed without its methods.
    """The graphs of all methods of an archive and its submodules, before anything has run."""
    modules: Iterator[Any] = archive.modules()
    for module in modules:
        for name in module._c._method_names():
            yield module._c._get_method(name).graph


def _move_constants(archive: torch.jit.ScriptModule, device: torch.device) -> None:
    """Make conversions that were traced as `.to('cuda:0')` convert to our device."""
    for graph in _graphs(archive):
        for node in graph.findAllNodes('prim::Constant'):
            if node.output().type().kind() == 'DeviceObjType' and node.s('value').startswith('cuda'):
                node.s_('value', str(device))


def _convert_constants(archive: torch.jit.ScriptModule, dtype: torch.dtype) -> None:
    """Make conversions that were traced as `.to(torch.float16)` convert to the precision of the weights."""
    for graph in _graphs(archive):
        for node in graph.findAllNodes('aten::to'):
            for position, value in enumerate(node.inputs()):
                if value.type().kind() == 'IntType' and value.toIValue() == _SCALAR_TYPES[torch.float16]:
                    # A new constant, because the old one may be used elsewhere, for example as the size of a kernel.
                    constant = graph.insertConstant(_SCALAR_TYPES[dtype])
                    constant.node().moveBefore(node)
                    node.replaceInput(position, constant)
