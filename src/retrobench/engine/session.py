"""Session: one batch of prompts through one model with one method, from its prefill on."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, ComparedCall, Method, Probe, PromptLayer
from retrobench.core.shapes import Footprint, KVShape, split_layers
from retrobench.engine import hf
from retrobench.engine.attention.dense import DenseMethod
from retrobench.engine.executor import make_executor
from retrobench.engine.generation import Answers, Decoding, Generation, Stop
from retrobench.engine.overlap import build_overlapped
from retrobench.engine.prefill import NotFinite, PrefilledPrompt, prefill
from retrobench.engine.queries import ModelQueries
from retrobench.engine.routes import check_divisible, routed


class Comparator(Protocol):
    """Compares each decode call of a method with exact attention on the same inputs."""

    def compare(self, call: ComparedCall) -> None:
        """One decode call of one layer."""
        ...


class Session:
    """Decodes one batch with one method. Use once; ``close`` frees memory and removes hooks.

    Layers are routed: ``dense_layers`` to full attention, the other managed layers to the method.
    With a ``comparator`` the model goes on with exact attention in every layer (a reference run)
    and the method answers each decode call beside it, so errors do not compound.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        method_class: type[Method],
        config: Any,
        prompt: PrefilledPrompt,
        *,
        max_new_tokens: int,
        clock: Callable[[], float],
        probe: Probe | None = None,
        budget: Budget | None = None,
        dense_layers: tuple[int, ...] = (),
        executor: str = "eager",
        comparator: Comparator | None = None,
        last_use: bool = True,
    ) -> None:
        self.model, self.prompt, self.clock = model, prompt, clock
        self.probe = Probe() if probe is None else probe
        self.comparator, self.last_use = comparator, last_use
        self.ids_BS, self.length = prompt.ids_BS, prompt.num_tokens
        self.pad_tokens, self.rope_tokens = prompt.pad_tokens, prompt.rope_tokens
        self.pad_B1 = torch.tensor(prompt.pad_tokens, device=model.device)[:, None]
        self.layers = tuple(sorted(prompt.layers))
        self.shape = prompt.shape(max_new_tokens)
        kept, left = split_layers(self.shape, dense_layers)
        devices = prompt.devices
        check_divisible(method_class, devices)
        self.routes: dict[int, Method] = routed(
            lambda part: method_class(config, part, self.probe, budget), left, devices
        )
        self.method = self.routes[left.layers[0]]
        if kept.layers:
            self.routes |= routed(lambda part: DenseMethod(None, part, self.probe), kept, devices)
        self.methods = tuple(dict.fromkeys(self.routes.values()))
        self.references: dict[int, Any] = {}  # exact attention of a reference run, by layer
        if comparator is not None:
            self.references = routed(lambda part: DenseMethod(None, part), self.shape, devices)
        self.cache = prompt.fork_cache(last_use)
        self.logits, self.build_s = prompt.logits_BV, 0.0
        self.reached: set[int] = set()
        self.stepped: list[Tensor] = []  # every token that was decoded
        self._hooks: list[Any] = []
        self.executor = make_executor(self, executor)
        self.needs = method_class.needs_of(config)
        if self.needs.layer_inputs or self.needs.modules or self.needs.calibration:
            self._bind()

    @torch.inference_mode()
    def build(self) -> None:
        """Hand the prompt to the methods, layer by layer; decode steps follow."""
        start = self.clock()
        if self.prompt.run is not None:
            build_overlapped(self.prompt.run, self._build_layer, str(self.ids_BS.device))
            self.logits = self.prompt.logits_BV
        else:
            for layer in self.layers:
                self._build_layer(layer, self.prompt.layer(layer, self.last_use))
        for method in self.methods:
            method.finish_build()
        self.build_s = self.clock() - start
        if self.prompt.run is not None:  # what building adds to the prefill
            self.build_s -= self.prompt.seconds

    def _build_layer(self, layer: int, part: PromptLayer) -> None:
        if self.references:
            self.references[layer].build(layer, part)
            part = dataclasses.replace(part, memory=None)
        self.routes[layer].build(layer, part.asked(self.needs))

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Called by the attention function for a managed layer of a decode step."""
        self.reached.add(layer)
        ours = self.routes[layer].decode(layer, q_BHTD, k_BGTD, v_BGTD, args)
        if self.comparator is None:
            return ours
        exact = self.references[layer].decode(layer, q_BHTD, k_BGTD, v_BGTD, args)
        store = self.references[layer].store
        self.comparator.compare(
            ComparedCall(
                layer=layer,
                q_BHTD=q_BHTD,
                k_BGSD=store.keys(layer),
                v_BGSD=store.values(layer),
                exact_BHTD=exact,
                ours_BHTD=ours,
                args=args,
                pad_tokens=self.pad_tokens,
            )
        )
        return exact

    def layer_input(self, layer: int, hidden_BTM: Tensor) -> None:
        """Called with the input of each layer's attention, if the method needs it."""
        if self.method.needs.layer_inputs:
            self.method.layer_input(layer, hidden_BTM)

    @torch.inference_mode()
    def step(self, token_B1: Tensor) -> Tensor:
        """One decode step; logits ``BV`` (overwritten by the next step of a graph)."""
        self.stepped.append(token_B1)
        for method in self.methods:
            method.begin_step()
        self.logits = self.executor.run(token_B1)
        self.length += 1
        for method in self.methods:
            method.end_step()
        return self.logits

    def feed(self, ids_BT: Tensor) -> None:
        """Given tokens through the decode path, one by one."""
        for t in range(ids_BT.shape[1]):
            self.step(ids_BT[:, t : t + 1])

    def teacher_forced(self, tokens_BT: Tensor) -> Iterator[Tensor]:
        """Logits after each token of the rest of the prompt and of ``tokens_BT``."""
        given_BT = torch.cat([self.ids_BS[:, self.length :], tokens_BT], 1)
        for t in range(given_BT.shape[1]):
            yield self.step(given_BT[:, t : t + 1])

    @torch.inference_mode()
    def generate(
        self,
        decoding: Decoding,
        stop_ids: frozenset[int],
        stop: Stop | None = None,
        given: Sequence[int] | None = None,
    ) -> Generation:
        """Decode what the prefill left of the prompt, then an answer; or the next answer.

        The rest of the prompt goes through the method's decode path (protocols ``query_agnostic``
        and ``decode_tail``). ``given`` follows an earlier answer instead (batch 1).
        """
        result = Generation(footprint=self.allocated(), prefill_s=None, build_s=None)
        ids_BT = self.ids_BS[:, self.length :]
        if given is None:
            result.prefill_s, result.build_s = self.prompt.seconds, self.build_s
        else:
            ids_BT = torch.tensor([list(given)], device=self.ids_BS.device)
        start = self.clock()
        self.feed(ids_BT)
        result.decode_steps = ids_BT.shape[1]
        answers = Answers(result, ids_BT.shape[0], decoding, stop_ids, stop)
        generator = torch.Generator(self.logits.device).manual_seed(decoding.seed)
        for index in range(decoding.max_new_tokens):
            token_B1 = self.executor.choose(self.logits, decoding, generator)
            if answers.ended_by(token_B1, last=index + 1 == decoding.max_new_tokens):
                break
            self.step(token_B1)
            result.decode_steps += 1
        result.decode_s = self.clock() - start
        self.report_counts()
        result.method_stats = dict(self.method.stats())
        return result

    def allocated(self) -> Footprint:
        """Bytes that the methods hold, by place."""
        return sum((method.allocated() for method in self.methods), Footprint())

    def report_counts(self) -> None:
        """Bring what was counted elsewhere to the probe; a check that no logit was NaN."""
        for method in self.methods:
            method.report_counts()
        if self.executor.saw_nan():
            raise NotFinite(f"NaN in the logits after {self.length} tokens")

    def close(self) -> None:
        """Free the methods' state and remove hooks."""
        for hook in self._hooks:
            hook.remove()
        for method in (*self.methods, *dict.fromkeys(self.references.values())):
            method.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bind(self) -> None:
        """Show the method the model; and in decode steps the layers' inputs, if it needs them."""
        view = getattr(self.model, "view", None)
        if view is not None:  # a recorded trace, which calls ``layer_input`` itself
            self.method.bind(view)
            return
        view = ModelQueries(self.model, self.layers, self.rope_tokens)
        for method in self.methods:
            method.bind(view)
        if self.needs.layer_inputs:
            self._hooks = hf.hook_layer_inputs(self.model, self.layer_input, view)


