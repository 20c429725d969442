#!/usr/bin/env bash
# Every call of torch.onnx.export parses the source of some five hundred functions anew.
#
# The exporter gathers its translation rules at the start of each call. Of every function that onnxscript
# brings it asks `function_ir` for the domain, a constant, and onnxscript answers by reading the function's
# source with inspect, parsing it and translating the signature; then the signature is made once more out
# of the annotations. Nothing of it is kept. It does not depend on the model: on a Linear layer that is
# already an ExportedProgram it is two thirds to four fifths of the call's processor time, and on a network of
# a hundred layers still two fifths. Whoever exports once does not see it, and whoever exports in a
# loop (one file for each checkpoint, bucket or candidate, a test suite) pays about a second each time.
# Kept by function, the answers give the same file, byte for byte.
#
# The count of sources read is what is held fast; times are printed.
#
# Exits 0 while the second export reads as many sources as the first, 1 once it reads few.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import functools
import inspect
import logging
import sys
import time
import warnings

import onnxscript
import torch
from onnxscript.values import TracedOnnxFunction
from torch import nn
from torch.onnx._internal.exporter import _schemas

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
print(f"torch {torch.__version__}, onnxscript {onnxscript.__version__}")

torch.manual_seed(0)
NETS = {
    "one Linear": nn.Linear(4, 4),
    "fifty Linear and GELU": nn.Sequential(*(m for _ in range(50) for m in (nn.Linear(4, 4), nn.GELU()))),
}
PROGRAMS = {name: torch.export.export(net.eval(), (torch.randn(2, 4),)) for name, net in NETS.items()}
read = []
source = inspect.getsource


def counted(function):
    read.append(function)
    return source(function)


inspect.getsource = counted


def exported(program):
    """The file, the sources read for it and the processor time."""
    read.clear()
    began = time.process_time()
    made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    spent = time.process_time() - began
    return made.model_proto.SerializeToString(), len(read), len(set(read)), spent


def table(title):
    print(title)
    rows = {}
    for name, program in PROGRAMS.items():
        for call in ("first", "second", "third"):
            rows[name, call] = file, sources, functions, spent = exported(program)
            print(
                f"    {name:<22} {call:<7} {sources:4} sources read, of {functions:3} functions, "
                f"{spent:.2f} s, {len(file)} bytes"
            )
    return rows


as_it_is = table("as it is")

# The two questions answered once for each function.
TracedOnnxFunction.function_ir = property(functools.cache(TracedOnnxFunction.function_ir.fget))
_schemas.op_signature_from_function = functools.cache(_schemas.op_signature_from_function)
exported(PROGRAMS["one Linear"])
kept = table("with the answers kept")

again = all(sources > 300 for _file, sources, _functions, _spent in as_it_is.values())
none = all(sources == 0 for _file, sources, _functions, _spent in kept.values())
same = all(as_it_is[key][0] == kept[key][0] for key in kept)
print(f"the same bytes with the answers kept: {same}")
good = again and none and same
print("it behaves so" if good else "the behaviour has changed")
sys.exit(0 if good else 1)
PYTHON
