"""Weight files: from the spec, or from their URL through the host's cache."""

import dnnlib

from stylegan2_compress.embeddings.specs import Spec
from stylegan2_compress.errors import UserError


def weights_file(spec: Spec, url: str) -> str:
    """Path of a preset's weights: `@weights=PATH` if given, else the cached download.

    Raises:
        UserError: The file cannot be downloaded.
    """
    return spec.weights or downloaded(spec, url, f'or download it yourself and use {spec.name}@weights=PATH')


def downloaded(spec: Spec, url: str, way_out: str) -> str:
    """Path of a URL's content in the host's cache (`DNNLIB_CACHE_DIR`), downloaded once.

    Raises:
        UserError: It cannot be downloaded.
    """
    try:
        return dnnlib.util.open_url(url, return_filename=True)
    except OSError as error:
        raise UserError(
            f'Embedding {spec} cannot download {url} ({type(error).__name__}): try again, {way_out}.'
        ) from error
