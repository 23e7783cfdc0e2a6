"""What a replay needs of a run: the machine for the cell key, the model's sizes, measured steps."""

from typing import Any

from retrobench.core.cell import Cell
from retrobench.core.shapes import KVShape
from retrobench.engine import loader
from retrobench.engine.shape import kv_shape
from retrobench.evaluate import replay
from retrobench.run.spec import RunSpec
from retrobench.serving.dims import DIMS, ModelDims
from retrobench.serving.hardware import MEASURED
from retrobench.store.results import ResultStore
from retrobench.tasks.serve import ServeTask


def machine_identity(spec: RunSpec, cell: Cell) -> dict[str, Any]:
    """The machine for the cell key: its constants, or the steps that were measured on it."""
    assert spec.hardware is not None
    if spec.engine.dense_layers:
        raise ValueError("engine.dense_layers: a replay does not model them; leave them out")
    if spec.hardware.kind != MEASURED:
        return spec.hardware.identity
    if spec.task_config.shape != "model":
        raise ValueError(
            f"task.shape={spec.task_config.shape}: hardware=measured has steps of whole models; "
            "use task.shape=model with model=NAME"
        )
    return {**spec.hardware.identity, "points": replay.points_digest(_points(spec, cell))}


def replay_of(spec: RunSpec, task: ServeTask, cell: Cell) -> replay.Replay:
    """Everything that ``evaluate.replay`` needs."""
    assert spec.hardware is not None
    measured = spec.hardware.kind == MEASURED
    dims, shape = _sizes(spec)
    return replay.Replay(
        task=task,
        hardware=spec.hardware,
        method_class=spec.method_class,
        method_config=spec.method_config,
        budget=spec.budget,
        dims=dims,
        shape=shape,
        points=_points(spec, cell) if measured else (),
    )


def _points(spec: RunSpec, cell: Cell) -> tuple[replay.Point, ...]:
    assert spec.hardware is not None
    store = ResultStore(spec.hardware.config.rows)
    return replay.surface_points(store, cell.model, cell.method, cell.budget)


def _sizes(spec: RunSpec) -> tuple[ModelDims, KVShape]:
    """Of the named shape, or of the cell's model."""
    name = spec.task_config.shape
    if name == "model":
        model = loader.describe(spec.model).meta_model
        shape = kv_shape(model, (0,), 1, 1)
        weights = sum(parameter.numel() for parameter in model.parameters())
        if not model.config.get_text_config().tie_word_embeddings:
            weights -= model.get_input_embeddings().weight.numel()  # looked up, not multiplied
        dims = ModelDims(
            layers=len(shape.layers),
            width=model.config.get_text_config().hidden_size,
            heads=shape.num_heads,
            kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            matmul_params=weights,
        )
        return dims, shape
    dims = DIMS[name]
    shape = KVShape(
        pad_tokens=(0,), layers=tuple(range(dims.layers)), num_heads=dims.heads,
        num_kv_heads=dims.kv_heads, head_dim=dims.head_dim, prompt_tokens=1, max_tokens=2,
        dtype="bfloat16",
    )  # fmt: skip
    return dims, shape
