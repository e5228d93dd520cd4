"""CUDA graphs on a machine without CUDA: what is captured is a list of operations, which a replay runs again.

As on CUDA, capturing draws no random numbers and changes no tensor that was there before, and a replay reads and writes
the memory of the tensors that were captured: results are copied to where they were. So whatever a round takes from
Python's variables, or leaves in them, is as it was when it was captured. What CUDA refuses to capture is not refused
here, see `other_device`.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.calls = []
        self.replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, captured in self.calls:
            for old, new in zip(tensors(captured), tensors(func(*args, **kwargs)), strict=True):
                if not func.is_view and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Capture(TorchDispatchMode):
    """In place of `torch.cuda.graph`."""

    def __init__(self, graph: Graph, pool=None, stream=None, capture_error_mode='global'):
        super().__init__()
        self.graph = graph
        self.made, self.before = set(), {}
        self.rng_state = torch.get_rng_state()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(value):
                    memory = tensor.untyped_storage().data_ptr()
                    if memory not in self.made and memory not in self.before:
                        self.before[memory] = tensor, tensor.clone()
        out = func(*args, **kwargs)
        self.made.update(tensor.untyped_storage().data_ptr() for tensor in tensors(out))
        self.graph.calls.append((func, args, kwargs, out))  # Which keeps all memory in its place.
        return out

    @torch.no_grad()
    def __exit__(self, *exception):
        super().__exit__(*exception)
        for tensor, value in self.before.values():
            tensor.copy_(value)
        torch.set_rng_state(self.rng_state)


class Stream:
    """In place of `torch.cuda.Stream`."""

    def __init__(self, device=None):
        pass

    def wait_stream(self, other) -> None:
        pass


def tensors(values) -> list[torch.Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


def install(monkeypatch) -> list[Graph]:
    """Let `torch.cuda` have these until the test ends. Returns a list that will hold all graphs."""
    graphs = []
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', lambda: graphs.append(Graph()) or graphs[-1])
    monkeypatch.setattr(torch.cuda, 'graph', Capture)
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: None)
    monkeypatch.setattr(torch.cuda, 'Stream', Stream)
    monkeypatch.setattr(torch.cuda, 'current_stream', Stream)
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: contextlib.nullcontext())
    return graphs
