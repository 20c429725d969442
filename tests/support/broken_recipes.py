"""Recipes with one mistake each: where it is, and what the sentence must say."""

from __future__ import annotations

from dataclasses import dataclass

GOOD = """\
[student]
model = "opdf_compile.distill.demo.networks:Student"

[teacher]
model = "opdf_compile.distill.demo.networks:Teacher"

[data]
source = "digits"
batch = 32

[plan]
cores = 3

[[loss]]
kind = "hinton"
temperature = 4.0
weight = 0.9

[[loss]]
kind = "task"
weight = 0.1

[optimizer]
name = "AdamW"
lr = 0.01
betas = [0.9, 0.99]

[schedule]
warmup = 0.1

[training]
epochs = 2
seed = 1
"""


@dataclass(frozen=True)
class Broken:
    """One change of the good recipe.

    Attributes:
        old: A text in it; empty means at the end.
        new: What takes its place.
        line: The line that the error must name.
        says: Texts that the sentence must hold: what was found, what was wanted, the remedy.
    """

    old: str
    new: str
    line: int
    says: tuple[str, ...]

    @property
    def text(self) -> str:
        """The recipe."""
        if not self.old:
            return GOOD + self.new
        assert GOOD.count(self.old) == 1, f"{self.old!r} is not once in the good recipe"
        return GOOD.replace(self.old, self.new)


TEACHER = '[teacher]\nmodel = "opdf_compile.distill.demo.networks:Teacher"\n'
TASK = '[[loss]]\nkind = "task"\nweight = 0.1\n'
HINTON = '[[loss]]\nkind = "hinton"\ntemperature = 4.0\nweight = 0.9\n\n'
DATA = '[data]\nsource = "digits"\nbatch = 32\n'

