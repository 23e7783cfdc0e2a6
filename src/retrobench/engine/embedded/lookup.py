"""Layer 2: the lookups that need the far context, and the output head that reads their results."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retrobench.engine.embedded import rope
from retrobench.engine.embedded.alphabet import CODE, OUTPUT, Alphabet
from retrobench.engine.embedded.circuit import Layer, Residual
from retrobench.engine.embedded.stream import flag_dim

# Nats of a full match. A needle's next token scores KEY + WORD; a token of the same needle KEY, of
# another needle with the same digits WORD plus crosstalk. The sink lies between.
KEY, WORD, SINK = 60.0, 50.0, 85.0
SEVERAL_RELIEF = 33.0  # sums of several keys match less exactly: lower the sink
COPY, INSIDE, COPY_SINK = 40.0, 20.0, 44.0
CHAIN, CHAIN_SINK = 80.0, 45.0

_K, _W, _FIRST, _SINK, _INSIDE, _CONST = 0, CODE, 2 * CODE, 2 * CODE + 1, 2 * CODE + 2, 2 * CODE + 3


def lookups(layer: Layer) -> None:
    """Head 0: value of the needle asked for. Head 1: rest of a name. Head 2: next in the chain."""
    residual, unit = layer.residual, math.sqrt(rope.HEAD_DIM)
    bos = residual.dim("bos")

    layer.offer(0, _K, "needle")
    layer.offer(0, _W, "word_before")
    layer.offer(0, _W, "match")
    layer.offer(0, _FIRST, "first")
    inside = layer.head_k(0)[rope.FREE_DIMS[_INSIDE]]
    inside[0] = 1.0
    inside[flag_dim(residual, "spaced")] = -1.0
    inside[bos] = -1.0
    layer.carry(0, 0, "output")

    layer.ask(0, _K, "queries", KEY)
    layer.ask(0, _W, "word", WORD)
    layer.ask(0, _W, "find", WORD)
    layer.ask(0, _FIRST, "start", WORD)
    layer.sink(0, 0, _SINK, SINK, bos)
    sink_row = layer.head_q(0)[rope.FREE_DIMS[_SINK]]
    sink_row[residual.dim("near_several")] = sink_row[0] * -SEVERAL_RELIEF / SINK
    layer.deliver(0, 0, "result")

    layer.ask(1, _W, "go_on", COPY)
    layer.head_q(1)[rope.FREE_DIMS[_INSIDE], 0] = INSIDE * unit
    layer.sink(1, 0, _SINK, COPY_SINK, bos)
    layer.deliver(1, 0, "result")

    layer.offer(1, _K, "number_end")
    layer.offer(1, _W, "assigned")
    layer.carry(1, 0, "name")
    layer.ask(2, _K, "value_of", CHAIN)
    layer.ask(2, _W, "name_of", CHAIN)
    layer.sink(2, 1, _SINK, CHAIN_SINK, bos)
    layer.deliver(2, 0, "next_name")


# Logits. A found token has FOUND; crosstalk of +-1 codes over the vocabulary stays below half.
FOUND, NOTHING, STOP, STOP_BETWEEN = 32.0, 4.0, 60.0, 13.0


def output_head(alphabet: Alphabet, residual: Residual, width: int) -> Tensor:
    """``lm_head`` weights ``[V, hidden]``: EOS where nothing is found and after a full stop."""
    head_VE = torch.zeros(alphabet.size, width)
    head_VE[:, residual["result"]] = alphabet.output_VO * (FOUND / OUTPUT)
    names_V1 = alphabet.mask("capitals")[:, None]
    head_VE[:, residual["next_name"]] = alphabet.code_VC * names_V1 * (FOUND / CODE)
    eos = head_VE[alphabet.eos]
    eos[0] = NOTHING
    eos[flag_dim(residual, "dot")] = STOP
    eos[residual.dim("again")] = STOP_BETWEEN - STOP
    eos[residual.dim("done")] = STOP
    head_VE[[alphabet.bos, alphabet.pad], 0] = -FOUND
    return head_VE
