"""Network files that several parts of a run need: each is opened once."""

from typing import Any

from stylegan2_compress import pickles


class Networks:
    """Contents and SHA-256 of network files by path or URL.

    A file is opened when either is first asked for, once for both: what is used is what was hashed. The safetensors
    library takes paths only, so it opens a `.safetensors` file a second time right after it was hashed.

    The contents are shared: whoever moves a network to a device moves it for all.
    """

    def __init__(self):
        self._contents: dict[str, dict[str, Any]] = {}
        self._sha256: dict[str, str] = {}

    def __getitem__(self, file: str) -> dict[str, Any]:
        """What `pickles.load` returns.

        Raises:
            UserError: the file cannot be read, or contains no networks.
        """
        if file not in self._contents:
            self._contents[file], self._sha256[file] = pickles.load_with_sha256(file)
        return self._contents[file]

    def sha256(self, file: str) -> str:
        """The SHA-256 of the file's bytes, in hexadecimal.

        Raises:
            UserError: the file cannot be read, or contains no networks.
        """
        if file not in self._sha256:
            self[file]
        return self._sha256[file]

    def release(self) -> None:
        """Forget all contents, which may be large. The hashes are kept."""
        self._contents.clear()
