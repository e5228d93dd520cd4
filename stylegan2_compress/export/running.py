"""The networks of an export, opened in their runtime."""

import pickle
import subprocess
import sys
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stylegan2_compress.errors import UserError

# A network in a runtime: from inputs by name to the output.
Function = Callable[[Mapping[str, np.ndarray]], np.ndarray]


class Networks(ABC):
    """`mapping` and `synthesis` in a runtime. All methods raise a `UserError` where the runtime fails."""

    def __call__(self, name: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The output of one of them."""
        return self.run([name], inputs)[0]

    def seconds(self, inputs: Mapping[str, np.ndarray]) -> float:
        """What it takes from the inputs of `mapping` to images."""
        return self.run(['mapping', 'synthesis'], inputs)[1]

    @abstractmethod
    def run(self, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float]:
        """Run networks, each with the last one's output as `ws`: the last output, and the seconds."""

    def close(self) -> None:  # noqa: B027  (what runs in this process needs none)
        """End the runtime."""

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()


class Here(Networks):
    """In this process.

    Args:
        functions: the networks by name.
    """

    def __init__(self, functions: Mapping[str, Function]):
        self.functions = functions

    def run(self, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        result = np.empty(0)
        for name in names:
            result = self.functions[name](inputs)
            inputs = {'ws': result}
        return result, time.perf_counter() - start


class Child(Networks):
    """In a process that has NumPy and the runtime alone, as `run.py` has.

    Runtimes do not always go together in one process: OpenVINO beside torch and ONNX Runtime has ended Python by a
    segmentation fault.

    Args:
        runtime: its name and version, for errors.
        loader: the Python file that opens files in it.
        paths: the files of the networks by name.
        threads: of the runtime; 0 for its own choice.

    Raises:
        UserError: a file cannot be opened.
    """

    def __init__(self, runtime: str, loader: Path, paths: Mapping[str, Path], threads: int = 0):
        self.runtime = runtime
        self.printed = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        command = [sys.executable, str(Path(__file__).with_name('child.py')), str(loader)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.printed, bufsize=-1
        )
        self._end = weakref.finalize(self, end, self.process, self.printed)
        self._ask(({name: str(path) for name, path in paths.items()}, threads))

    def run(self, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float]:
        return self._ask((names, dict(inputs)))

    def _ask(self, request: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            answer = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise UserError(f'{self.runtime} failed: its process {self._how_it_ended()}.') from error
        if isinstance(answer, str):
            raise UserError(f'{self.runtime} failed: {answer}')
        return answer

    def _how_it_ended(self) -> str:
        status = self.process.wait()
        self.printed.seek(0)
        lines = self.printed.read().decode(errors='replace').strip().splitlines()
        how = f'was ended by signal {-status}' if status < 0 else f'ended with exit status {status}'
        return how + (f' and printed "{lines[-1]}"' if lines else '')

    def close(self) -> None:
        self._end()


def end(process: subprocess.Popen, printed: Any) -> None:
    """End a process, and forget what it printed."""
    process.kill()
    process.communicate()
    printed.close()
