"""TorchScript archives: the host's detectors, OpenAI's CLIP, and anybody's."""

import os
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stylegan2_compress.embeddings import weights
from stylegan2_compress.embeddings.preprocessing import CLIP, LIKELY, Preprocessing
from stylegan2_compress.embeddings.specs import DTYPES, Spec
from stylegan2_compress.errors import UserError

DETECTORS = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/'
INCEPTION = DETECTORS + 'inception-2015-12-05.pt'
VGG16 = DETECTORS + 'vgg16.pt'
CLIP_RN50 = (
    'https://openaipublic.azureedge.net/clip/models/'
    'afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt'
)

# The host's detectors resize to what they need, and want values from 0 to 255.
DETECTOR = Preprocessing(size=None, mean=(0.0,) * 3, std=(1 / 255,) * 3)
CLIP_224 = Preprocessing(size=224, **CLIP, fixed=True)

# How TorchScript writes precisions (c10::ScalarType).
_SCALAR_TYPES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}


class Scripted(nn.Module):
    """One method of an archive."""

    def __init__(self, archive: torch.jit.ScriptModule, method: str = 'forward', **arguments):
        super().__init__()
        self.archive = archive
        self.method = method
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.archive, self.method)(x, **self.arguments)


def load_inception(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `inception`: the 2048 features that the host's FID and KID look at."""
    return Scripted(read(spec, weights.file(spec, INCEPTION), device), return_features=True), DETECTOR


def load_vgg16(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `vgg16`: the 4096 features that the host's precision and recall look at."""
    return Scripted(read(spec, weights.file(spec, VGG16), device), return_features=True), DETECTOR


def load_clip_rn50(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `clip_rn50`: OpenAI's archive, 1024 features."""
    return Scripted(read(spec, weights.file(spec, CLIP_RN50), device), 'encode_image'), CLIP_224


def load(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `torchscript:PATH_OR_URL[#method]`."""
    place, method = _place_and_method(spec)
    path = weights.downloaded(spec, place, 'download it yourself and name its path') if _is_url(place) else place
    archive = read(spec, path, device)
    if not hasattr(archive, method):
        raise UserError(f'Embedding {spec} has no method {method!r} in {place}: name another one behind a #.')
    return Scripted(archive, method), LIKELY


def check(spec: Spec) -> None:
    """Refuse a `torchscript:` spec whose file is not there."""
    place, _method = _place_and_method(spec)
    if not _is_url(place) and not os.path.isfile(place):
        raise UserError(f'Embedding {spec} names no file: there is no {place!r}.')


def read(spec: Spec, path: str, device: torch.device) -> torch.jit.ScriptModule:
    """Open an archive and undo what its tracing has written into it about device and precision.

    Raises:
        UserError: The file is no TorchScript archive.
    """
    try:
        archive = torch.jit.load(path, map_location='cpu')
    except (RuntimeError, ValueError) as error:
        raise UserError(f'Embedding {spec} cannot read {path!r}: it is no TorchScript archive.') from error
    _move_constants(archive, device)
    if any(tensor.dtype == torch.float16 for tensor in archive.state_dict().values()):
        _convert_constants(archive, DTYPES[spec.dtype])
    return archive


def _place_and_method(spec: Spec) -> tuple[str, str]:
    place, _hash, method = spec.rest.partition('#')
    return place, method or 'forward'


def _is_url(place: str) -> bool:
    return re.match('(https?|file)://', place) is not None


def _graphs(archive: torch.jit.ScriptModule) -> Iterator[torch.Graph]:
    """The graphs of all methods of an archive and its submodules, before anything has run."""
    for module in archive.modules():
        for name in module._c._method_names():
            yield module._c._get_method(name).graph


def _move_constants(archive: torch.jit.ScriptModule, device: torch.device) -> None:
    """Send what was traced as `.to('cuda:0')` to our device."""
    for graph in _graphs(archive):
        for node in graph.findAllNodes('prim::Constant'):
            if node.output().type().kind() == 'DeviceObjType' and node.s('value').startswith('cuda'):
                node.s_('value', str(device))


def _convert_constants(archive: torch.jit.ScriptModule, dtype: torch.dtype) -> None:
    """Make what was traced as `.to(torch.float16)` convert to the precision that the weights will have."""
    for graph in _graphs(archive):
        for node in graph.findAllNodes('aten::to'):
            for position, value in enumerate(node.inputs()):
                if value.type().kind() == 'IntType' and value.toIValue() == _SCALAR_TYPES[torch.float16]:
                    # A new constant, because the old one may also be, say, the size of a kernel elsewhere.
                    constant = graph.insertConstant(_SCALAR_TYPES[dtype])
                    constant.node().moveBefore(node)
                    node.replaceInput(position, constant)
