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
    "numerics and latency pass. The raw file shows the cores, and refutes it. That is why latency "
    "alone proves nothing."
)

OWN_BRANCHES = (
    "A model that brought [branches of its own](own-branches.md) has a second way to be wrong: a "
    "merge that was a stub leaves the right structure with the wrong weights, or the right numbers "
    "with all branches. Check data of a folded file therefore names what must be gone, and a "
    "bundle with a plan whose planned weights are all the reference's is refuted, too."
)

METRIC = (
    (
        "`verify --metric` asks whether the candidate's score is worse than the torch model's, "
        "and than the reference's, by more than a margin, on the same rows. The verdict is read "
        "from the two-sided 90 % interval of the mean difference, as that of latency is: `pass` "
        "where all of it lies above minus the margin, `fail` where all of it lies below. Each is "
        "wrong in 5 % of cases at most, where the interval is right."
    ),
    "",
    (
        "Student's t is not right for scores that tie, such as right and wrong: where 0.5 % of "
        "rows turn wrong, 200 rows show no change in 36 % of draws, and t calls that certain. The"
        " interval that is used gives such rows the room of the rule of three, a correction for "
        "skew (Johnson, Hall) and one for continuity (`opdf_compile/parity/metric/paired.py`)."
    ),
    "",
    (
        "- Rows that turn in one direction, counted exactly over all outcomes (binomial), 10 to "
        "3,000 rows, rates up to 40 %, the truth at the margin: at most 4.9 % wrong passes and "
        "4.9 % wrong fails. Two pseudo-rows (Bonett and Price) in place of this: up to 9.6 %."
    ),
    (
        "- Rows that turn in both directions (1 and 2 %, 2 and 3 %, 10 and 15 %, 5 and 25 %), 10 "
        "to 500 rows, 20,000 draws each: 0 to 4.7 %."
    ),
    (
        "- Scores without ties are judged by t with the correction for skew: 4.8 to 5.4 % at each"
        " end for normal differences of 2 to 500 rows. Differences with heavy tails need more "
        "rows: log-normal ones 11 to 17 % at 10 and 30 rows on the far side, 6 % at 500."
    ),
    (
        "- `needed` is the number of rows at which the same mean and spread would decide: close "
        "to the margin it grows without end."
    ),
    "",
    (
        "Equal scores of outputs that differ by less than the root of the dtype's rounding (3e-4 "
        "of the largest in float32, 3 % in float16, 9 % in bfloat16) are the scores of one "
        "function, and a point. One number for all rows has the interval of scores: its spread "
        "from 1,000 resamplings from a fixed seed, its steps and its skew from leaving rows out, "
        "singly or in 500 parts. Where no draw moves it, nothing is decided."
    ),
    "",
    (
        "- A share of right rows as one number, rows that turn in one direction, counted exactly "
        "over all outcomes, 10 to 3,000 rows, rates up to 40 %, the truth at the margin: at most "
        "5.2 % wrong passes and 5.8 % wrong fails; 4.0 % at 1,000 rows and a rate of 0.95 %. "
        "Quantiles of the draws in place of this: up to 21 % wrong passes."
    ),
    (
        "- F1, 100 to 1,000 rows of which 1 to 10 % turn, 600 to 1,500 draws of rows each, the "
        "truth at the margin: 0 to 3.2 % wrong passes, 0.7 to 3.5 % wrong fails."
    ),
    (
        "- Whether rows tie is not seen in one number, so that all of them are given the room of "
        "a step: where scores do not tie, the interval is wider than t's, by 41 % at 20 rows, "
        "11 % at 200 and 7 % at 1,000. A metric that gives a score for each row is judged more "
        "sharply."
    ),
)
FOLDED = (
    "Beside the three parts `verify` asks whether the candidate is what it claims to be, of "
    "bundles and of pairs of files, whatever was asked for with `--only`; an activation or a bias "
    "that is missing is found by comparing the graphs, so only where structure is asked for. Each "
    "of these is refuted (exit code 1); the sentence is the first of `structure.differences` in "
    "the JSON and stands below the table.",
    "",
    "| what was met | what `verify` says |",
    "| :-- | :-- |",
    "| all weights of the plan are the reference's, bit by bit | *the fold did not happen: all N "
    "planned weights of student.onnx are those of the untouched reference.onnx ...*, and whether "
    "other numbers moved |",
    "| cores or branches are still in the file, in one file or in both | *still expanded: N "
    "weights are computed from cores in student.onnx (...); fold before export* |",
    "| a matrix that folding changes or removes is still there | *the fold did not happen: "
    "student.onnx still holds ... as before* |",
    "| an activation is missing | *an activation was lost, Relu 'node_relu': input 0 of Gemm 'fc' "
    "is ...* |",
    "| a bias is missing | *a bias was lost, parameter 'conv.bias' float32[64] of Conv 'conv': "
    "...* |",
    "| the reference is the candidate's file, and a plan is claimed | *the reference is the "
    "candidate: ... are the same file (SHA-256 ...), although ...* |",
    "",
    "A plan is claimed by the bundle that holds it; `export_onnx(..., plan=...)` also writes the "
    "names of the planned weights into the student's metadata and into its check data, so that a "
    "pair of files, or a copy whose metadata a tool dropped, keeps the claim. Without a claim "
    "nothing is wrong with equal weights: an untrained student is exported, or a file is compared "
    "with itself, and a note says so. Nor is one planned weight wrong that did not move while "
    "another did (it may be frozen), or a weight that the plan leaves alone.",
    "",
    "A planned weight is known by its name, among initialisers, Constant nodes and the constants "
    "of nested graphs. Where a tool renamed or quantised some, the fold is refuted only if all "
    "constants of both files are the same: *all constants of student.onnx are those of the "
    "untouched reference.onnx*.",
    "",
    "Cores and branches are known by the names that `expand` gives them, which torch's exporter "
    "keeps. A student may have modules called so, as detectors have `cls_branches`. What makes "
    "them those of `expand`: they are named after a weight (a planned one, one whose own name "
    "says weight, or, for branches, one that is in the file), and cores are read by nodes that "
    "depend on constants alone. Where the name alone speaks for it, a file is refuted only if the "
    "other one has none of that name; else a note tells of it. Where a tool multiplied some cores "
    "out, a product of constant matrices that is read as a weight is counted where the reference "
    "has fewer. The same products in both files may be the student's own; then a note tells of "
    "them.",
    "",
    "What is lost is named only where the reference has one activation or bias more than the "
    "candidate at the same place, and what is read before it is alike; what lies behind it is "
    "compared on, so that a graph without other faults has this one difference. An activation that "
    "was exchanged for another operator is told as that.",
)

