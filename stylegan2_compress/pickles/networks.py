"""Contents of network pickles, each read once."""

from stylegan2_compress import pickles


class Networks(dict):
    """Contents of network pickles by path or URL, each read when it is first asked for."""

    def __missing__(self, file: str) -> dict:
        self[file] = pickles.load(file)
        return self[file]
