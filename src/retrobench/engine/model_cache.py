"""The cache that a model gets: its own layers, but pass-through where a method owns the keys."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from retrobench.engine.context import context_limit


class Unserved(ValueError):
    """The model computes attention in a way that no method can serve."""


class Newest:
    """The keys that a layer passed through last: whose attention comes next.

    Modules that serve several layers (Zamba, recurrent depth) do not know which one they are.
    """

    def __init__(self) -> None:
        self._passed: tuple[Tensor, int] | None = None

    def put(self, keys: Tensor, layer: int) -> None:
        """A layer passed these keys through."""
        self._passed = keys, layer

    def take(self, keys: Tensor) -> int | None:
        """The layer whose keys they are, once; None if nobody passed them through."""
        passed, self._passed = self._passed, None
        return passed[1] if passed is not None and passed[0] is keys else None


class PassThroughLayer(DynamicLayer):
    """Counts tokens and returns new keys and values as they came: the method stores them."""

    def __init__(self, layer: int, newest: Newest) -> None:
        super().__init__()
        self.layer, self.newest, self.num_tokens = layer, newest, 0

    def lazy_initialization(self, key_states: Tensor, *args: Any) -> None:
        """Nothing to allocate (the signature differs between transformers versions)."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Count and pass through."""
        if not self.is_initialized:
            PassThroughLayer.lazy_initialization(self, key_states)
        self.num_tokens += key_states.shape[2]
        self.newest.put(key_states, self.layer)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen so far, padding included."""
        return self.num_tokens

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        """(KV length, offset) for a query of T tokens (a count, or positions before 5.x)."""
        num_query = query if isinstance(query, int) else query.shape[0]
        return self.num_tokens + num_query, 0


class HybridPassThroughLayer(LinearAttentionLayer, PassThroughLayer):
    """A layer with a recurrent state, which the model keeps, and full attention beside it."""

    is_compileable = False

    def __init__(self, layer: int, newest: Newest, number_of_states: int) -> None:
        PassThroughLayer.__init__(self, layer, newest)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **states: Any) -> None:
        """States come by name, keys by position."""
        if states:
            LinearAttentionLayer.lazy_initialization(self, **states)
        else:
            PassThroughLayer.lazy_initialization(self, *args)

    def reset(self) -> None:
        """Forget the recurrent state and the count."""
        LinearAttentionLayer.reset(self)
        self.num_tokens = 0


class ServedCache(DynamicCache):
    """A model's cache; ``newest`` are the keys that wait for their attention."""

    newest: Newest


def make_cache(model: PreTrainedModel) -> tuple[ServedCache, tuple[int, ...]]:
    """A cache whose full-attention layers pass through, and the indexes of those layers.

    A window that no context of the model can fill is full attention. ValueError if the model has
    no such layer, naming what it has.
    """
    config = model.config.get_text_config(decoder=True)
    cache = ServedCache(config=config)
    newest = cache.newest = Newest()
    if not cache.layers:
        cache.layers = [DynamicLayer() for _ in range(config.num_hidden_layers)]  # type: ignore
    limit, kinds = context_limit(model), getattr(config, "layer_types", None)
    recorded, managed = getattr(model, "recorded_layers", None), []
    for i, layer in enumerate(cache.layers):
        if recorded is not None and i not in recorded:
            continue  # a trace of a few layers
        made: Any = None
        if type(layer) is LinearAttentionAndFullAttentionLayer:
            made = HybridPassThroughLayer(i, newest, len(layer.conv_states))
        elif type(layer) is DynamicLayer or _never_binds(layer, limit):
            made = PassThroughLayer(i, newest)
        elif isinstance(layer, DummyLayer) and kinds and kinds[i] == "full_attention":
            made = layer  # attends keys of an earlier layer, and stores nothing itself
        if made is not None:
            managed.append(i)
            cache.layers[i] = made
    if not managed:
        found = sorted({type(layer).__name__ for layer in cache.layers})
        raise Unserved(
            f"model {type(model).__name__} has no full-attention layer to serve "
            f"(its cache layers are {', '.join(found)})"
        )
    return cache, tuple(managed)


def _never_binds(layer: Any, limit: int | None) -> bool:
    """Whether a sliding window is as long as any context."""
    if type(layer) is not DynamicSlidingWindowLayer or limit is None:
        return False
    return layer.sliding_window >= limit


def fully_managed(cache: DynamicCache, managed: tuple[int, ...]) -> bool:
    """Whether the model keeps no state of its own: every layer passes through."""
    return len(managed) == len(cache.layers) and not is_recurrent(cache)


def is_recurrent(cache: DynamicCache) -> bool:
    """Whether some layers keep a recurrent state."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
