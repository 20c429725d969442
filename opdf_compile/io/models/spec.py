"""The MODEL argument: a file, a callable, `timm:NAME` or `hf:DIR`, with its inputs.

    student.pt2                          programs of torch.export
    student.onnx?train=all&sr=16000      an ONNX file; the number of an input builds it in
    package.module:callable?width=64     code: a Module, (Module, args) or (Module, args, kwargs)
    file.py:callable
    timm:resnet18?num_classes=10         random weights, an example of the model's own input size
    hf:DIR                               a local folder that save_pretrained wrote, or a bundle

Models are built from fixed random numbers: the same argument has the same weights in every command.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from opdf_compile.artefacts import MANIFEST, STUDENT
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.files import FILE_CALLABLE, MODULE_CALLABLE
from opdf_compile.io.models import from_callable
from opdf_compile.io.models.example_inputs import InputOptions, make_examples, rename_axes
from opdf_compile.io.models.from_archive import load_archive, model_input_names
from opdf_compile.io.models.loaded import LoadedModel
from opdf_compile.io.models.weight_loading import load_weights

_LOG = logging.getLogger("opdf_compile")

_FORMS = "file.pt2, file.onnx, package.module:callable, file.py:callable, timm:NAME or hf:DIR"
_ONNX_FILE = re.compile(r"(?P<path>.+\.onnx)(?:\?(?P<query>.*))?", re.DOTALL)
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def load_model(
    spec: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    inputs: InputOptions | None = None,
    trust_pickle: bool = False,
) -> LoadedModel:
    """Load a model and its example inputs.

    Args:
        spec: The MODEL argument.
        weights: Weights to copy into it.
        inputs: Example inputs; they replace those that the model brings.
        trust_pickle: Accept files that can run code when loaded; the caller vouches for them.

    Returns:
        The model in the train/eval state that its loader returned.

    Raises:
        InputError: The argument has no known form, or its callable, arguments or inputs fail.
        ArtefactError: A file is missing, damaged or not trusted.

    Example:
        >>> loaded = load_model("timm:resnet18?num_classes=10")  # doctest: +SKIP
        >>> trace(loaded.model, loaded.args, loaded.kwargs)  # doctest: +SKIP
    """
    options = inputs or InputOptions()
    loaded = _dispatch(spec, options, trust_pickle)
    if weights is not None:
        # The programs of an archive share their tensors; the training program holds them all.
        target = loaded.model["model"] if isinstance(loaded.model, dict) else loaded.model
        notes = load_weights(target, weights, trust_pickle=trust_pickle)
        loaded = replace(loaded, notes=(*loaded.notes, *notes))
    if options and loaded.kind != "hf":
        loaded = _with_inputs(loaded, options)
    for note in loaded.notes:
        _LOG.warning("%s", note)
    return loaded


def _dispatch(spec: str, options: InputOptions, trust_pickle: bool) -> LoadedModel:
    if spec.startswith("timm:"):
        from opdf_compile.io.models.from_timm import load_timm

        return load_timm(spec)
    if (bundled := _bundled(spec)) is not None:
        from opdf_compile.io.models.from_onnx import load_onnx_model

        return load_onnx_model(bundled, options)
    if spec.startswith("hf:"):
        from opdf_compile.io.models.from_hf import load_hf

        return load_hf(spec, options, trust_pickle=trust_pickle)
    if in_onnx := _ONNX_FILE.fullmatch(spec):
        from opdf_compile.io.models.from_onnx import load_onnx_model

        return load_onnx_model(in_onnx, options)
    if in_file := FILE_CALLABLE.fullmatch(spec):
        return from_callable.load_callable(in_file, spec)
    path = Path(spec)
    if path.suffix.lower() == ".pt2":
        return load_archive(path, trust_pickle=trust_pickle)
    if path.suffix.lower() in _PICKLED:
        return _load_pickled(path, trust_pickle)
    if path.suffix.lower() == ".safetensors":
        raise InputError(
            f"{path} holds weights and no model; give the model ({_FORMS}) and this file with "
            "--weights"
        )
    in_module = MODULE_CALLABLE.fullmatch(spec)
    if in_module and not path.exists():
        return from_callable.load_callable(in_module, spec)
    raise _unknown(spec)


def _bundled(spec: str) -> re.Match[str] | None:
    """The file of `hf:BUNDLE`, where neither transformers nor timm knows the student."""
    folder = Path(spec.removeprefix("hf:"))
    if not spec.startswith("hf:") or (folder / "config.json").exists():
        return None
    if not (folder / MANIFEST).is_file() or not (folder / STUDENT).is_file():
        return None
    return _ONNX_FILE.fullmatch(str(folder / STUDENT))


def _load_pickled(path: Path, trust_pickle: bool) -> LoadedModel:
    from opdf_compile.io.models.from_pickle import load_pickle

    found = load_pickle(path, trust_pickle=trust_pickle)
    if not isinstance(found, nn.Module):
        raise ArtefactError(
            f"{path} holds a {type(found).__name__}, wanted a torch.nn.Module; give the model as "
            "package.module:callable and this file with --weights"
        )
    return LoadedModel(found, name=path.stem, kind="pickle")


def _unknown(spec: str) -> InputError:
    path = Path(spec)
    try:
        if path.is_dir():
            what = "is a folder; a folder that save_pretrained wrote is given as hf:DIR"
        elif path.is_file():
            what = f"is a file of an unknown kind ({path.suffix or 'no suffix'}); wanted {_FORMS}"
        elif path.suffix == ".py":
            what = "names a Python file without a callable; give FILE.py:CALLABLE"
        else:
            what = f"is no file and no known form of a model; wanted {_FORMS}"
    except (OSError, ValueError):
        what = f"is no path and no known form of a model; wanted {_FORMS}"
    return InputError(f"{spec!r} {what}")


def _with_inputs(loaded: LoadedModel, options: InputOptions) -> LoadedModel:
    """The user's example inputs in place of the model's own."""
    names, positional, others = model_input_names(loaded.model)
    examples = make_examples(options, names)
    unknown = [name for name in examples.kwargs if name not in names and not others]
    if unknown:
        raise InputError(
            f"the model {loaded.name} has no input {unknown[0]!r}, its inputs are "
            f"{', '.join(names) or 'none'}; use one of these names"
        )
    args, kwargs = list(examples.args), dict(examples.kwargs)
    if positional is not None:
        # A program is called in the way it was exported: by position, or by name.
        while len(args) < positional and len(args) < len(names) and names[len(args)] in kwargs:
            args.append(kwargs.pop(names[len(args)]))
        kwargs.update(zip(names[positional:], args[positional:], strict=False))
        args = args[:positional]
    if loaded.programs:
        recorded = loaded.dynamic or {}

        def recorded_name(name: str, axis: int, letter: str) -> str:
            """The name an axis had when the program was made (of `hf:`, "sequence_length")."""
            known = dict(enumerate(recorded.get(name, ()))).get(axis)
            return known if isinstance(known, str) else letter

        examples = rename_axes(examples, recorded_name)
    dynamic: Any = examples.dynamic
    if dynamic is None and (loaded.programs or loaded.kind == "onnx"):
        dynamic = loaded.dynamic
    return replace(loaded, args=tuple(args), kwargs=kwargs, dynamic=dynamic)
