"""The model card of a published network: what it is, what it was made of, and what was measured."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

from stylegan2_compress import files
from stylegan2_compress.evaluation import records, settings
from stylegan2_compress.host import profiling
from stylegan2_compress.host.networks import class_name
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.version import __version__

# A path, an address or a word in a spec; before it, what it is: `torchscript:` or `timm:local-dir:`, but no drive.
_PLACE = re.compile(r'(?P<scheme>\s*(?:[A-Za-z][\w-]+:(?!//))*)(?P<place>(?:https?|hf)://\S+|[^,@=]+)')


def model_card(source: str, name: str, sha256: str, G_ema: Any, place: str) -> str:
    """The card as Markdown with the Hub's metadata in front.

    Args:
        source: path of the file that is published, beside which a run has left its options and results.
        name: of the published file.
        sha256: of the published file.
        G_ema: its generator.
        place: `hf://OWNER/REPOSITORY/FILE`.
    """
    directory = Path(source).absolute().parent
    lines = [
        '---',
        'tags: [stylegan2, gan-compression, stylegan2-compress]',
        '---',
        '',
        f'# {place.removeprefix("hf://").split("/")[1]}',
        '',
        f'A StyleGAN2 generator, published with stylegan2-compress {__version__}.',
        '',
        *_table('', _facts(G_ema)),
        *_table('Made of', _made_of(RunDirectory(directory).read_options() or {})),
        *_table('Measured', _measured(Path(source).absolute())),
        '## Use',
        '',
        '```',
        f'stylegan2-compress inspect {place}',
        f'stylegan2-compress convert {place} network.pkl',
        '```',
        '',
        f'SHA-256 of {name}: `{sha256}`',
        '',
        'The licence is that of what it was made of: look it up, and name it here.',
    ]
    return '\n'.join(lines) + '\n'


def _facts(G: Any) -> dict[str, str]:
    return {
        'class': class_name(G),
        'images': f'{G.img_resolution} pixels, {G.img_channels} channels',
        **({'labels': f'{G.c_dim}'} if G.c_dim else {}),
        'parameters': f'{profiling.parameters(G):,}',
        'multiply-accumulates per image': f'{profiling.macs(G):,}',
    }


def _made_of(args: Mapping[str, Any]) -> dict[str, str]:
    """From the arguments of a run. Of paths only the last part: directories are nobody's business."""
    facts = {}
    data = args.get('training_set_kwargs')
    if isinstance(data, dict) and isinstance(data.get('path'), str):
        facts['data'] = files.public_name(data['path'])
    loss = args.get('loss_kwargs')
    if isinstance(loss, dict):
        facts['loss'] = str(loss.get('class_name'))
        told = ('class_name', 'training_set_kwargs')  # The second is the data again.
        facts |= {name: _short(value) for name, value in loss.items() if name not in told}
    facts |= {what: f'{args[what]}' for what in ('total_kimg', 'batch_size', 'random_seed') if what in args}
    return facts


def _short(value: Any) -> str:
    """A value with the last part of its paths, also of those in lists and specs such as `torchscript:PATH@size=64`."""
    if isinstance(value, list | tuple):
        return ', '.join(map(_short, value))
    if isinstance(value, Mapping):
        return ', '.join(f'{name}: {_short(each)}' for name, each in value.items())
    if not isinstance(value, str):
        return str(value)
    if os.path.exists(value):
        return files.public_name(value)
    return _PLACE.sub(lambda match: match['scheme'] + _public(match['place']), value)


def _public(place: str) -> str:
    if place.startswith('hf://'):
        return place
    if place.startswith(('http://', 'https://')):
        address = urlsplit(place)  # Without a user's name or a query, which may hold keys.
        return f'{address.scheme}://{address.netloc.rpartition("@")[2]}{address.path}'
    return files.public_name(place) if os.path.isabs(place) or os.path.exists(place) else place


def _measured(source: Path) -> dict[str, str]:
    """The newest results on record for what is in a file now, by name; means over seeds."""
    own = [record for record in records.read(source.parent) if record['snapshot_pkl'] == source.name]
    newest = settings.newest(settings.of_file(own, source))
    return {name: f'{fmean(values):.5g}' for name, values in newest.items()}


def _table(title: str, facts: Mapping[str, str]) -> list[str]:
    if not facts:
        return []
    heading = [f'## {title}', ''] if title else []
    cell = {name: value.replace('|', '\\|') for name, value in facts.items()}
    return [*heading, '| | |', '| --- | --- |', *(f'| {name} | {value} |' for name, value in cell.items()), '']