def open_session(
    model: PreTrainedModel,
    method_class: type[Method],
    config: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    clock: Callable[[], float],
    chunk_tokens: int = 4096,
    tail_tokens: int = 0,
    **options: Any,
) -> Session:
    """Prefill prompts and build a method on them: a session that is ready to decode.

    ``options`` are those of ``Session``.
    """
    prompt = prefill(
        model,
        prompts,
        clock=clock,
        needs=method_class.needs_of(config),
        chunk_tokens=chunk_tokens,
        tail_tokens=tail_tokens,
        room=max_new_tokens,
    )
    return built_session(
        model, method_class, config, prompt, max_new_tokens=max_new_tokens, clock=clock, **options
    )


def built_session(*args: Any, **options: Any) -> Session:
    """``Session(...)`` with its methods built: ready to decode."""
    session = Session(*args, **options)
    try:
        session.build()
    except BaseException:
        session.close()
        raise
    return session


def plan_session(
    method_class: type[Method],
    config: Any,
    shape: KVShape,
    budget: Budget | None,
    dense_layers: tuple[int, ...] = (),
) -> Footprint:
    """Bytes that the methods of a session will hold."""
    kept, left = split_layers(shape, dense_layers)
    planned = method_class.plan(config, left, budget)
    return planned + DenseMethod.plan(None, kept) if kept.layers else planned
