"""Starting the processes of a run: in this process, in processes of our own on one machine, or those of torchrun."""

import multiprocessing.connection
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress

import click
import dnnlib
import torch.multiprocessing

from stylegan2_compress import distributed, errors, host
from stylegan2_compress.runs import loops, output, signals
from stylegan2_compress.runs.directory import ERROR, LOST, RunDirectory

USER_ERRORS = (errors.Stopped, errors.UserError)  # Others are shown with their traceback.
SECONDS_TO_FIND_THE_CAUSE = 2
SECONDS_TO_END = 20
SECONDS_TO_STOP = 600  # For rank 0 to write what it is writing.


@output.may_be_closed()
def run(args: dict) -> None:
    """Run the training loop that the arguments name in `num_gpus` processes, and wait for its end.

    Args:
        args: keyword arguments of `loops.run_loop`, without `rank`.

    Raises:
        UserError, DivergedError, Stopped: from the loop.
        click.ClickException: with the traceback of the process that failed first; the others have been ended.
    """
    if distributed.torchrun_processes() is not None:
        rank = distributed.rank()
        run_rank(rank, args)
        distributed.leave()
        if rank != 0:
            sys.exit(0)  # One process is enough for what follows training.
    elif args['num_gpus'] == 1:
        run_rank(0, args)
    else:
        spawn(args)


def run_rank(rank: int, args: dict) -> None:
    """Run the loop as one process of the run. Only rank 0 prints; its output is also written to the run's log.

    Raises:
        click.ClickException: of several processes, this one failed.
    """
    log = str(RunDirectory(args['run_dir']).log_path)
    with errors_logged(log), failures_told(rank, args.get('num_gpus', 1)), full_disk_explained(args['run_dir']):
        if rank != 0:
            with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):
                loops.run_loop(rank=rank, **args)
        else:
            with dnnlib.util.Logger(log, file_mode='a', should_flush=True):
                loops.run_loop(rank=rank, **args)


@contextmanager
def full_disk_explained(run_dir: str) -> Iterator[None]:
    """Turn the error of a full disk into a `UserError`, for images and logs, which `files.atomic_write` does not write.

    Raises:
        UserError: there is no space left, or the disk quota is exceeded.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in output.NO_SPACE:
            raise
        raise errors.UserError(
            f'Cannot write to {run_dir}: {error.strerror}; make room, and continue with '
            f'--resume={shlex.quote(os.fspath(run_dir))}.'
        ) from error


@contextmanager
def errors_logged(log: str) -> Iterator[None]:
    """Append the exception that ends the run to its log: the terminal shows it only after the log is closed."""
    try:
        yield
    except BaseException as error:
        append_to_log(log, error)
        raise


def append_to_log(log: str, error: BaseException) -> None:
    """Append to a run's log what ended it, if that can be written."""
    text = ''.join(traceback.format_exception(error))
    if isinstance(error, click.ClickException):
        text = error.message if isinstance(error, errors.Stopped) else f'{ERROR}{error.message}'
    with suppress(OSError), open(log, 'a') as file:
        file.write(f'\n{text}\n')


# --- Which of several processes failed, and why -----------------------------------------------------------------------


class Lost(click.ClickException):
    """A process ended because another one had."""


@contextmanager
def failures_told(rank: int, size: int) -> Iterator[None]:
    """Of several processes, let the first line of an error say which one failed, and why; its traceback follows.

    Raises:
        click.ClickException: for any error but `USER_ERRORS`.
    """
    try:
        yield
    except USER_ERRORS:
        raise
    except Exception as error:
        if size == 1:
            raise
        told = failure(error, rank, size)
        if not isinstance(told, Lost):
            distributed.tell_torchrun(error)
        raise told from None


def failure(error: BaseException, rank: int, size: int) -> click.ClickException:
    """What a process of several tells of the exception that ended it."""
    what = traceback.format_exception_only(error)[-1].strip()
    if distributed.is_of_connections(error):
        return Lost(f'Process {rank} of {size} {LOST} ({what.splitlines()[0].split(". ")[0]}).')
    trace = ''.join(traceback.format_exception(error))
    return click.ClickException(f'Process {rank} of {size} failed: {what}\n{trace}')


# --- Our own processes, on one machine --------------------------------------------------------------------------------


class Killed(click.ClickException):
    """A process ended without reporting how."""


def spawn(args: dict) -> None:
    """Start `num_gpus` processes that run the loop, and wait for them. See `run`."""
    size = args['num_gpus']
    context = multiprocessing.get_context('spawn')
    _store, port = distributed.open_store()  # For as long as the processes need it.
    children, pipes = [], []
    for rank in range(size):
        pipe, childs_end = context.Pipe(duplex=False)
        child = context.Process(
            target=child_main, args=(rank, port, str(host.activate().path), dict(args), childs_end), name=f'{rank}'
        )
        with progress_bars_on_rank_zero(rank):
            child.start()
        childs_end.close()
        children.append(child)
        pipes.append(pipe)
    finished = False
    try:
        with signals_forwarded(children):
            outcome = wait(children, pipes)
        finished = outcome is None or isinstance(outcome, errors.Stopped)
    finally:
        end(children, finished)
    if isinstance(outcome, Killed):
        append_to_log(str(RunDirectory(args['run_dir']).log_path), outcome)  # It could not do so itself.
    if outcome is not None:
        raise outcome


