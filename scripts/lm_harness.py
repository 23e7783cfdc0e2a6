"""lm-evaluation-harness with any method of retrobench.

    python scripts/lm_harness.py run --model retrobench --tasks arc_easy \\
        --model_args model=llama31_8b,method=retroinfer,budget=5%

``--model_args`` takes the options of run.py. All else is the harness's own
command (run --help). It needs the extra: pip install 'retrobench[lm-eval]'
"""

import sys

try:
    from lm_eval.__main__ import cli_evaluate
except ImportError:
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__)
        sys.exit()
    sys.exit("lm-evaluation-harness is missing: pip install 'retrobench[lm-eval]'")

from retrobench.integrations import lm_eval as lm_eval_model

if __name__ == "__main__":
    assert lm_eval_model  # registers the model
    cli_evaluate()
