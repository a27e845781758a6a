"""Sentences about how the networks of a folder were trained, chosen and combined."""

from allcls_jax.data import variations
from allcls_jax.evaluation.report.record import CROSS_VALIDATION, Folder
from allcls_jax.evaluation.report.tables import seeds


def training(folder: Folder) -> str:
    """How networks were trained."""
    config = folder.config()
    optim, train = config["optim"], config["train"]
    trained = [pattern for pattern, moves in optim["trainable"] if moves]
    varied = list(variations.tell(config.get("augment", {})))
    if folder.result("data").get("split") == "image_copies":
        varied.insert(0, "turned copies of the rarer class before the split")
    return (
        f"{optim['name']}, learning rate {optim['learning_rate']:g}, batch "
        f"{train['batch_size']}, {train['num_epochs']} epochs, class weights "
        f"{train['class_weights']}, augmentation: {', '.join(varied) or 'none'}; "
        "trainable: "
        f"{', '.join(trained)}; "
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