def end(children: list, finished: bool) -> None:
    """End processes: those that have reported their outcome by themselves, if they do so soon.

    Killed before they have put away their semaphores, they would be warned about as leaked.
    """
    deadline = time.monotonic() + SECONDS_TO_END
    for child in children:
        if finished:
            child.join(timeout=max(deadline - time.monotonic(), 0))
        child.kill()
        child.join()


@output.may_be_closed()
def child_main(rank: int, port: int, host_dir: str, args: dict, pipe) -> None:
    """The body of a spawned process: it runs the loop, and sends its outcome through the pipe.

    The outcome is None, or the type and the message of an exception.
    """
    if sys.platform == 'linux':  # If the parent dies, this process saves the state and ends.
        torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGTERM)  # pyright: ignore[reportAttributeAccessIssue]  # Private.
    os.environ['LOCAL_RANK'] = str(rank)
    try:
        host.activate(host_dir)
        distributed.join(args.get('device'), rank, args['num_gpus'], distributed.connect_to_store(port))
        with RunDirectory(args['run_dir']).written() if rank == 0 else nullcontext():  # The parent may be killed.
            run_rank(rank, args)
        pipe.send(None)
        distributed.leave()
    except click.ClickException as error:
        pipe.send((type(error), error.message))
    except BaseException as error:
        told = failure(error, rank, args['num_gpus'])
        pipe.send((type(told), told.message))
    finally:
        pipe.close()


def wait(children: list, pipes: list) -> click.ClickException | None:
    """Wait until all processes have ended, rank 0 has stopped as asked, or one has failed.

    Returns:
        The exception that the run ended with, if any.
    """
    outcomes, deadline = {}, float('inf')
    while len(outcomes) < len(children):
        for rank in receive(children, pipes, outcomes):
            failed = outcomes[rank] is not None and not isinstance(outcomes[rank], errors.Stopped)
            if failed:
                # A killed process is often the cause of the others' errors, and they may report theirs first.
                time.sleep(SECONDS_TO_FIND_THE_CAUSE)
                receive(children, pipes, outcomes)
                return cause(list(outcomes.values()))
        stopped = [each for each in outcomes.values() if isinstance(each, errors.Stopped)]
        if isinstance(outcomes.get(0), errors.Stopped):
            break  # All is saved. Others may wait for it on their GPUs, where no signal reaches them.
        if stopped and deadline == float('inf'):
            deadline = time.monotonic() + SECONDS_TO_STOP
        if time.monotonic() > deadline:
            return stopped[0]  # Rank 0 may wait likewise, in the host's metrics, before which all is saved.
    return outcomes[0]


def cause(outcomes: list[click.ClickException | None]) -> click.ClickException:
    """Of the outcomes of processes, in order of arrival, the one that led to the others."""
    errors_first = [each for each in outcomes if each is not None and not isinstance(each, errors.Stopped)]
    killed = [each for each in errors_first if isinstance(each, Killed)]
    own = [each for each in errors_first if not isinstance(each, Lost)]
    stopped = [each for each in outcomes if isinstance(each, errors.Stopped)]  # Others may lose one that stops.
    return [*killed, *own, *stopped, *errors_first][0]


def receive(children: list, pipes: list, outcomes: dict) -> list[int]:
    """Wait up to half a second for processes to end, and add their outcomes to `outcomes` by rank.

    Returns:
        The ranks of the processes that ended, in order of arrival.
    """
    waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in outcomes}
    arrived = []
    for pipe in multiprocessing.connection.wait(list(waiting), timeout=0.5):
        rank = waiting[pipe]
        try:
            message = pipes[rank].recv()
            outcomes[rank] = message and message[0](message[1])
        except EOFError:
            children[rank].join(timeout=5)
            code = children[rank].exitcode
            how = signal.Signals(-code).name if code is not None and code < 0 else f'exit status {code}'
            outcomes[rank] = Killed(f'Process {rank} of {len(children)} was ended from outside ({how}).')
        arrived.append(rank)
    return arrived


@contextmanager
def signals_forwarded(children: list) -> Iterator[None]:
    """On Ctrl-C, SIGTERM and SIGHUP, ask all processes to save and end; a second Ctrl-C ends everything at once."""

    def forward(number, _frame):
        if signal.Signals(number).name == 'SIGHUP':
            signals.leave_the_terminal()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for child in children:
            if child.is_alive() and os.name != 'nt':  # Windows sends Ctrl-C to all, and knows no other way to ask.
                os.kill(child.pid, signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, forward) for number in signals.to_handle()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def progress_bars_on_rank_zero(rank: int) -> Iterator[None]:
    """Turn off the progress bars of libraries in a process that is started in the block, unless it is rank 0."""
    if rank != 0:
        os.environ['TQDM_DISABLE'] = '1'
    try:
        yield
    finally:
        os.environ.pop('TQDM_DISABLE', None)
