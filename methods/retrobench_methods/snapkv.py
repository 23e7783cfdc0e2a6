"""SnapKV: the prompt's last tokens choose what is kept of the others (arXiv 2404.14469)."""

from retrobench_methods._votes import VotingMethod


class SnapKV(VotingMethod):
    """As many tokens in every layer and KV head."""

    name = "snapkv"
