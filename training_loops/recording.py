"""Rounds of gradient accumulation, as the loss computes them or replayed from CUDA graphs.

A round of small networks is thousands of small kernels, and Python takes longer to launch them than a GPU to run them.
A CUDA graph launches all of them at once. What is recorded is `MethodLoss.compute`, with its random numbers, which
follow the seeds of every round as they do otherwise.
"""

import warnings
from collections import Counter
from dataclasses import dataclass

import torch

from stylegan2_compress.errors import UserError
from stylegan2_compress.host.recorded import WARM_UP, in_turn
from stylegan2_compress.losses.method_loss import MethodLoss
from stylegan2_compress.training_loops.phases import Phase


class Rounds:
    """Adds the gradients of a round to the parameters of a phase.

    Args:
        loss: with the host's `accumulate_gradients`.
    """

    def __init__(self, loss):
        self.loss = loss

    def __call__(self, phase: Phase, sync: bool, **inputs: torch.Tensor) -> None:
        """Run a round.

        Args:
            phase: whose gradients are wanted.
            sync: whether it is the last round of the step.
            inputs: the tensors that `accumulate_gradients` takes, of the same shapes in all rounds.
        """
        self.loss.accumulate_gradients(phase=phase.name, sync=sync, gain=phase.interval, **inputs)

    def left_out(self, phase: Phase) -> bool:
        """Whether the loss found that the phase's last step is not to be taken. The host's never does."""
        return isinstance(self.loss, MethodLoss) and self.loss.steps.left_out.get(phase.name, 0) > 0


@dataclass(frozen=True)
class Recording:
    """A round of one phase, and where it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, torch.Tensor]
    parameters: list[torch.nn.Parameter]  # That get a gradient.
    gradients: list[torch.Tensor]  # Of this round alone.
    notes: list[list]  # What it appends to each of `MethodLoss.notes()`.

    def add_gradients(self, is_first: bool, is_last: bool) -> None:
        """Add the gradients to the parameters'. In a step of one round they are these tensors themselves."""
        if not is_first:
            earlier = [parameter.grad for parameter in self.parameters]
            torch._foreach_add_(earlier, self.gradients)  # pyright: ignore  # Typed for lists without None.
            return
        gradients = self.gradients if is_last else [gradient.clone() for gradient in self.gradients]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


class RecordedRounds(Rounds):
    """Records the fourth round of each phase, and replays it from then on.

    A phase in which the loss has an `obstacle` is computed as usual, until there is none.

    Args:
        loss: whose `compute` is recorded.
        device: a CUDA device.
    """

    loss: MethodLoss

    def __init__(self, loss: MethodLoss, device: torch.device):
        super().__init__(loss)
        self.device = device
        self.recordings: dict[str, Recording] = {}
        self.rounds = Counter()  # That were computed, by phase, while nothing was in the way.
        self.obstacles: dict[str, str] = {}  # Those that were told, by phase.
        self.stream = torch.cuda.Stream(device)  # Of everything that is to be recorded, and of the rounds before.
        self.pool = torch.cuda.graph_pool_handle()  # Shared: graphs never run at the same time.

    def __call__(self, phase: Phase, sync: bool, **inputs: torch.Tensor) -> None:
        name = phase.name
        if name in self.recordings:
            self._replay(self.recordings[name], phase, sync, inputs)
        elif self._is_hindered(name):
            super().__call__(phase, sync, **inputs)
        elif self.rounds[name] < WARM_UP:
            self.rounds[name] += 1
            with in_turn(self.stream, self.device):
                super().__call__(phase, sync, **inputs)
        else:
            self.recordings[name] = self._record(phase, inputs)
            self._replay(self.recordings[name], phase, sync, inputs)

    def _is_hindered(self, phase: str) -> bool:
        """Whether the phase cannot be recorded at present, which is printed when it is first seen."""
        obstacle = self.loss.obstacle(phase)
        if obstacle and self.obstacles.get(phase) != obstacle:
            print(f'{phase} is not recorded as a CUDA graph: {obstacle}.')
            self.obstacles[phase] = obstacle
        return bool(obstacle)

    def _record(self, phase: Phase, inputs: dict[str, torch.Tensor]) -> Recording:
        """Record a round, which computes nothing yet.

        Raises:
            UserError: something in it cannot be recorded, such as an embedding that waits for the device. Torch
                does not bring the device back from that: there is nothing more for this process to do on it.
        """
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        earlier = [parameter.grad for parameter in phase.parameters]  # Of other rounds of the step.
        for parameter in phase.parameters:
            parameter.grad = None
        lists = self.loss.notes()
        lengths = [len(each) for each in lists]
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as the one that pins images, may go on.
            with (
                warnings.catch_warnings(),
                torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode='thread_local'),
            ):
                warnings.filterwarnings('ignore', 'The CUDA Graph is empty')  # Greg without path lengths, say.
                self.loss.compute(phase=phase.name, sync=True, gain=phase.interval, **inputs)
        except RuntimeError as error:
            cause = error.__context__ or error  # What stopped the capture, before it could not be ended.
            reason = str(cause).strip().splitlines()[0]
            raise UserError(
                f'{phase.name} cannot be recorded as a CUDA graph ({reason}): go on without --cuda-graphs.'
            ) from error
        parameters = [parameter for parameter in phase.parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters]
        notes = [each[length:] for each, length in zip(lists, lengths, strict=True)]
        for each, length in zip(lists, lengths, strict=True):
            del each[length:]
        for parameter, gradient in zip(phase.parameters, earlier, strict=True):
            parameter.grad = gradient
        return Recording(graph, inputs, parameters, gradients, notes)  # pyright: ignore[reportArgumentType]

    def _replay(self, recording: Recording, phase: Phase, sync: bool, inputs: dict[str, torch.Tensor]) -> None:
        is_first = all(parameter.grad is None for parameter in recording.parameters)
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(tensor)
        self.loss.begin_round(phase.name, len(inputs['gen_z']))
        recording.graph.replay()
        recording.add_gradients(is_first, sync)
        for each, new in zip(self.loss.notes(), recording.notes, strict=True):
            each += new if is_first and sync else map(_copied, new)
        self.loss.end_round(phase.name, sync)


def _copied(note):
    """A tensor, or a pair of a name and one, that the next replay does not change."""
    return note.clone() if isinstance(note, torch.Tensor) else (note[0], note[1].clone())
