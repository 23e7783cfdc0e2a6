"""A function as one CUDA graph, so that repeating it costs one launch."""

from collections.abc import Callable

import torch

from retrobench.core.method import Probe


class CapturedCall:
    """Runs a function once, captures its second call as a CUDA graph, and replays that.

    The first call compiles kernels. Inputs are read from the addresses that the function used when
    it was captured. On other devices every call runs the function.
    """

    def __init__(self, run: Callable[[], None], device: str, probe: Probe | None = None) -> None:
        self.run, self.probe = run, probe
        self.device, self.on_gpu = device, torch.device(device).type == "cuda"
        self.warm, self.graph = False, None

    def __call__(self) -> None:
        if not self.on_gpu:
            self.run()
        elif not self.warm:
            self._warm_up()
        else:
            self._replay()

    def restart(self) -> None:
        """Capture anew: the function does something else now."""
        self.warm, self.graph = False, None

    def _warm_up(self) -> None:
        side, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self.run()
        current.wait_stream(side)
        self.warm = True

    def _replay(self) -> None:
        if self.graph is None:
            if self.probe is not None:
                self.probe.capture()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(self.device), torch.cuda.graph(self.graph):
                self.run()
        with torch.cuda.device(self.device):
            self.graph.replay()
        if self.probe is not None:
            self.probe.replayed()
