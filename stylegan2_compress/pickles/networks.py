"""Network files that several parts of a run look into: each is opened once."""

from typing import Any

from stylegan2_compress import pickles


class Networks:
    """Contents of network files by path or URL. A file is opened when it is first asked for, and never again.

    The contents are shared: whoever moves a network to a device moves it for all.
    """

    def __init__(self):
        self._contents: dict[str, dict[str, Any]] = {}

    def __getitem__(self, file: str) -> dict[str, Any]:
        """What `pickles.load` returns.

        Raises:
            UserError: The file cannot be read.
        """
        if file not in self._contents:
            self._contents[file] = pickles.load(file)
        return self._contents[file]

    def sha256(self, file: str) -> str:
        """The SHA-256 of the file's bytes, in hexadecimal.

        Raises:
            UserError: The file cannot be read.
        """
        return pickles.sha256(pickles.local_file(file))

    def release(self) -> None:
        """Forget all contents."""
        self._contents.clear()
