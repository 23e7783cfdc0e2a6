"""Which method serves which layer: dense layers apart, and the layers of each device together."""

import dataclasses
from collections.abc import Callable, Mapping

from retrobench.core.method import Method
from retrobench.core.shapes import KVShape


def by_device(shape: KVShape, devices: Mapping[int, str]) -> list[KVShape]:
    """The shape once for every device that has layers of it."""
    found: dict[str, list[int]] = {}
    for layer in shape.layers:
        found.setdefault(devices[layer], []).append(layer)
    return [
        dataclasses.replace(shape, layers=tuple(layers), device=device)
        for device, layers in found.items()
    ]


def routed(
    make: Callable[[KVShape], Method], shape: KVShape, devices: Mapping[int, str]
) -> dict[int, Method]:
    """A method for each device, by layer."""
    routes: dict[int, Method] = {}
    for part in by_device(shape, devices):
        routes |= dict.fromkeys(part.layers, make(part))
    return routes


def check_divisible(method_class: type[Method], devices: Mapping[int, str]) -> None:
    """ValueError where a method must see all layers together and they are on several devices."""
    places = sorted(set(devices.values()))
    if method_class.together and len(places) > 1:
        raise ValueError(
            f"method={method_class.name} serves all layers together, but they are on "
            f"{', '.join(places)}; use one device (model.device without model.device_map)"
        )
