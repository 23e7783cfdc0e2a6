"""Options of ``model.*``: where a model comes from, on what it runs, how its chat is rendered."""

import datetime
from dataclasses import dataclass

from retrobench.core.spec import changed, choice, option

_MADE = ("id", "revision", "weights", "config_json", "tokenizer", "device_map", "rope_scaling")
_UNUSED = {  # options that say nothing about models of a source
    "constructed": (*_MADE, "path", "quantize", "trust_remote_code"),
    "trace": (*_MADE, "chat_template", "max_context_tokens", "quantize", "trust_remote_code"),
    "fetched": ("path", "revision"),
    "local": ("id", "revision"),
    "hf": ("path",),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Options of ``model.*``."""

    name: str = option("", "name shown in rows and tables")
    source: str = choice(
        ("hf", "local", "fetched", "constructed", "trace"),
        "where weights come from; fetched: `retrobench fetch`",
    )
    id: str = option(
        "", "Hugging Face id, e.g. meta-llama/Llama-3.1-8B-Instruct; name of a fetched model"
    )
    revision: str = option("main", "branch, tag or commit of the id")
    path: str = option("", "folder of a local checkpoint, a GGUF file, or folder of a trace")
    weights: str = choice(("pretrained", "random"), "random: build from the config alone")
    config_json: str = option("", "architecture for random weights, as JSON (needs no download)")
    tokenizer: str = option("", "tokenizer folder or id; empty: the model's own")
    dtype: str = choice(("auto", "float32", "float16", "bfloat16"), "weights and KV cache")
    quantize: str = choice(
        ("none", "int8"), "int8: weights in 8 bits, on a CPU, with model.dtype=bfloat16"
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:0 ...")
    device_map: str = option("", "accelerate's device map, e.g. auto, for several GPUs")
    chat: bool = option(True, "use the tokenizer's chat template where it has one")
    chat_template: str = option("", "a Jinja file or a template, in place of the tokenizer's")
    chat_date: str = option(
        "2024-07-26", "the day that a chat template with a date shows, YYYY-MM-DD"
    )
    thinking: str = choice(
        ("auto", "off", "strip"),
        "think blocks. auto: as the chat template has it; off: ask it for none "
        "(enable_thinking=false); strip: think, and score what comes after",
    )
    trust_remote_code: bool = option(False, "run code from the model's repository")
    rope_scaling: str = option("", "rope parameters as JSON, over those of the config (YaRN ...)")
    max_context_tokens: int = option(
        0, "another context limit, lower or (with a warning) higher; 0: the model's own", low=0
    )

    def __post_init__(self) -> None:
        for name, value in changed(self).items():
            if name in _UNUSED[self.source]:
                raise ValueError(
                    f"{name}={value} is not used with model.source={self.source}; leave it out, or "
                    "use model=hf model.id=org/name or model=local model.path=FOLDER"
                )
        try:
            datetime.date.fromisoformat(self.chat_date)
        except ValueError as error:
            raise ValueError(f"chat_date={self.chat_date}: write a day as YYYY-MM-DD") from error