# Found by reading the file alone.
WRITTEN = {
    "no TOML": Broken(
        "lr = 0.01", "lr == 0.01", 25, ("'lr == 0.01'", "wanted", "correct the line")
    ),
    "a line that only looks like two": Broken(
        "lr = 0.01",
        'notes = "a\u2028b"\nlr == 0.01',
        26,
        ("'lr == 0.01'", "correct the line"),
    ),
    "open header": Broken("[optimizer]", "[optimizer", 23, ("no TOML", "'[optimizer'", "wanted")),
    "a key twice": Broken(
        "seed = 1", "seed = 1\nseed = 2", 34, ("seed was given before", "remove one")
    ),
    "open text": Broken(
        'name = "AdamW"', 'name = "AdamW', 24, ("the text of name is not closed", "close it")
    ),
    "misspelt key": Broken("epochs = 2", "epoch = 2", 32, ("no key epoch", "did you mean epochs?")),
    "misspelt section": Broken("[training]", "[trainig]", 31, ("[trainig]", "mean training?")),
    "key before sections": Broken("[student]", "seed = 1\n[student]", 1, ("seed", "no section")),
    "key of another section": Broken(
        "batch = 32", "batch = 32\ncores = 2", 10, ("no key cores", "belongs to [plan]", "move")
    ),
    "temperature of a task": Broken(
        'kind = "task"',
        'kind = "task"\ntemperature = 2.0',
        21,
        ("the task loss has no key temperature", "a hinton loss"),
    ),
    "unknown loss": Broken('"hinton"', '"hintn"', 15, ('"hintn"', "did you mean hinton?")),
    "loss without a kind": Broken('kind = "task"\n', "", 19, ("no kind", 'add kind = "hinton"')),
    "one loss in one bracket": Broken(
        GOOD[GOOD.index("[[loss]]") : GOOD.index("[optimizer]")],
        '[loss]\nkind = "hinton"\n',
        14,
        ("a table [loss]", "wanted a list of tables", "write [[loss]]"),
    ),
    "student as a list": Broken("[student]", "[[student]]", 1, ("[[student]]", "write [student]")),
    "student as a text": Broken(
        '[student]\nmodel = "opdf_compile.distill.demo.networks:Student"\n',
        'student = "student.py:build"\n',
        1,
        ('student is "student.py:build"', "write [student]"),
    ),
    "no data": Broken(DATA, "", 1, ("the section [data] is missing", "add [data]")),
    "no losses": Broken(
        GOOD[GOOD.index("[[loss]]") : GOOD.index("[optimizer]")],
        "",
        1,
        ("the section [[loss]] is missing", "add [[loss]]"),
    ),
    "modules without a teacher": Broken(
        GOOD[GOOD.index("[teacher]") : GOOD.index("[optimizer]")],
        DATA + "[online]\n" + TASK,
        7,
        ("a teacher", "wanted a [teacher]", "add one"),
    ),
    "modules that nobody follows": Broken(
        GOOD[GOOD.index("[[loss]]") : GOOD.index("[optimizer]")],
        "[online]\n" + TASK,
        14,
        ("no loss compares with it", 'add [[loss]] kind = "skew-kl"'),
    ),
    "a start from no kind of zoo": Broken(
        "[teacher]",
        'init = {kind = "sampld", zoo = "zoo"}\n[teacher]',
        4,
        ('"sampld"', "did you mean sampled?"),
    ),
    "a start from a zoo without a folder": Broken(
        "[teacher]", 'init = {kind = "mean"}\n[teacher]', 4, ("no zoo", "add zoo =")
    ),
    "weights and a zoo": Broken(
        "[teacher]",
        'weights = "w.safetensors"\ninit = {kind = "mean", zoo = "zoo"}\n[teacher]',
        5,
        ("init from a zoo and weights", "wanted one start", "remove one"),
    ),
    "a share of no copy": Broken(
        "[data]", "pruned_share = 0.3\n[data]", 7, ("nothing is pruned", "add pruned = 0.1")
    ),
    "all of a teacher gone": Broken(
        "[data]", "pruned = 1.0\n[data]", 7, ("pruned in [teacher] is 1", "below 1")
    ),
    "an unknown second look": Broken(
        "[optimizer]",
        '[augment]\nkind = "mixupp"\n[optimizer]',
        24,
        ('"mixupp"', '"mixup" or "cutmix"', "did you mean mixup?"),
    ),
    "a second look that is for nothing": Broken(
        "[optimizer]",
        '[augment]\nkind = "mixup"\nteacher = 0.0\n[optimizer]',
        23,
        ("no loss takes", "add labels = 1.0"),
    ),
    "a share that cutout does not draw": Broken(
        "[optimizer]",
        '[augment]\nkind = "cutout"\nalpha = 0.5\n[optimizer]',
        25,
        ("cutout draws no share", "remove alpha"),
    ),
    "mixed labels without a task": Broken(
        TASK,
        '[augment]\nkind = "mixup"\nlabels = 1.0\n',
        21,
        ("there is no task loss", 'add [[loss]] kind = "task"'),
    ),
    "two that change the teacher": Broken(
        "[optimizer]",
        '[augment]\nkind = "mixup"\n[online]\n[optimizer]',
        23,
        ("[augment] and [online]", "remove one"),
    ),
    "rank of nothing": Broken(
        "[optimizer]",
        "[online]\nrank = 0\n[optimizer]",
        24,
        ("rank in [online] is 0", "1 or more", "write rank = 8"),
    ),
    "no rate": Broken("lr = 0.01\n", "", 23, ("[optimizer] has no lr", "add lr = 0.001")),
    "no model": Broken(
        'model = "opdf_compile.distill.demo.networks:Student"\n',
        "",
        1,
        ("[student] has no model", "add model ="),
    ),
    "number as a text": Broken(
        "epochs = 2", 'epochs = "2"', 32, ('epochs in [training] is "2"', "a whole number")
    ),
    "not whole": Broken("batch = 32", "batch = 32.5", 9, ("32.5", "a whole number of 1 or more")),
    "too small": Broken("epochs = 2", "epochs = 0", 32, ("is 0", "1 or more", "write epochs = 30")),
    "negative rate": Broken(
        "lr = 0.01", "lr = -0.01", 25, ("-0.01", "above 0", "write lr = 0.001")
    ),
    "no number": Broken("lr = 0.01", "lr = nan", 25, ("nan", "wanted a number above 0")),
    "one core": Broken("cores = 3", "cores = 1", 12, ("is 1", "from 2 to 64", "write cores = 3")),
    "unknown choice": Broken(
        "warmup = 0.1", 'kind = "cosin"', 29, ('"cosin"', '"linear"', "did you mean cosine?")
    ),
    "yes for true": Broken("", 'ema = "yes"\n', 34, ('"yes"', "a number above 0 and below 1")),
    "empty text": Broken(
        '"digits"', '""', 8, ('source in [data] is ""', 'write source = "digits"')
    ),
    "epochs and steps": Broken(
        "seed = 1", "steps = 9", 33, ("epochs = 2 and steps = 9", "remove steps")
    ),
    "no length": Broken("epochs = 2\n", "", 31, ("neither epochs nor steps", "add epochs = 30")),
    "no teacher": Broken(TEACHER, "", 13, ("the hinton loss", "has none", "wanted a [teacher]")),
    "cores and scale": Broken(
        "cores = 3", "cores = 3\nscale = 2.0", 13, ("cores and scale", "remove scale")
    ),
    "cores of a plain student": Broken(
        "cores = 3", "cores = 3\nenabled = false", 12, ("cores and enabled = false", "remove it")
    ),
    "alignment of a plain student": Broken(
        "cores = 3", "enabled = false\n[alignment]", 13, ("[alignment]", "enabled = false")
    ),
    "unknown parametrization": Broken(
        "cores = 3", 'parametrization = "mpoo"', 12, ('"mpoo"', "did you mean mpo?")
    ),
    "unknown option of a parametrization": Broken(
        "cores = 3",
        'parametrization = "wide(expnasion=2)"',
        12,
        ('"wide(expnasion=2)"', "no option 'expnasion' (did you mean 'expansion'?)"),
    ),
    "cores of a plan and of its parametrization": Broken(
        "cores = 3",
        'cores = 3\nparametrization = "mpo(cores=4)"',
        12,
        ('cores and parametrization = "mpo(cores=4)"', "remove cores"),
    ),
    "rule of an unknown parametrization": Broken(
        "cores = 3",
        '[plan.rules]\n"fc1.*" = "svd"\n"fc2.*" = "gain"',
        14,
        ("[plan.rules] cannot be followed: the rule 'fc2.*'", "did you mean gains?"),
    ),
    "rule whose glob is no text": Broken(
        "cores = 3",
        '[plan.rules]\nfc1.weight = "svd"',
        13,
        (
            "rules in [plan] is a table",
            "wanted a table of texts",
            'write rules = {"head.*" = "none"}',
        ),
    ),
    "rules and a rule for all others": Broken(
        "cores = 3",
        'parametrization = "svd"\nrules = {"*" = "gains"}',
        13,
        ("parametrization='svd' is given beside a rule for '*'", "remove one"),
    ),
    "unknown optimizer": Broken(
        '"AdamW"', '"AdamX"', 24, ('"AdamX"', "torch.optim", "did you mean")
    ),
    "LBFGS": Broken('"AdamW"', '"LBFGS"', 24, ("several times per step", 'write name = "AdamW"')),
    "unknown option": Broken("betas", "beta", 26, ("key beta", "AdamW", "did you mean betas?")),
    "option of another class": Broken(
        "betas = [0.9, 0.99]",
        "momentum = 0.9",
        26,
        ("momentum", "AdamW does not take", "remove it"),
    ),
    "bad option": Broken("[0.9, 0.99]", "[0.9, 1.5]", 26, ("1.5", "correct betas")),
    "a matched rate": Broken(
        "lr = 0.01",
        'lr = "matched"\nplain_lr = 0.02',
        25,
        ('"matched"', "no longer there", "write lr = 0.02, without plain_lr"),
    ),
    "a matched rate of nothing": Broken(
        "lr = 0.01", 'lr = "matched"', 25, ("a number above 0", "write lr = 0.001")
    ),
    "a rate too many": Broken(
        "lr = 0.01", "lr = 0.01\nplain_lr = 0.1", 26, ("key plain_lr", "wanted one of", "lr")
    ),
    "two losses of one name": Broken(
        'kind = "task"', 'kind = "hinton"', 19, ("2 losses are called hinton", 'name = "hinton-2"')
    ),
    "half a step": Broken("warmup = 0.1", "warmup = 2.5", 29, ("2.5", "write warmup = 2")),
    "shares of all": Broken(
        "batch = 32", "validation_share = 0.6\ntest_share = 0.5", 9, ("1.1 together", "smaller")
    ),
    "nothing to choose with": Broken(
        "batch = 32", "validation_share = 0", 9, ("is 0", "write validation_share = 0.15")
    ),
    "unknown metric": Broken(
        "", 'metric = "acuracy"\n', 34, ('"acuracy"', "did you mean accuracy?")
    ),
    "unknown tracker": Broken(
        "",
        'log_with = ["tensorbord"]\n',
        34,
        ('"tensorbord"', "swanlab, tensorboard, trackio", "mean tensorboard?"),
    ),
    "two starts": Broken(
        "[teacher]",
        'weights = "w.safetensors"\nwarm_start = true\n[teacher]',
        5,
        ("warm_start", "weights", "remove one"),
    ),
    "a map for nobody": Broken(
        "[teacher]", 'layer_map = "found"\n[teacher]', 4, ("nothing reads", "warm_start = true")
    ),
    "half precision without a GPU": Broken(
        "", 'precision = "fp16"\ndevice = "cpu"\n', 34, ("needs a GPU", 'write precision = "bf16"')
    ),
    "texts that nothing reads": Broken(
        '"digits"', '"pairs.jsonl"', 8, ("pairs.jsonl holds prompts", "add [language]")
    ),
    "labels beside responses": Broken(
        "batch = 32", 'labels = "y"\n[language]', 9, ("[language] makes them", "remove labels")
    ),
    "a part of what is not kept": Broken(
        "[data]", "cache_top_k = 5\n[data]", 7, ("keeps nothing", "add it, or remove cache_top_k")
    ),
    "a part of softened logits": Broken(
        "[data]",
        "cache = true\ncache_top_k = 5\n[data]",
        18,
        ("softens them by its temperature", "hinton with temperature = 1.0"),
    ),
    "a writer without prompts": Broken(
        "", '[generation]\npolicy = "on"\n', 34, ("has no [language]", "add [language]")
    ),
    "a writer without a policy": Broken(
        "", "[generation]\ntop_p = 0.9\n", 34, ("no policy", 'add policy = "adaptive"')
    ),
    "a share of another policy": Broken(
        "",
        '[language]\n[generation]\npolicy = "on"\nshare = 0.2\n',
        37,
        ('has share and policy = "on"', 'policy = "mixed" alone', "remove share"),
    ),
    "a nucleus of nothing": Broken(
        "",
        '[language]\n[generation]\npolicy = "on"\ntop_p = 0.0\n',
        37,
        ("top_p in [generation] is 0.0", "above 0 and of at most 1"),
    ),
    "a buffer below a batch": Broken(
        "",
        '[language]\n[generation]\npolicy = "adaptive"\nbuffer = 8\n',
        37,
        ("holds 8 responses and a batch has 32", "write buffer = 1000"),
    ),
    "nobody to judge the responses": Broken(
        TEACHER + "\n" + DATA + "\n[plan]\ncores = 3\n\n" + HINTON,
        DATA + '\n[language]\n[generation]\npolicy = "on"\n\n[plan]\ncores = 3\n\n',
        10,
        ("no loss compares with a teacher", 'add [[loss]] kind = "skew-kl"'),
    ),
    "a mask of nobody": Broken(
        "weight = 0.9",
        'mask = "student_mask"\n[language]',
        17,
        ("it writes nothing", 'policy = "paired"', "remove mask"),
    ),
    "a loss without a gradient": Broken(
        'kind = "hinton"\ntemperature = 4.0',
        'kind = "skew-kl"\ndetach = true',
        16,
        ("leaves skew-kl no gradient", "remove it"),
    ),
    "proof of nothing": Broken(
        "", "[export]\nenabled = false\n[verify]\nbudget = 5\n", 36, ("[verify]", "remove")
    ),
}

