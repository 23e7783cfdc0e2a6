"""AttAcc (ASPLOS 2024): what CHIME's comparison with it is given, and energy by its constants."""

from retrobench.evaluate.papers.beside import Row, hardware
from retrobench.serving.dims import DIMS
from retrobench.serving.hardware.hbm_pim import HbmPim
from retrobench.serving.traffic import full_attention

CONTEXT = 2048


def rows() -> list[Row]:
    """Bandwidth, and energy of attention over a sequence."""
    dims = DIMS["gpt_175b"]
    config = hardware("hbm_pim").config
    rate = config.gpus * config.hbm_bytes_per_s * config.bank_factor / 1e12
    model = HbmPim(config, dims, full_attention(dims.kv_token_bytes, CONTEXT))
    read = dims.kv_token_bytes * CONTEXT
    gpu, banks = (model.attention_j(read, banks=where) for where in (False, True))
    return [
        Row("bandwidth of the banks, TB/s", rate, 260.8, "arXiv 2504.17584, tables I-III"),
        Row("power limited (`bank_factor=9`), TB/s", rate * 9 / 16, None, "AttAcc's own default"),
        Row(f"attention over {CONTEXT} tokens on the GPU, J", gpu, None, "memory and products"),
        Row(f"attention over {CONTEXT} tokens in the banks, J", banks, None, "the same"),
    ]
