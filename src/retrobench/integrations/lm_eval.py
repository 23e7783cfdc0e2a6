"""Any model under any method as a model of lm-evaluation-harness (the extra ``lm-eval``).

``scripts/lm_harness.py`` is the harness's own command with this model registered as ``retrobench``;
``--model_args`` takes run.py's options. Every request is a session: the context is prefilled with
full attention, its last ``protocol.tail_tokens`` and everything after go through the method.
"""

import logging
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import chunks, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from retrobench.cli.overrides import composed
from retrobench.core.spec import to_plain
from retrobench.engine import loader
from retrobench.engine.generation import Decoding
from retrobench.engine.hf import MethodBypassed
from retrobench.engine.session import Session, open_session
from retrobench.measure.clock import make_clock
from retrobench.measure.machine import provenance
from retrobench.measure.probe import CountingProbe
from retrobench.run.plan import prompt_builder
from retrobench.run.spec import RunSpec, parse_run

_LOG = logging.getLogger(__name__)
_GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")
_MAX_NEW_TOKENS = 256  # where a task does not say; the harness's own default


def parse_options(options: dict[str, Any]) -> RunSpec:
    """run.py's options (``model``, ``method``, ``budget``, ``method.NAME`` ...) as a RunSpec.

    The protocol is ``decode_tail`` unless they say otherwise: a one-token continuation of a prompt
    that is wholly prefilled would never reach the method.
    """
    asked = {"protocol": "decode_tail", **options}
    spec = parse_run(composed([f"{name}={value}" for name, value in asked.items()]))
    if spec.protocol.name not in {"query_aware", "decode_tail"}:
        raise ValueError(
            f"protocol={spec.protocol.name}: the harness's prompts have no separate question; use "
            "decode_tail or query_aware"
        )
    if spec.match is not None:
        raise ValueError("match: solve it with run.py and give its budget here")
    return spec


