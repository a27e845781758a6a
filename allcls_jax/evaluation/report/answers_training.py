"""Sentences about how the networks of a folder were trained, chosen and combined."""

from collections.abc import Iterator, Mapping
from typing import Any

from allcls_jax.config import Sampling, Schedule
from allcls_jax.data import variations
from allcls_jax.evaluation.report.record import CROSS_VALIDATION, Folder
from allcls_jax.evaluation.report.tables import seeds


def training(folder: Folder) -> str:
    """How networks were trained; of what is at its default, what every recipe has."""
    config = folder.config()
    optim, train = config["optim"], config["train"]
    trained = [
        # Whether, or at which share: True is 1.
        pattern if moves == 1 else f"{pattern} at {moves:g} of the learning rate"
        for pattern, moves in optim["trainable"]
        if moves
    ]
    varied = list(variations.tell(config.get("augment", {})))
    if folder.result("data").get("split") == "image_copies":
        varied.insert(0, "turned copies of the rarer class before the split")
    steps = ", ".join([*_steps(optim), *_epochs(train)])
    stain = config["model"].get("normalise_stain")
    return (
        f"{steps}, augmentation: {', '.join(varied) or 'none'}"
        + ("; stain of each cell normalised" if stain else "")
        + f"; trainable: {', '.join(trained)}; "
        f"models trained: {max(1, len(folder.runs()))}; seed {seeds(folder)}"
    )


def selection(folder: Folder) -> str:
    """How the reported state was chosen."""
    rule = "The state of lowest validation loss; the test set takes no part in it"
    best = folder.results.get("best")
    if folder.kind == CROSS_VALIDATION or not best:
        return rule
    return f"{rule}. Epoch {best['epoch']}"


def ensembling(folder: Folder) -> str:
    """What networks predict together, if anything."""
    passes = folder.evaluation("counts").get("passes")
    views = folder.results.get("views", 1)
    of_views = f". Logits are means over {views} views of an image" * (views > 1)
    if together := folder.results.get("ensemble"):
        test = together["test"]
        told = ", ".join(
            f"{words} {test[name]:.3f}"
            for name, words in (("weighted_f1", "weighted F1"), ("auroc", "AUROC"))
            if test[name] is not None
        )
        return (
            f"Figures are those of single networks, averaged over {passes} passes. "
            f"Beside them, the mean of {together['members']} networks of each fold: "
            f"{told}; their probabilities of an image spread by "
            f"{together['mean_spread']:.3f} on average (ensemble.csv){of_views}"
        )
    if passes and passes > 1:
        return (
            f"No ensemble; figures are computed in each of {passes} passes and averaged"
            + of_views
        )
    return f"No ensemble{of_views}"


def _steps(optim: Mapping[str, Any]) -> Iterator[str]:
    """Yields how parameters move; older configurations lack some fields."""
    yield str(optim["name"])
    rate = f"learning rate {optim['learning_rate']:g}"
    if warmup := optim.get("warmup"):
        rate += f" after {warmup:g} epoch{'s' * (warmup != 1)} of warm-up"
    yield rate
    if optim.get("schedule") == Schedule.COSINE:
        yield "then a cosine" if warmup else "falling as a cosine"
    if decay := optim.get("weight_decay"):
        yield f"weight decay {decay:g}"
    if norm := optim.get("clip_norm"):
        yield f"gradients clipped at {norm:g}"
    if share := optim.get("ema"):
        yield f"running mean of parameters {share:g}"


def _epochs(train: Mapping[str, Any]) -> Iterator[str]:
    """Yields what an epoch shows and what the loss asks for; the same holds."""
    yield f"batch {train['batch_size']}"
    epochs = f"{train['num_epochs']} epochs"
    if patience := train.get("patience"):
        epochs = f"up to {epochs} (stops after {patience} without a lower validation "
        epochs += "loss)"
    yield epochs
    yield f"class weights {train['class_weights']}"
    sampling = train.get("sampling")
    if sampling == Sampling.CLASSES:
        yield "classes shown as often"
    elif sampling == Sampling.PATIENTS:
        yield "classes shown as often, and patients within them"
    if smoothing := train.get("label_smoothing"):
        yield f"label smoothing {smoothing:g}"
    if mixup := train.get("mixup"):
        yield f"mixup {mixup:g}"
