"""Whether a method can serve a model: what the plan refuses, by cause."""

from retrobench.core.shapes import KVShape
from retrobench.core.spec import changed
from retrobench.engine import loader
from retrobench.engine.hf import attention_modules
from retrobench.engine.traits import serve
from retrobench.run.spec import RunSpec


def check_served(spec: RunSpec, model: loader.ModelInfo) -> None:
    """ValueError for a model, or a batch of it, that cannot be served."""
    found, needs = serve(model.meta_model), spec.needs
    if found.equal_rows and spec.engine.batch > 1:
        raise ValueError(
            f"engine.batch={spec.engine.batch}: model {model.identity['name']} computes rows of "
            "different length wrongly when they are padded; use engine.batch=1"
        )
    if needs.modules and spec.model.source == "trace":
        raise ValueError(
            f"method={spec.method} reads the model's own modules, which a trace has not; use the "
            "model itself"
        )
    if needs.prompt_rotary and found.no_pre_rope_keys:
        raise ValueError(
            f"method={spec.method} needs keys as they were before their rotation, but "
            f"{found.no_pre_rope_keys}; use another model or method"
        )
    if (needs.layer_inputs or needs.prompt_inputs) and spec.model.source != "trace":
        attention_modules(model.meta_model)


def check_dense(spec: RunSpec, shape: KVShape) -> None:
    """ValueError for dense layers that the method was given and the model does not have.

    A default may name some that one model or another lacks.
    """
    own = changed(spec.method_config).get("dense_layers", ())
    if strange := [layer for layer in own if layer not in shape.layers]:
        here = ", ".join(map(str, shape.layers))
        raise ValueError(
            f"method.dense_layers={strange}: the layers with full attention are {here}"
        )