@register_model("retrobench")
class RetrobenchLM(TemplateLM):
    """A retrobench model and method; options as for run.py, e.g. ``method="quest"``."""

    def __init__(
        self,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size}: give a number; auto is not known here")
        # the harness's command says cuda:0 unasked; model.device=auto comes to the same
        given = {"model.device": device} if device not in {None, "cuda:0"} else {}
        self.spec = parse_options({**given, **options})
        self.batch = int(batch_size)
        loaded = loader.resident(self.spec.model)
        self.model, self.tokenizer, self._identity = loaded.model, loaded.tokenizer, loaded.identity
        self.context_limit, self._stop_ids = loaded.context_limit, loaded.stop_ids
        self._prompt = prompt_builder(self.spec.model)
        self._chats = False  # the harness renders all requests as chats, or none
        self._attended: list[float] = []

    @property
    def max_length(self) -> int:
        """Tokens of the model's context (of a rolling window where the model has no limit)."""
        return self.context_limit or 4096

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self._prompt.tokenizer_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids; of a text that is no chat, after what the tokenizer puts before one (BOS), once."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (self._chats or (bos and string.startswith(bos)))
        start = self._prompt.start_ids if add_special_tokens else []
        return [*start, *self._prompt.tokens(string)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The harness asks for it even where it has the rendered requests of an earlier run."""
        self._chats = bool(chat_template)
        return super().chat_template(chat_template)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The tokenizer's chat template, which then decides about BOS in all requests."""
        self._chats = True
        return self._prompt.template.render(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What ran, for the harness's results file."""
        spec = self.spec
        return {
            "retrobench": {
                "model": self._identity,
                "method": {"name": spec.method, **to_plain(spec.method_config)},
                "budget": None if spec.budget is None else str(spec.budget),
                "protocol": to_plain(spec.protocol),
                "attended_tokens": statistics.mean(self._attended) if self._attended else None,
                "commit": provenance()["commit"],
            }
        }

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        found: list[tuple[float, bool]] = []
        with tqdm(total=len(pairs), desc="loglikelihood", disable=disable_tqdm) as bar:
            for group in chunks(pairs, self.batch):
                found += self._score(group)
                bar.update(len(group))
        for (texts, *_), answer in zip(requests, found, strict=True):
            if None not in texts:  # windows of a rolling text have none
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, window by window; every token goes through the method."""
        totals = []
        for (text,) in tqdm([r.args for r in requests], desc="rolling", disable=disable_tqdm):
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1)
            pairs = [make_disjoint_window(window) for window in windows]
            total = sum(
                logprob for group in chunks(pairs, self.batch) for logprob, _ in self._score(group)
            )
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            totals.append(total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to the first stop string, one session each."""
        answers = []
        for request in tqdm(requests, desc="generate_until", disable=disable_tqdm):
            context, options = request.args
            wanted = normalize_gen_kwargs(dict(options), _MAX_NEW_TOKENS)
            answer = self._answer(context, wanted)
            self.cache_hook.add_partial("generate_until", request.args, answer)
            answers.append(answer)
        return answers

    def _answer(self, context: str, wanted: dict[str, Any]) -> str:
        until, new_tokens = tuple(wanted["until"]), int(wanted["max_gen_toks"])
        if unused := wanted.keys() - _GENERATION:
            known = ", ".join(_GENERATION)
            _LOG.warning("not used: %s; known here: %s", ", ".join(sorted(unused)), known)
        ids = self._fit(self.tok_encode(context), new_tokens)

        def stop(tokens: list[int]) -> bool:
            text = self._prompt.answer(tokens, self._chats)
            return any(mark in text for mark in until)

        decoding = Decoding(
            max_new_tokens=new_tokens,
            temperature=wanted.get("temperature", 0.0) if wanted.get("do_sample") else 0.0,
            top_p=wanted.get("top_p", 1.0),
            top_k=max(0, wanted.get("top_k") or 0),
            seed=self.spec.engine.seed,
        )
        session, probe = self._session([ids], new_tokens)
        with session:
            result = session.generate(decoding, self._stop_ids, stop)
            self._observed(session, probe, result.decode_steps)
        text = self._prompt.answer(result.token_ids[0], self._chats)
        return self._prompt.trim_answer(text, until)[0]

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding says."""
        longest = max(len(continuation) for _, continuation in pairs)
        contexts = [self._fit(context, len(continuation)) for context, continuation in pairs]
        session, probe = self._session(contexts, longest)
        targets = [[*c, *[self.eot_token_id] * (longest - len(c))] for _, c in pairs]
        target_BT = torch.tensor(targets, device=self.model.device)
        totals, greedy = [0.0] * len(pairs), [True] * len(pairs)
        with session:
            for position, logits_BV in enumerate(_predictions(session, target_BT)):
                chosen = logits_BV.log_softmax(-1).gather(-1, target_BT[:, position, None])
                best = logits_BV.argmax(-1)
                for row, (_, continuation) in enumerate(pairs):
                    if position < len(continuation):
                        totals[row] += float(chosen[row])
                        greedy[row] &= int(best[row]) == continuation[position]
            session.report_counts()
            self._observed(session, probe, len(session.stepped))
        return list(zip(totals, greedy, strict=True))

    def _session(
        self, prompts: Sequence[list[int]], new_tokens: int
    ) -> tuple[Session, CountingProbe]:
        spec, probe = self.spec, CountingProbe()
        session = open_session(
            self.model,
            spec.method_class,
            spec.method_config,
            prompts,
            probe=probe,
            clock=make_clock(str(self.model.device)),
            max_new_tokens=new_tokens,
            budget=spec.budget,
            dense_layers=spec.engine.dense_layers,
            chunk_tokens=spec.engine.chunk_tokens,
            tail_tokens=self._tail(prompts),
        )
        return session, probe

    def _observed(self, session: Session, probe: CountingProbe, steps: int) -> None:
        if silent := probe.missing(session.layers, steps):
            raise MethodBypassed(f"layers {silent} did not report every decode step")
        if steps:
            self._attended.append(probe.row()["attended_tokens"])

    def _tail(self, prompts: Sequence[list[int]]) -> int:
        """Prompt tokens that go through the method, in every row; one at least is prefilled."""
        if self.spec.protocol.name == "query_aware":
            return 0
        return min(self.spec.protocol.tail_tokens, min(map(len, prompts)) - 1)

    def _fit(self, ids: list[int], new_tokens: int) -> list[int]:
        """A context that is too long loses its beginning, as with the harness's own models."""
        room = len(ids) if self.context_limit is None else self.context_limit - new_tokens
        if room < 1:
            raise ValueError(
                f"{new_tokens} new tokens leave no room for a prompt: the model takes "
                f"{self.context_limit}; use a smaller max_gen_toks or shorter answers"
            )
        if len(ids) > room:
            _LOG.warning("a context of %d tokens is cut from the left to %d", len(ids), room)
        return ids[-room:]


def _predictions(session: Session, target_BT: Tensor) -> Iterator[Tensor]:
    """Logits ``BV`` that predict each target, the targets themselves being fed."""
    session.feed(session.ids_BS[:, session.length :])
    yield session.logits
    yield from session.teacher_forced(target_BT[:, :-1])
