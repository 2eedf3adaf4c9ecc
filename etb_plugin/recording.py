"""Work that is recorded once and done again without its launches, which cost more than the arithmetic of a small
network on a GPU. What records computes with the tensors that it was made with."""

from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], None]

_WARM_UPS = 3


class Recorder(Protocol):
    """What records work: `CudaGraphs`, or a test's own."""

    def warm(self, work: Work) -> None:
        """Do the work a few times."""

    def record(self, work: Work) -> Work:
        """Return what does the work again, without doing it."""


class CudaGraphs:
    """torch's CUDA graphs in one pool of memory; draws from `generator` go on from one replay to the next."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator, self._pool = generator, torch.cuda.graph_pool_handle()

    def warm(self, work: Work) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(side)

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        return graph.replay
