"""Calibration files: what a method measured beforehand on the weights of one model."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retrobench.core.method import Calibrator, PromptLayer
from retrobench.core.paths import check_folder, replacing
from retrobench.core.shapes import KVShape


def read_calibration(file: Path, shape: KVShape, device: str | None = None) -> dict[str, Tensor]:
    """The tensors, on a device (default: the shape's), for the layers of the shape."""
    with safe_open(file, "pt", device=device or shape.device) as stream:
        found = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        made_of = json.loads(stream.metadata().get("layers", "[]"))
    layers = made_of or list(range(len(next(iter(found.values())))))
    if set(shape.layers) < set(layers):  # others are left to full attention
        chosen = [layers.index(layer) for layer in shape.layers]
        found = {name: tensor[chosen] for name, tensor in found.items()}
    return found


class FileCalibrator(Calibrator):
    """Writes what it measures to the method's calibration folder."""

    method: ClassVar[str]

    @classmethod
    @abstractmethod
    def measure(cls, layers: Iterable[PromptLayer]) -> dict[str, Tensor]:
        """Tensors by name, with the layers as their first axis."""

    @classmethod
    def find(cls, config: Any, weights_id: str) -> Path:
        """The file, or ValueError with the command that makes it."""
        file = cls._path(config, weights_id)
        if not file.is_file():
            raise ValueError(
                f"method={cls.method} needs a calibration of this model, {file}, which is not "
                f"there; make it with `python scripts/calibrate.py method={cls.method} model=...` "
                "(the model's options as in the run)"
            )
        return file

    @classmethod
    def _path(cls, config: Any, weights_id: str) -> Path:
        return Path(config.calibration_dir) / f"{cls.method}-{weights_id}.safetensors"

    @classmethod
    def content_hash(cls, config: Any, weights_id: str) -> str:
        """Hash of the file."""
        return hashlib.sha256(cls.find(config, weights_id).read_bytes()).hexdigest()[:16]

    @classmethod
    def check(cls, config: Any) -> None:
        """ValueError if nothing can be written to the calibration folder."""
        check_folder("method.calibration_dir", Path(config.calibration_dir))

    @classmethod
    def save(
        cls, config: Any, layers: Mapping[int, PromptLayer], weights_id: str, about: dict[str, str]
    ) -> Path:
        """Write the file; ``about`` (text, tokens, model ...) becomes its metadata."""
        file, tensors = cls._path(config, weights_id), cls.measure(layers.values())
        metadata = {"weights_id": weights_id, "layers": json.dumps(list(layers)), **about}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            with replacing(file) as temporary:
                save_file(held, temporary, metadata)
        except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
            raise ValueError(
                f"method.calibration_dir={config.calibration_dir}: cannot be written ({error}); "
                "choose another with method.calibration_dir=FOLDER"
            ) from error
        return file
