"""Rotary positions as a tool: fast pairs measure distance, slow pairs hold content unrotated.

With a base of 1e30, 52 of the 64 pairs of a 128-wide head turn by less than 0.35 rad over 131072
tokens. A head's dependence on the distance n between query and key is then a sum of cosines over
the other 12 pairs; the amplitudes below come from linear programs that maximise the gaps stated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

THETA = 1e30
HEAD_DIM = 128
HALF = HEAD_DIM // 2
MAX_TOKENS = 131072

FREQUENCY = tuple(THETA ** (-i / HALF) for i in range(HALF))  # rad per token
_FREE_PAIRS = [i for i in range(HALF) if FREQUENCY[i] * MAX_TOKENS < 0.35]
FREE_DIMS = tuple(_FREE_PAIRS + [i + HALF for i in _FREE_PAIRS])
KEY_AMPLITUDE = 4.0

# Pair -> amplitude in nats. PREVIOUS: 15 nats above any other distance.
PREVIOUS = {0: 31.5, 1: 8.1, 2: 8.1, 3: 5.6, 4: 4.3, 5: 6.2, 6: 5.5, 7: 6.0, 8: 3.2}
# RECENT falls by >= 10 nats over any 13 tokens of the last 50 and stays below its value at 50.
RECENT = {2: 3.2, 3: 27.6, 4: 33.7, 5: 29.7, 6: 26.5, 7: 21.8, 8: 13.7, 9: 21.1}
RECENT_TURN = {10: 23.4}  # a sine part: lets the slope start at distance 0
RECENT_AT_50 = 127.0
# NEARBY is flat within 0.3 nats over 100 tokens and 6 below beyond 500.
NEARBY = {4: 0.22, 5: 3.02, 6: 3.29, 7: 2.98, 8: 3.12, 9: 2.11, 10: 2.18}
NEARBY_TOP = 17.0


def write_key(rows_DE: Tensor, column: int, bos_column: int) -> None:
    """Position part of a key projection; BOS has none, so that a sink's score is a constant."""
    for pair in range(HALF - len(_FREE_PAIRS)):
        rows_DE[pair, column] += KEY_AMPLITUDE
        rows_DE[pair, bos_column] -= KEY_AMPLITUDE


def write_query(
    rows_DE: Tensor, column: int, cosines: Mapping[int, float], distance: int = 0
) -> None:
    """Query part whose score is ``sum a_i cos(w_i (n - distance))`` nats."""
    scale = math.sqrt(HEAD_DIM) / KEY_AMPLITUDE
    for pair, amplitude in cosines.items():
        angle = FREQUENCY[pair] * distance
        rows_DE[pair, column] += amplitude * scale * math.cos(angle)
        rows_DE[pair + HALF, column] -= amplitude * scale * math.sin(angle)


def write_query_turn(rows_DE: Tensor, column: int, sines: Mapping[int, float]) -> None:
    """Query part whose score is ``-sum a_i sin(w_i n)`` nats."""
    scale = math.sqrt(HEAD_DIM) / KEY_AMPLITUDE
    for pair, amplitude in sines.items():
        rows_DE[pair + HALF, column] += amplitude * scale
