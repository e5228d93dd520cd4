"""Runs networks in a runtime for another process: `python child.py runtimes/NAME.py`.

It imports nothing of this package. Requests come on the standard input, and answers go to the standard output, pickled:
first the files of the networks by name and the number of threads, answered by None; then names of networks and inputs
of the first, each answered by the output of the last, and the seconds it took. An answer that is text is an error.
"""

import os
import pickle
import runpy
import sys
import time

import numpy as np


def main(runtime):
    """Answer requests until there are no more.

    Args:
        runtime: the Python file with the function `load`.
    """
    answers = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # What libraries print is no answer.

    def answer(value):
        pickle.dump(value, answers)
        answers.flush()

    try:
        load = runpy.run_path(runtime)['load']
        paths, threads = pickle.load(sys.stdin.buffer)
        networks = {name: load(path, threads) for name, path in paths.items()}
        answer(None)
        while True:
            names, inputs = pickle.load(sys.stdin.buffer)
            start = time.perf_counter()
            for name in names:
                result = networks[name](inputs)
                inputs = {'ws': result}
            seconds = time.perf_counter() - start
            answer((np.array(result), seconds))
    except EOFError:  # The other process is done, or gone.
        pass
    except Exception as error:
        answer(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path = [path for path in sys.path if os.path.abspath(path) != here]  # Or our modules hide others of that name.
    main(sys.argv[1])
