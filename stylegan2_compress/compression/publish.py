"""`convert IN hf://OWNER/REPOSITORY/FILE`: a network on the Hugging Face Hub, with a model card."""

import re
import tempfile
from pathlib import Path
from typing import Any

from stylegan2_compress import files, pickles
from stylegan2_compress.compression.convert import networks_for
from stylegan2_compress.compression.model_card import model_card
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import downloads
from stylegan2_compress.host.networks import require_generator
from stylegan2_compress.runs.directory import network_file


def publish(source: str, dest: str, force: bool = False, trust: bool = False, only: str | None = None) -> str:
    """Upload a network file; the repository is made, private, if there is none.

    A model card comes with it unless the repository has a README.md already.

    Args:
        source: network file, URL, or run directory, whose last snapshot counts.
        dest: `hf://OWNER/REPOSITORY/FILE`; the end of FILE says the format.
        force: replace the file in the repository if it is there.
        trust, only: see `convert`.

    Returns:
        What was uploaded, as a line of text.

    Raises:
        UserError: the source has no generator, or the Hub refuses.
    """
    match = re.fullmatch(r'hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>.+)', dest)
    if match is None:
        raise UserError(f'{dest} is not of the form hf://OWNER/REPOSITORY/FILE.')
    huggingface_hub = downloads.hub(dest)
    repo, file = match['repo'], match['file']
    source = network_file(source)
    networks = without_directories(networks_for(dest, source, trust, only))
    require_generator(source, networks)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, Path(file).name)
        pickles.save(path, networks)
        sha256 = files.sha256(path)
        card = model_card(pickles.local_file(source), path.name, sha256, networks['G_ema'], dest)
        api = huggingface_hub.HfApi()
        operations = [huggingface_hub.CommitOperationAdd(file, str(path))]
        permission = 'that `hf auth login` was run with a token that may write there'
        with downloads.asking_the_hub(huggingface_hub, f'publish {dest}', permission):
            api.create_repo(repo, private=True, exist_ok=True)
            if not force and api.file_exists(repo, file):
                raise UserError(f'{dest} exists: name another file, or add --force to replace it.')
            has_card = api.file_exists(repo, 'README.md')
            if not has_card:
                operations.append(huggingface_hub.CommitOperationAdd('README.md', card.encode()))
            api.create_commit(repo, operations, commit_message=f'Add {file}')
    return f'{dest}: SHA-256 {sha256}' + (
        '; the README.md that is there was kept' if has_card else ', with a model card'
    )


def without_directories(networks: dict[str, Any]) -> dict[str, Any]:
    """The contents of a network file, with the name alone of the data set that it was trained on."""
    kwargs = networks['training_set_kwargs']
    if not isinstance(kwargs, dict) or not isinstance(kwargs.get('path'), str):
        return networks
    return networks | {'training_set_kwargs': type(kwargs)(kwargs, path=files.public_name(kwargs['path']))}