RUNTIMES = (
    "All figures above are of ONNX Runtime, the default. `verify --runtime NAME` asks the same "
    "questions of another one. The raw graphs are compared without any runtime. The graph after "
    "optimisation, numerics, latency and memory are the runtime's own: floors, tolerances, "
    "intervals and rules stay as they are, and they were calibrated with ONNX Runtime alone. Which "
    "runtimes there are, what each needs and where each is right: [Runtimes](runtimes.md).",
)

QUANTISED = (
    "A pair that was quantised alike, by `export --dtype int8` or by any other tool that keeps the "
    "names of inputs and outputs (QDQ, QOperator, dynamic; its check data is that of the float32 "
    "files), is called quantised in the report, and judged as such.",
    "",
    "- *Structure.* Operators, attributes and edges are compared as always; scales, zero points "
    "and stored weights by dtype and shape, like parameters, because training moves them. So one "
    "weight per channel in one file and per tensor in the other, one layer left in float32, or "
    "another dtype of a zero point is a difference.",
    "- *Numerics.* The truth stays the float64 truth of the float32 student. The relative error "
    "(RMS of the error over RMS of the truth) may be what int8 costs the untouched student against "
    "its own truth, times 4 exp(4.75 sqrt((1/n + 1/m) / 2)) for n and m rows of check data: 7.2 "
    "at 64 and 64. The same holds for the largest error. 4 is two bits; in pairs of small students "
    "that training parted (tests/parity/numerics/test_int8.py) the errors stay within 3 of each "
    "other. Where the budget reaches the spread of the truth over its rows, a file that always "
    "answers the mean would pass, so nothing is judged (4); without a quantised reference nothing "
    "is allowed, and only what is worse than the mean is refuted.",
    "- *What it cannot see.* A fault smaller than the budget, some per cent of the output, drowns "
    "in the error of int8: verify the float32 files too.",
    "- *Sums of int8 products* are not cut off (`session.x64quantprecision`): without VNNI an x86 "
    "does so by default, in numbers that depend on the processor. It is as with TF32, for latency "
    "too; a warning in the log says where the runtime does not load a file so. OpenVINO runs the "
    "layers of a QDQ file in int8 and does cut off: a student that is 1.2 % off as its file means "
    "it was 8.4 % off there (2026.4.1, a processor with AVX2 alone). So the files are judged "
    "twice, as the runtime computes them and as they are written, node by node in float32 by ONNX "
    "Runtime where that is installed, and either can refute.",
    "",
    "The report shows the drop from float32 to int8 of both files, on the rows of the check data. "
    "Folded branches are the known case: RepVGG's identity divides by the spread of its channel, "
    "and a small channel leaves one weight that is far larger than its kernel. When that costs "
    "accuracy is [measured](branches.md#after-int8).",
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
    "benchmarks/results/verdicts-cpu.json`. With `--runtime openvino` and `verdicts-cpu-openvino` "
    "it asks the same of another runtime; `--runtimes onnxruntime,openvino` has `parity.py` "
    "compare real models in several. Every finished repetition is on the disk at once, and the "
    "same command goes on after a stop.",
)
