"""The oracle ranks by the attention weights that the model has."""

import torch
from retrobench_methods.oracle_topk import OracleTopK

from retrobench.core.method import AttentionArgs, PromptLayer
from tests.support import kv_shape


def test_a_soft_cap_changes_which_tokens_are_heaviest_for_a_group():
    torch.manual_seed(0)
    shape = kv_shape(num_kv_heads=1, head_dim=16, prompt_tokens=300, max_tokens=301)
    k, q = 4 * torch.randn(1, 1, 300, 16), torch.randn(1, 4, 1, 16)
    chosen = {}
    for cap in (None, 2.0):
        config = OracleTopK.Config(retrieval_frac=0.1, sink_tokens=0, local_tokens=1)
        method, args = OracleTopK(config, shape), AttentionArgs(scale=1.0, softcap=cap)
        method.build(0, PromptLayer(k_BGSD=k, v_BGSD=k, args=args))
        logit = (q[0, :, 0] @ k[0, 0].T).double()
        logit = logit if cap is None else torch.tanh(logit / cap) * cap
        best = logit.softmax(-1).sum(0)[:-1].topk(30).indices.tolist()
        token = method.index.select(0, q, method.store, args).token_BGR[0, 0].tolist()
        chosen[cap] = set(token) - {299}
        assert chosen[cap] == set(best)
    assert chosen[None] != chosen[2.0]
