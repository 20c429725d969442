"""What a recipe says with two keys that cannot both be meant.

The schema looks at keys one by one; these rules look at the whole. Each gives a sentence with the
place of the key that is easiest to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from opdf_compile.distill.recipe.checks_language import language_problems
from opdf_compile.distill.recipe.checks_optimizer import optimizer_problems
from opdf_compile.distill.recipe.loss_schema import CorrelationSection, TaskSection
from opdf_compile.distill.recipe.problems import Problem, suggestion
from opdf_compile.distill.recipe.schema import PlanSection, Recipe
from opdf_compile.errors import PlanError

METRICS = ("auto", "accuracy", "agreement", "cosine", "kl", "mse", "perplexity")
NEED_TEACHER = ("agreement", "cosine", "kl")
# The trackers of Accelerate's `log_with`, each of the name of its package but one.
TRACKERS = {
    name: (name,)
    for name in ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
} | {"tensorboard": ("tensorboard", "tensorboardX")}


def contradiction(recipe: Recipe) -> Problem | None:
    """The first rule that the recipe breaks, or None."""
    return next((problem for rule in _RULES for problem in rule(recipe)), None)


def _length(recipe: Recipe) -> Iterator[Problem]:
    training = recipe.training
    if training.epochs is not None and training.steps is not None:
        yield Problem(
            ("training", "steps"),
            f"[training] has epochs = {training.epochs} and steps = {training.steps}, wanted one "
            "of them; remove steps",
        )
    if training.epochs is None and training.steps is None:
        yield Problem(
            ("training",),
            "[training] has neither epochs nor steps, wanted how long it trains; add epochs = 30",
        )


def _teacher(recipe: Recipe) -> Iterator[Problem]:
    if recipe.teacher is not None:
        return
    readers: list[tuple[tuple[str | int, ...], str]] = [
        (("loss", place, "kind"), f"the {loss.kind} loss compares with a teacher")
        for place, loss in enumerate(recipe.loss)
        if loss.needs_teacher
    ]
    if recipe.alignment is not None:
        readers.append((("alignment",), "[alignment] pulls towards a teacher"))
    if recipe.online is not None:
        readers.append((("online",), "[online] trains modules in a teacher"))
    if recipe.student.warm_start:
        readers.append((("student", "warm_start"), "warm_start copies layers of a teacher"))
    if recipe.training.metric in NEED_TEACHER:
        metric = recipe.training.metric
        readers.append((("training", "metric"), f"the metric {metric} compares with a teacher"))
    for path, what in readers:
        yield Problem(path, f"{what} and the recipe has none, wanted a [teacher]; add one")


def _plan(recipe: Recipe) -> Iterator[Problem]:
    plan, given = recipe.plan, recipe.plan.model_fields_set
    sizes = [name for name in ("cores", "scale", "overhead") if name in given]
    if len(sizes) > 1:
        yield Problem(
            ("plan", sizes[1]),
            f"[plan] has {' and '.join(sizes)}, wanted one of cores, scale, overhead, as each "
            f"fixes the plan; remove {sizes[1]}",
        )
    yield from _rules(plan, sizes)


def _rules(plan: PlanSection, sizes: Sequence[str]) -> Iterator[Problem]:
    """What each weight becomes."""
    from opdf_compile.planning import Rules

    word = plan.parametrization
    try:
        alone = Rules.of(None, word)
    except PlanError as error:
        sentence = f'parametrization in [plan] is "{word}": {error}'
        yield Problem(("plan", "parametrization"), sentence)
        return
    try:
        Rules.of(plan.rules, word)
    except PlanError as error:
        glob = next((glob for glob in plan.rules if repr(glob) in str(error)), "*")
        yield Problem(("plan", "rules", glob), f"[plan.rules] cannot be followed: {error}")
    if sizes and not plan.rules and "cores" in alone.given[0].request.options:
        yield Problem(
            ("plan", sizes[0]),
            f'[plan] has {sizes[0]} and parametrization = "{word}", wanted one size, as each '
            f"fixes the plan; remove {sizes[0]}",
        )


def _plain(recipe: Recipe) -> Iterator[Problem]:
    """Keys that say how weights are over-parameterised in a recipe that does not do it."""
    if recipe.plan.enabled:
        return
    remedy = "remove it, or set enabled = true in [plan]"
    for name in sorted(recipe.plan.model_fields_set - {"enabled"}):
        yield Problem(
            ("plan", name),
            f"[plan] has {name} and enabled = false, wanted a plain student or a plan; {remedy}",
        )
    if recipe.alignment is not None:
        yield Problem(
            ("alignment",),
            "[alignment] pulls the cores of a plan that has enabled = false, wanted cores; "
            f"{remedy}",
        )
    if recipe.optimizer.decay == "cores":
        yield Problem(
            ("optimizer", "decay"),
            'decay = "cores" means the cores of a plan that has enabled = false, wanted cores; '
            f"{remedy}",
        )


def _student(recipe: Recipe) -> Iterator[Problem]:
    student = recipe.student
    if student.warm_start and student.weights is not None:
        yield Problem(
            ("student", "warm_start"),
            f'[student] has warm_start = true and weights = "{student.weights}", wanted one start; '
            "remove one of them",
        )
    for name in ("warm_start", "weights"):
        if student.init is not None and getattr(student, name):
            yield Problem(
                ("student", "init"),
                f"[student] has init from a zoo and {name}, wanted one start; remove one of them",
            )
    uses = student.warm_start or recipe.alignment is not None
    if "layer_map" in student.model_fields_set and not uses:
        yield Problem(
            ("student", "layer_map"),
            "[student] has a layer_map that nothing reads, wanted warm_start = true or "
            "[alignment]; add one of them or remove it",
        )
    if student.layer_map == {}:
        yield Problem(
            ("student", "layer_map"),
            "layer_map in [student] is an empty table, wanted student weight = teacher weight; "
            'write layer_map = "every-kth", or the pairs',
        )


def _losses(recipe: Recipe) -> Iterator[Problem]:
    names = Counter(loss.name or loss.kind for loss in recipe.loss)
    for place, loss in enumerate(recipe.loss):
        if isinstance(loss, TaskSection) and loss.label_smoothing and loss.of != "cross_entropy":
            yield Problem(
                ("loss", place, "label_smoothing"),
                f'label_smoothing belongs to cross entropy and the task loss is of "{loss.of}", '
                'wanted one or the other; remove it or write of = "cross_entropy"',
            )
        if isinstance(loss, CorrelationSection) and not loss.classes + loss.batch + loss.rank:
            yield Problem(
                ("loss", place),
                "the correlation loss has classes, batch and rank all 0, wanted at least one part; "
                "write classes = 1.0",
            )
    for place, loss in reversed(list(enumerate(recipe.loss))):
        name = loss.name or loss.kind
        if names[name] > 1:
            yield Problem(
                ("loss", place),
                f"{names[name]} losses are called {name}, wanted a name for each; add name = "
                f'"{name}-2" to this one',
            )


def _pruned(recipe: Recipe) -> Iterator[Problem]:
    """A share of a copy that is not made."""
    teacher = recipe.teacher
    if teacher is not None and not teacher.pruned and "pruned_share" in teacher.model_fields_set:
        yield Problem(
            ("teacher", "pruned_share"),
            f"pruned_share in [teacher] is {teacher.pruned_share:g} and nothing is pruned, wanted "
            "the share of its weights too; add pruned = 0.1",
        )


def _augment(recipe: Recipe) -> Iterator[Problem]:
    """A second look that nothing learns from."""
    augment = recipe.augment
    if augment is None:
        return
    taught = augment.teacher > 0 and any(loss.needs_teacher for loss in recipe.loss)
    task = any(isinstance(loss, TaskSection) for loss in recipe.loss)
    if augment.labels and not task:
        yield Problem(
            ("augment", "labels"),
            f"labels in [augment] is {augment.labels:g} and there is no task loss, wanted one; add "
            '[[loss]] kind = "task"',
        )
    if not taught and not augment.labels:
        yield Problem(
            ("augment",),
            "[augment] gives a second look that no loss takes, wanted a loss that compares with a "
            "teacher, or the labels; add labels = 1.0",
        )
    if augment.kind == "cutout" and augment.alpha is not None:
        yield Problem(
            ("augment", "alpha"),
            f"alpha in [augment] is {augment.alpha:g} and cutout draws no share, wanted none; "
            "remove alpha",
        )
    if recipe.online is not None:
        yield Problem(
            ("augment",),
            "[augment] and [online] both change what the teacher says, wanted one of them; remove "
            "one",
        )


def _online(recipe: Recipe) -> Iterator[Problem]:
    """Modules in a teacher that nobody listens to."""
    if recipe.online is not None and not any(loss.needs_teacher for loss in recipe.loss):
        yield Problem(
            ("online",),
            "[online] trains modules in the teacher and no loss compares with it, wanted one that "
            'does; add [[loss]] kind = "skew-kl"',
        )


def _data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if data.validation is None and data.validation_share == 0:
        yield Problem(
            ("data", "validation_share"),
            "validation_share in [data] is 0 and there is no validation file, wanted examples to "
            "choose with; write validation_share = 0.15",
        )
    split = sum(
        share
        for part, share in (
            (data.validation, data.validation_share),
            (data.test, data.test_share),
        )
        if part is None
    )
    if split >= 1:
        yield Problem(
            ("data", "validation_share"),
            f"validation_share and test_share in [data] are {split:g} together, wanted less than "
            "1, as the rest is trained on; make them smaller",
        )


def _schedule(recipe: Recipe) -> Iterator[Problem]:
    warmup, steps = recipe.schedule.warmup, recipe.training.steps
    if warmup >= 1 and warmup != int(warmup):
        yield Problem(
            ("schedule", "warmup"),
            f"warmup in [schedule] is {warmup:g}, wanted a share below 1 or a whole number of "
            f"steps; write warmup = {round(warmup)}",
        )
    if steps is not None and warmup >= 1 and warmup >= steps:
        yield Problem(
            ("schedule", "warmup"),
            f"warmup in [schedule] is {warmup:g} steps and the run has {steps}, wanted fewer; "
            "write warmup = 0.1 for a tenth of the run",
        )


def _training(recipe: Recipe) -> Iterator[Problem]:
    training = recipe.training
    metric = training.metric
    if metric not in METRICS and ":" not in metric:
        advice = suggestion(metric, METRICS, 'write metric = "auto"')
        yield Problem(
            ("training", "metric"),
            f'metric in [training] is "{metric}", wanted one of {", ".join(METRICS)} or '
            f"package.module:callable{advice}",
        )
    if training.precision == "fp16" and training.device == "cpu":
        yield Problem(
            ("training", "precision"),
            'precision = "fp16" needs a GPU and device is "cpu", wanted fp32, bf16 or fp64 there; '
            'write precision = "bf16"',
        )
    for place, tracker in enumerate(training.log_with):
        if tracker not in TRACKERS:
            yield Problem(
                ("training", "log_with", place),
                f'log_with in [training] names "{tracker}", wanted one of '
                f"{', '.join(sorted(TRACKERS))}{suggestion(tracker, TRACKERS, 'remove it')}",
            )


def _verify(recipe: Recipe) -> Iterator[Problem]:
    if recipe.export.enabled:
        return
    if recipe.verify.model_fields_set and recipe.verify.enabled:
        yield Problem(
            ("verify",),
            "[verify] looks at a bundle and [export] has enabled = false, wanted a bundle; remove "
            "[verify] or that line",
        )


_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    _length,
    _teacher,
    _plain,
    _plan,
    _student,
    _losses,
    _pruned,
    _augment,
    _online,
    _data,
    language_problems,
    optimizer_problems,
    _schedule,
    _training,
    _verify,
)
