"""`hf:DIR`: a model that transformers (or timm) saved in a local folder.

Only the folder is read: nothing is downloaded, no code of the folder runs (`trust_remote_code` is
never set), weights are safetensors.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opdf_compile.errors import ArtefactError, InputError, error_line
from opdf_compile.io.models.example_inputs import (
    ExampleInputs,
    Hints,
    InputOptions,
    make_examples,
    rename_axes,
)
from opdf_compile.io.models.from_timm import is_timm, load_timm_folder, zoo_package
from opdf_compile.io.models.loaded import LoadedModel, fixed_randomness
from opdf_compile.io.screening.hf import screen_folder

# What onnxruntime users need beside the graph: the configuration, and the tokenizer's files.
_CARRIED = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "chat_template.jinja"),
)
_SEQUENCE = 16


def load_hf(spec: str, inputs: InputOptions, *, trust_pickle: bool = False) -> LoadedModel:
    """Load the architecture that config.json names, with the folder's weights.

    Args:
        spec: "hf:DIR".
        inputs: The user's example inputs; where there are none, a batch of token ids or images.
        trust_pickle: Accept `pytorch_model.bin`, which can run code.

    Raises:
        ArtefactError: The folder is missing, holds no model, or only a pickled one.
        InputError: transformers is not installed or does not know the architecture.
    """
    folder = _model_folder(spec, trust_pickle)
    written = screen_folder(folder, spec)
    if is_timm(written):
        return load_timm_folder(folder, written, spec, trust_pickle=trust_pickle)
    transformers = zoo_package("transformers", spec)
    with fixed_randomness(), quiet(transformers):
        config = _config(transformers, folder, spec)
        model, notes = _model(transformers, config, folder, spec, trust_pickle)
    examples = _examples(model, config, inputs)
    carried = tuple(folder / name for name in _CARRIED if (folder / name).is_file())
    return LoadedModel(
        model,
        examples.args,
        examples.kwargs,
        dict(examples.dynamic) if examples.dynamic else None,
        name=folder.resolve().name,
        kind="hf",
        notes=notes,
        folder=folder,
        extra_files=carried,
    )


def _model_folder(spec: str, trust_pickle: bool) -> Path:
    text = spec.removeprefix("hf:")
    folder = Path(text)
    if not text or not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ArtefactError(
            f"{spec}: {folder} {what}, wanted a local folder that save_pretrained wrote (models "
            "are not downloaded); give its path"
        )
    if not (folder / "config.json").is_file():
        raise ArtefactError(
            f"{spec}: {folder} holds no config.json, wanted a folder that save_pretrained wrote; "
            "check the path"
        )
    if not any(folder.glob("*.safetensors")) and not trust_pickle:
        found = "only pickled weights" if any(folder.glob("*.bin")) else "no weights"
        raise ArtefactError(
            f"{spec}: {folder} holds {found}, wanted safetensors; save it again with "
            "save_pretrained, or, if you trust pickled weights completely, give --trust-pickle"
        )
    return folder


def _config(transformers: Any, folder: Path, spec: str) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # Readers of configurations raise every kind.
        raise ArtefactError(
            f"{spec}: config.json cannot be read by transformers {transformers.__version__} "
            f"({error_line(error)}); models with code of their own are not loaded"
        ) from error
    # A cache of past keys would become further outputs of the graph.
    if getattr(config, "use_cache", None):
        config.use_cache = False
    return config


def _architecture(transformers: Any, names: list[Any], spec: str) -> Any:
    """The class of models that the folder names; anything else in transformers is not run."""
    if not names:
        return transformers.AutoModel
    found = getattr(transformers, names[0], None) if isinstance(names[0], str) else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InputError(
            f"{spec} is a {str(names[0])[:80]}, which transformers {transformers.__version__} does "
            "not have as a model; install a version that has it"
        )
    return found


def _model(
    transformers: Any, config: Any, folder: Path, spec: str, trust_pickle: bool
) -> tuple[Any, tuple[str, ...]]:
    names = list(getattr(config, "architectures", None) or [])
    architecture = _architecture(transformers, names, spec)
    safe = any(folder.glob("*.safetensors")) or not trust_pickle
    try:
        model, report = architecture.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=safe,
            output_loading_info=True,
        )
    except Exception as error:  # Loading raises every kind.
        raise ArtefactError(
            f"{spec}: the weights cannot be loaded ({error_line(error)}); save the model again "
            "with save_pretrained"
        ) from error
    missing = sorted(report.get("missing_keys") or ())
    if not missing:
        return model, ()
    if not model.state_dict().keys() - set(missing):
        raise ArtefactError(
            f"{spec}: {folder} holds none of the weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}), wanted the weights of this model; save it again with "
            "save_pretrained"
        )
    return model, (
        f"{len(missing)} weights of {names[0] if names else 'the model'} are not in {folder} and "
        f"were drawn at random ({', '.join(missing[:3])})",
    )


def _examples(model: Any, config: Any, inputs: InputOptions) -> ExampleInputs:
    """The user's inputs, or a batch of ids or images, with the axes' usual names."""
    parameters = list(inspect.signature(model.forward).parameters)
    options = inputs or InputOptions(_default_specs(model, config, parameters), None, None)
    if not inputs and options.specs:
        options = InputOptions(options.specs, None, _default_sizes(config, options.specs))
    examples = make_examples(options, parameters, _hints(config))
    return rename_axes(examples, _axis_name)


def _axis_name(name: str, axis: int, letter: str) -> str:
    if axis == 0:
        return "batch_size"
    if axis == 1:
        return "decoder_sequence_length" if name.startswith("decoder_") else "sequence_length"
    return letter


def _default_specs(model: Any, config: Any, parameters: list[str]) -> tuple[str, ...]:
    main = getattr(model, "main_input_name", "input_ids")
    if main == "input_ids" and main in parameters:
        specs = ["input_ids=BxS:int64"]
        if "attention_mask" in parameters:
            specs.append("attention_mask=BxS:int64")
        if getattr(config, "is_encoder_decoder", False):
            specs.append("decoder_input_ids=BxT:int64")
        return tuple(specs)
    size = getattr(config, "image_size", None)
    if main == "pixel_values" and size is not None:
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        channels = getattr(config, "num_channels", 3)
        return (f"pixel_values=Bx{channels}x{height}x{width}:float32",)
    return ()


def _default_sizes(config: Any, specs: tuple[str, ...]) -> str:
    longest = getattr(config, "max_position_embeddings", None) or _SEQUENCE
    sizes = {"B": 2, "S": min(_SEQUENCE, longest), "T": min(_SEQUENCE - 4, longest)}
    letters = [letter for letter in sizes if any(letter in spec for spec in specs)]
    return ",".join(f"{letter}={sizes[letter]}" for letter in letters)


def _hints(config: Any) -> Hints:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None) or 2
    names = ("input_ids", "decoder_input_ids", "labels")
    return Hints(limits=dict.fromkeys(names, int(vocabulary)))


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' progress bars and reports out of a command's output."""
    logs = transformers.utils.logging
    level = logs.get_verbosity()
    bars = logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
