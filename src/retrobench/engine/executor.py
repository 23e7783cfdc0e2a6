"""Who runs a decode step: the model's forward as it is, or one CUDA graph of it.

The graph executor captures the Hugging Face forward with the greedy choice once and replays it, so
that a step costs one launch. It needs static shapes and addresses: every layer managed, methods
that keep what varies in device memory (``Method.static``), and nothing asked of the host. On other
devices it runs the same static step eagerly, which is how it is tested.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from retrobench.core.method import Method, Probe
from retrobench.engine import hf
from retrobench.engine.generation import Decoding
from retrobench.engine.model_cache import ServedCache, fully_managed
from retrobench.measure.graph import CapturedCall

EXECUTORS = ("auto", "eager", "graph")


class Steps(hf.AttentionOwner, Protocol):
    """What an executor asks of a session."""

    model: PreTrainedModel
    cache: ServedCache
    layers: tuple[int, ...]
    reached: set[int]  # managed layers that asked for their attention in this step
    methods: tuple[Method, ...]
    probe: Probe
    pad_B1: Tensor
    comparator: Any


class EagerExecutor:
    """The model's forward, step by step."""

    name = "eager"

    def __init__(self, session: Steps) -> None:
        self.session = session
        self._nan: Tensor | None = None

    def run(self, token_B1: Tensor) -> Tensor:
        """Logits ``BV`` after the newest token of each row."""
        session = self.session
        session.reached.clear()
        logits = hf.forward(session.model, token_B1, session.cache, session)
        hf.check_reached(session.model, session.layers, session.reached)
        self._note_nan(logits)
        return logits

    def choose(self, logits_BV: Tensor, decoding: Decoding, generator: torch.Generator) -> Tensor:
        """Next token ``B1``: greedy, or sampled among the ``top_k`` and then ``top_p`` likeliest.

        In the order of transformers: temperature, top-k, and top-p of what is left.
        """
        if decoding.temperature == 0:
            return logits_BV.argmax(-1, keepdim=True)
        scaled, token = (logits_BV / decoding.temperature).sort(-1, descending=True)
        if decoding.top_k:
            scaled = scaled[:, : decoding.top_k]
        probability = scaled.softmax(-1)
        beyond = probability.cumsum(-1) - probability >= decoding.top_p
        probability = probability.masked_fill(beyond, 0)
        pick = torch.multinomial(probability, 1, generator=generator)
        return token.gather(-1, pick)

    def _note_nan(self, logits_BV: Tensor) -> None:
        """Remember on the device whether any logits were NaN: looking would wait for it."""
        nan = torch.isnan(logits_BV).any()
        if self._nan is None:
            self._nan = torch.zeros_like(nan)
        self._nan |= nan

    def restart(self) -> None:
        """Nothing was captured."""

    def saw_nan(self) -> bool:
        """Whether any step's logits held NaN (waits for the device)."""
        return self._nan is not None and bool(self._nan)


class GraphExecutor(EagerExecutor):
    """Greedy steps: the first runs eagerly (it compiles kernels), then one graph replays."""

    name = "graph"

    def __init__(self, session: Steps) -> None:
        super().__init__(session)
        for method in session.methods:
            method.static = True
        device = session.model.device
        batch = session.ids_BS.shape[0]
        self.token_B1 = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.position_B1 = session.length - session.pad_B1
        self.logits_BV: Tensor | None = None
        self.captured = CapturedCall(self._forward, str(device), session.probe)

    def run(self, token_B1: Tensor) -> Tensor:
        """Logits ``BV``, in memory that the next step overwrites."""
        if token_B1 is not self.token_B1:
            self.token_B1.copy_(token_B1)
        self.captured()
        assert self.logits_BV is not None
        return self.logits_BV

    def choose(self, logits_BV: Tensor, decoding: Decoding, generator: torch.Generator) -> Tensor:
        """The greedy token, which the last step has chosen already."""
        assert decoding.temperature == 0, "a graph decodes greedily"
        if logits_BV is not self.logits_BV:  # of the prefill
            return logits_BV.argmax(-1, keepdim=True)
        return self.token_B1.clone()

    def restart(self) -> None:
        """Capture anew: the step does something else now (it counts, or no longer does)."""
        self.captured.restart()

    def _forward(self) -> None:
        session = self.session
        session.reached.clear()
        logits = hf.forward(session.model, self.token_B1, session.cache, session, self.position_B1)
        hf.check_reached(session.model, session.layers, session.reached)
        held = torch.empty_like(logits) if self.logits_BV is None else self.logits_BV
        self.logits_BV = held.copy_(logits)
        self._note_nan(logits)
        self.token_B1.copy_(logits.argmax(-1, keepdim=True))
        self.position_B1.add_(1)


def make_executor(session: Steps, name: str) -> EagerExecutor:
    """The executor that was asked for; ``auto`` takes a graph on a GPU where one is possible.

    ValueError with the reason if a graph was asked for and cannot be.
    """
    assert name in EXECUTORS, name
    graph = takes_graph(name, no_graph(session), on_gpu=session.ids_BS.is_cuda)
    return GraphExecutor(session) if graph else EagerExecutor(session)


def takes_graph(name: str, reason: str | None, *, on_gpu: bool) -> bool:
    """Whether ``engine.executor=name`` means a graph; ``reason``: why there can be none, if so.

    ValueError if one was asked for all the same.
    """
    if name == "graph" and reason is not None:
        raise ValueError(f"engine.executor=graph: {reason}; use engine.executor=auto or eager")
    return name == "graph" or (name == "auto" and on_gpu and reason is None)


def no_graph(session: Steps) -> str | None:
    """Why a graph cannot hold the session's step; None if it can."""
    if not fully_managed(session.cache, session.layers):
        return (
            f"{type(session.model).__name__} keeps sliding-window or recurrent layers in its own "
            "cache, which a CUDA graph cannot hold"
        )
    places = {method.shape.device for method in session.methods}
    if len(places) > 1:
        return f"the model's layers are on {', '.join(sorted(places))}"
    if session.comparator is not None:
        return "a comparison with exact attention reads every step on the host"
    reasons = [method.no_graph(method.config, method.shape) for method in session.methods]
    return next((reason for reason in reasons if reason is not None), None)