# Found when student, teacher and data are there.
LOADED = {
    "unknown source": Broken('"digits"', '"digts"', 8, ('"digts"', "did you mean digits?")),
    "no texts": Broken(
        "batch = 32", "[language]", 8, ('"digits" has no form', "FILE.jsonl", "remove [language]")
    ),
    "no such file": Broken(
        '"digits"', '"nix.npz"', 8, ("nix.npz does not exist", "check the path")
    ),
    "no such model": Broken("networks:Student", "networks:Studnt", 2, ("'Studnt'", "Student")),
    "no such module": Broken(
        "opdf_compile.distill.demo.networks:Teacher", "no_such:build", 5, ("cannot be imported",)
    ),
    "no such weights": Broken(
        "[teacher]", 'weights = "w.safetensors"\n[teacher]', 4, ("w.safetensors", "does not exist")
    ),
    "no such column": Broken(
        "batch = 32", 'labels = "label"', 9, ('no column "label"', "did you mean labels?")
    ),
    "no such input": Broken(
        "batch = 32", 'inputs = ["image"]', 9, ('no column "image"', "did you mean images?")
    ),
    "a share of parts": Broken(
        "batch = 32", "test_share = 0.2", 9, ("digits brings one", "remove test_share")
    ),
    "no such output": Broken(
        "temperature = 4.0", 'student = "hidden"', 16, ('reads "hidden"', "logits")
    ),
    "modules in no weight": Broken(
        "[optimizer]",
        '[online]\ninclude = ["conv.*"]\n[optimizer]',
        23,
        ("'conv.*' names none", "opdf-compile inspect"),
    ),
    "no such weight to leave alone": Broken(
        "cores = 3", 'exclude = ["encoder.*"]', 12, ("'encoder.*'", "names none")
    ),
    "a warm-up longer than the run": Broken(
        "warmup = 0.1", "warmup = 999", 29, ("999 steps", "2 epochs of", "write warmup = 0.1")
    ),
    "a metric that is none": Broken(
        "",
        'metric = "opdf_compile.distill.demo.networks:Student"\n',
        34,
        ("is no metric", "a sum over examples", "correct it"),
    ),
    "no such parameter": Broken(
        "betas = [0.9, 0.99]", 'no_decay = ["*.norm"]', 26, ('"*.norm"', "names none", "correct")
    ),
}
