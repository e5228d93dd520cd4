"""NVIDIA's published StyleGAN2 networks by name, for every argument that takes a network file."""

import os
from dataclasses import dataclass

_ADA = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/'
_SOURCES = f'{_ADA}transfer-learning-source-nets/'
_NGC = 'https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan2/versions/1/files/'
LICENCE = 'NVIDIA Source Code License (non-commercial)'


@dataclass(frozen=True)
class Teacher:
    """A published network."""

    url: str
    resolution: int
    data: str  # What it was trained on.
    labels: int = 0
    sha256: str | None = None  # In hexadecimal; None where we know of none that was published.

    @property
    def written_by(self) -> str:
        """The repository whose code wrote the file."""
        return 'stylegan3' if self.url.startswith(_NGC) else 'stylegan2-ada-pytorch'


# The first five have the names that the host's `train.py --resume` has for them.
TEACHERS = {
    'ffhq256': Teacher(f'{_SOURCES}ffhq-res256-mirror-paper256-noaug.pkl', 256, 'FFHQ'),
    'ffhq512': Teacher(f'{_SOURCES}ffhq-res512-mirror-stylegan2-noaug.pkl', 512, 'FFHQ'),
    'ffhq1024': Teacher(f'{_SOURCES}ffhq-res1024-mirror-stylegan2-noaug.pkl', 1024, 'FFHQ'),
    'celebahq256': Teacher(f'{_SOURCES}celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl', 256, 'CelebA-HQ'),
    'lsundog256': Teacher(f'{_SOURCES}lsundog-res256-paper256-kimg100000-noaug.pkl', 256, 'LSUN Dog'),
    'ffhq': Teacher(f'{_ADA}ffhq.pkl', 1024, 'FFHQ, by the original StyleGAN2'),
    'metfaces': Teacher(f'{_ADA}metfaces.pkl', 1024, 'MetFaces, from FFHQ'),
    'afhqcat': Teacher(f'{_ADA}afhqcat.pkl', 512, 'AFHQ Cat'),
    'afhqdog': Teacher(f'{_ADA}afhqdog.pkl', 512, 'AFHQ Dog'),
    'afhqwild': Teacher(f'{_ADA}afhqwild.pkl', 512, 'AFHQ Wild'),
    'cifar10': Teacher(f'{_ADA}cifar10.pkl', 32, 'CIFAR-10', labels=10),
    'brecahad': Teacher(f'{_ADA}brecahad.pkl', 512, 'BreCaHAD'),
    'ngc-ffhq256': Teacher(f'{_NGC}stylegan2-ffhq-256x256.pkl', 256, 'FFHQ'),
    'ngc-ffhq512': Teacher(f'{_NGC}stylegan2-ffhq-512x512.pkl', 512, 'FFHQ'),
    'ngc-ffhq1024': Teacher(f'{_NGC}stylegan2-ffhq-1024x1024.pkl', 1024, 'FFHQ'),
    'ngc-ffhqu256': Teacher(f'{_NGC}stylegan2-ffhqu-256x256.pkl', 256, 'FFHQ, unaligned'),
    'ngc-ffhqu1024': Teacher(f'{_NGC}stylegan2-ffhqu-1024x1024.pkl', 1024, 'FFHQ, unaligned'),
    'ngc-metfaces1024': Teacher(f'{_NGC}stylegan2-metfaces-1024x1024.pkl', 1024, 'MetFaces'),
    'ngc-metfacesu1024': Teacher(f'{_NGC}stylegan2-metfacesu-1024x1024.pkl', 1024, 'MetFaces, unaligned'),
    'ngc-afhqv2': Teacher(f'{_NGC}stylegan2-afhqv2-512x512.pkl', 512, 'AFHQ v2'),
    'ngc-afhqcat': Teacher(f'{_NGC}stylegan2-afhqcat-512x512.pkl', 512, 'AFHQ Cat'),
    'ngc-afhqdog': Teacher(f'{_NGC}stylegan2-afhqdog-512x512.pkl', 512, 'AFHQ Dog'),
    'ngc-afhqwild': Teacher(f'{_NGC}stylegan2-afhqwild-512x512.pkl', 512, 'AFHQ Wild'),
    'ngc-brecahad': Teacher(f'{_NGC}stylegan2-brecahad-512x512.pkl', 512, 'BreCaHAD'),
    'ngc-cifar10': Teacher(f'{_NGC}stylegan2-cifar10-32x32.pkl', 32, 'CIFAR-10', labels=10),
    'ngc-celebahq256': Teacher(f'{_NGC}stylegan2-celebahq-256x256.pkl', 256, 'CelebA-HQ'),
    'ngc-lsundog256': Teacher(f'{_NGC}stylegan2-lsundog-256x256.pkl', 256, 'LSUN Dog'),
}


def find(name: str) -> Teacher | None:
    """The published network of that name, unless there is a file of that name here."""
    return None if os.path.isfile(name) else TEACHERS.get(name)


def table() -> str:
    """All of them, for people."""
    rows = [('name', 'pixels', 'labels', 'data', 'URL')]
    rows += [(name, f'{t.resolution}', f'{t.labels or "-"}', t.data, t.url) for name, t in TEACHERS.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        '  '.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    lines += [
        '',
        f'Licence of all: {LICENCE}; what the data allow comes on top.',
        'Of none do we know a published SHA-256; `stylegan2-compress inspect NAME` shows that of the file you get.',
    ]
    return '\n'.join(lines)
