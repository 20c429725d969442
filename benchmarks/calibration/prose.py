"""The words of docs/parity.md; its figures come from the JSON."""

PENDING = (
    "Pending: these figures are not in `benchmarks/results` yet. The commands below make them."
)

HEAD = (
    "# Parity: how often the verdicts are right",
    "",
    "`verify` compares an export with the untouched student's in three parts. This page says how "
    "often each part is wrong, measured on pairs of which the right answer is known. It is "
    "written by `python benchmarks/verdicts.py --page docs/parity.md` from the JSON in "
    "`benchmarks/results`.",
)

LATENCY = (
    "**Latency.** The true ratio was measured apart from `verify`: pairs of new sessions, single "
    "runs in random order, the median of each pair of sessions, and the 95 % interval of their "
    "median. The slower candidates have one MatMul more, whose width was searched for the wanted "
    'cost; the table gives the cost that was found, not the one that was wanted. "Right" is '
    "`pass` where the true ratio lies below 1 + margin, `fail` where it lies above, and `either` "
    "where its interval holds the limit. A wrong verdict is the opposite one: `inconclusive` is "
    "an honest answer and counts apart. Brackets are exact (Clopper-Pearson) 95 % intervals."
)

STRUCTURE = (
    "**Structure and numerics.** The check data of a changed file is signed for the changed file, "
    "because `verify` would otherwise not judge it, for its hash alone. These parts have no chance "
    "in them, so equal files count once. Where a change has several places, each repetition draws "
    "one, over four students, and the interval is that of such draws. One element that is off by "
    "a small share of its weight's largest one can be drowned by rounding, or sit behind a unit "
    "that is off; what was not noticed is in the table."
)

UNFOLDED = (
    'The candidate "a weight left as its three cores" computes the same numbers, and the runtime '
    "multiplies the cores out when it loads the file, so it runs as fast as the reference: "
    "numerics and latency pass. Structure looks at the raw file and refutes it. That is why "
    "latency alone proves nothing."
)

OWN_BRANCHES = (
    "A model that brought [branches of its own](own-branches.md) has a second way to be wrong: a "
    "merge that was a stub leaves the right structure with the wrong weights, or the right numbers "
    "with all branches. Check data of a folded file therefore names what must be gone, and a "
    "bundle with a plan whose planned weights are all the reference's is refuted, too."
)

RUNTIMES = (
    "All figures above are of ONNX Runtime, the default. `verify --runtime openvino` "
    '(`openvino:gpu` for its GPU), `opdf.verify(..., runtime="openvino")` and the input '
    "`runtime` of the GitHub Action ask the same questions of OpenVINO; the extra `openvino` "
    "installs it, and `opdf-compile doctor` lists what is there and what is missing. The raw "
    "graphs are compared without any runtime. The graph after optimisation, numerics, latency and "
    "memory are the runtime's own: floors, tolerances, intervals and rules stay as they are, and "
    "they were calibrated with ONNX Runtime alone.",
    "",
    "- *Precision.* It is pinned to float32 (`INFERENCE_PRECISION_HINT`), because OpenVINO left "
    "alone computes in bfloat16 or float16 where the processor has them. The property and the "
    "precision of every operation are read back, the report says them (`environment.runtime`), "
    "and a note says where they are not what was asked for. Files in float16 are computed in "
    "float32 and judged by their own noise floor. Inputs or outputs in float64, which OpenVINO "
    "computes in float32, bfloat16 or strings are refused with a sentence.",
    "- *The graph that runs* is the one that OpenVINO tells (`get_runtime_model`): layer types, "
    "kernels, precisions, shapes and edges. It does not tell the values of constants.",
    "- *Latency.* Inputs are tensors that share the caller's memory, outputs stay in the "
    "request's; one stream, and as many threads as the process may use.",
    "",
    "**TensorRT** runs through ONNX Runtime: `--runtime onnxruntime:tensorrt`, with "
    "onnxruntime-gpu and the libraries of TensorRT 10 (`opdf-compile doctor` gives the "
    "command). `auto` never chooses it. *It was tested with pretended devices on a CPU only: "
    "no figure on this page is of TensorRT, and a run on a GPU is still to come.*",
    "",
    "- *Precision.* FP16, INT8 and sparsity are off and recorded. TF32 has no option in the "
    "provider; it is off by `NVIDIA_TF32_OVERRIDE=0`, which `verify` sets and the libraries "
    "read once. Where the variable says otherwise nothing runs; where your own program made "
    "TensorRT sessions before, use a new process.",
    "- *What runs elsewhere.* Operators that TensorRT does not take run on CUDA or the CPU, "
    "and a note of the report counts and names them. A graph of which it takes nothing is "
    "refused.",
    "- *Engines.* They are built once for each file and kept in a temporary folder that goes "
    "with the process, because an engine belongs to one GPU, driver and version. The "
    "provider finds engines by the names of file and nodes, so two students of one "
    "architecture would share one: each file's bytes have a folder of their own. Kernel "
    "timings are shared, so that equal layers get equal kernels; the latency intervals "
    "therefore do not contain the draw of another build. Each new input size outside of what "
    "an engine was built for builds it again.",
    "- *The graph that runs* is not told, and nothing runs without TensorRT's own passes.",
    "",
    "**onnxruntime-web**, the runtime of pages, is judged under node: `--runtime "
    "onnxruntime-web`, [a page of its own](onnxruntime-web.md).",
    "",
    "Another runtime is a class with the members of `Runtime` in "
    "`opdf_compile/parity/runtime/protocol.py`, named in its package's `pyproject.toml` under "
    '`[project.entry-points."opdf_compile.runtimes"]`. It is loaded only when it is asked for.',
)

REPEAT = (
    "On a machine with an NVIDIA GPU, one thing at a time:",
    "",
    "<!-- not run: it needs a GPU and half an hour -->",
    "```sh",
    "python benchmarks/parity.py --export-only --jobs 7 --threads 2 --models-dir bundles",
    "python benchmarks/parity.py --device cuda --models-dir bundles --batches 1,32 --budget 60 \\",
    "    --json benchmarks/results/parity-cuda.json --resume --plot docs/parity_cuda.png",
    "python benchmarks/verdicts.py --device cuda --resume \\",
    "    --json benchmarks/results/verdicts-cuda.json",
    "python benchmarks/training_step.py --device cuda \\",
    "    --json benchmarks/results/training_step-cuda.json",
    "python benchmarks/memory.py --device cuda --json benchmarks/results/memory-cuda.json",
    "python -m pytest -m gpu",
    "python benchmarks/verdicts.py --page docs/parity.md",
    "```",
    "",
    "On a CPU, `taskset -c 1 python benchmarks/verdicts.py --threads 1 --resume --json "
    "benchmarks/results/verdicts-cpu.json`. Every finished repetition is on the disk at once, and "
    "the same command goes on after a stop.",
)
