"""lm-evaluation-harness with the model ``retrobench``: any of its tasks under any method.

    python scripts/lm_harness.py run --model retrobench \\
        --model_args model=llama31_8b,method=retroinfer,budget=5% --tasks arc_easy --batch_size 4

``--model_args`` takes the options of run.py; everything else is the harness's own command.
"""

import sys

try:
    from lm_eval.__main__ import cli_evaluate
except ImportError:
    sys.exit("lm-evaluation-harness is missing: pip install 'retrobench[lm-eval]'")

from retrobench.integrations import lm_eval as lm_eval_model

if __name__ == "__main__":
    assert lm_eval_model  # registers the model
    cli_evaluate()
