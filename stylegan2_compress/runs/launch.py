"""Starting the processes of a run: here, or by torchrun on one machine or many."""

import errno
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager, redirect_stdout, suppress

import click
import dnnlib
import torch
import torch.distributed
import torch.multiprocessing

from stylegan2_compress import distributed, errors, host
from stylegan2_compress.runs import loops

# What a loop raises to say a sentence; anything else is a failure of the program.
SENTENCES = (errors.Stopped, errors.DivergedError, errors.UserError)
SECONDS_TO_FIND_THE_CAUSE = 2


def run(args: dict) -> None:
    """Run the training loop that the arguments name in as many processes as they say, and wait for the end.

    Args:
        args: keyword arguments of `run_loop`, apart from `rank`.

    Raises:
        UserError, DivergedError, Stopped: what the loop raised.
        click.ClickException: with the traceback of the process that failed first; the others have been ended.
    """
    if distributed.torchrun_processes() is not None:
        rank = torch.distributed.get_rank()
        run_rank(rank, args)
        torch.distributed.destroy_process_group()
        if rank != 0:
            sys.exit(0)  # What comes after training is for one process.
    elif args['num_gpus'] == 1:
        run_rank(0, args)
    else:
        spawn(args)


def run_rank(rank: int, args: dict) -> None:
    """Run the loop as one process of the run; the first writes the log."""
    if rank == 0:
        log = os.path.join(args['run_dir'], 'log.txt')
        with last_words(log), full_disk(args['run_dir']), dnnlib.util.Logger(log, file_mode='a', should_flush=True):
            loops.run_loop(rank=rank, **args)
    else:
        with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):
            loops.run_loop(rank=rank, **args)


@contextmanager
def full_disk(run_dir: str):
    """Say in a sentence that there is no room for pictures and logs, which are not `files.atomic_write`'s."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sentence = f'Cannot write to {run_dir}: {error.strerror}; make room, and continue with --resume={run_dir}.'
        raise errors.UserError(sentence) from error


@contextmanager
def last_words(log: str):
    """Let the log end with what ended the run, which on the terminal is shown by whoever catches it."""
    try:
        yield
    except BaseException as error:
        words = traceback.format_exc()
        if isinstance(error, click.ClickException):
            words = error.message if isinstance(error, errors.Stopped) else f'Error: {error.message}'
        with suppress(OSError), open(log, 'a') as file:
            file.write(f'\n{words}\n')
        raise


# --- Our own processes, on one machine --------------------------------------------------------------------------------


def spawn(args: dict) -> None:
    size = args['num_gpus']
    context = multiprocessing.get_context('spawn')
    store = torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    children, pipes = [], []
    for rank in range(size):
        pipe, theirs = context.Pipe(duplex=False)
        child = context.Process(
            target=child_main, args=(rank, store.port, str(host.activate().path), dict(args), theirs), name=f'{rank}'
        )
        with only_the_first_shows_bars(rank):
            child.start()
        theirs.close()
        children.append(child)
        pipes.append(pipe)
    try:
        with signals_passed_on(children):
            outcome = wait(children, pipes)
    finally:
        for child in children:
            child.kill()
            child.join()
    if outcome is not None:
        raise outcome


def child_main(rank: int, port: int, host_dir: str, args: dict, pipe) -> None:
    """What a spawned process does; its last words go through the pipe."""
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGTERM)  # Without its parent it saves and ends.
    os.environ['LOCAL_RANK'] = str(rank)
    try:
        host.activate(host_dir)
        store = torch.distributed.TCPStore('127.0.0.1', port, is_master=False)
        distributed.join(args.get('device'), rank, args['num_gpus'], store)
        run_rank(rank, args)
        pipe.send(None)
    except SENTENCES as error:
        pipe.send((type(error), error.message))
    except BaseException:
        text = f'Process {rank} of {args["num_gpus"]} failed:\n{traceback.format_exc()}'
        pipe.send((click.ClickException, text))
    finally:
        pipe.close()


def wait(children: list, pipes: list) -> click.ClickException | None:
    """The exception that the run ended with. After a failure, which others follow from, nobody is waited for."""
    outcomes = {}
    while len(outcomes) < len(children):
        for rank in listen(children, pipes, outcomes):
            failed = outcomes[rank] is not None and not isinstance(outcomes[rank], errors.Stopped)
            if failed:
                time.sleep(SECONDS_TO_FIND_THE_CAUSE)  # One that was killed has no last words, its peers are quicker.
                listen(children, pipes, outcomes)
                killed = [each for each in outcomes.values() if isinstance(each, Killed)]
                return killed[0] if killed else outcomes[rank]
    return outcomes[0]


class Killed(click.ClickException):
    """A process ended without a word."""


def listen(children: list, pipes: list, outcomes: dict) -> list[int]:
    """Wait for words or deaths, add what they mean to `outcomes` by rank, and return the ranks in order of arrival."""
    waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in outcomes}
    arrived = []
    for pipe in multiprocessing.connection.wait(list(waiting), timeout=0.5):
        rank = waiting[pipe]
        try:
            message = pipe.recv()
            outcomes[rank] = message and message[0](message[1])
        except EOFError:
            children[rank].join(timeout=5)
            code = children[rank].exitcode
            how = signal.Signals(-code).name if code is not None and code < 0 else f'exit status {code}'
            outcomes[rank] = Killed(f'Process {rank} of {len(children)} was ended from outside ({how}).')
        arrived.append(rank)
    return arrived


@contextmanager
def signals_passed_on(children: list):
    """Ctrl-C and SIGTERM ask all processes to save and end; a second Ctrl-C ends everything at once."""

    def pass_on(number, _frame):
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for child in children:
            if child.is_alive():
                os.kill(child.pid, signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def only_the_first_shows_bars(rank: int):
    """Progress bars of the libraries we call ask the environment of a new process."""
    if rank != 0:
        os.environ['TQDM_DISABLE'] = '1'
    try:
        yield
    finally:
        os.environ.pop('TQDM_DISABLE', None)
