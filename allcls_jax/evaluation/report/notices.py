"""Whose data and weights a run stands on, and under which licence."""

import dataclasses

from allcls_jax.evaluation.report.record import Folder


@dataclasses.dataclass(frozen=True, slots=True)
class Notice:
    """A title and a paragraph."""

    title: str
    text: str


_CNMC = Notice(
    "Data",
    "C-NMC 2019, licensed CC BY 3.0. Cite it wherever results are shown: Gupta, A., & "
    "Gupta, R. (2019). ALL Challenge dataset of ISBI 2019 (C-NMC 2019) [Data set]. The "
    "Cancer Imaging Archive. doi:10.7937/tcia.2019.dc64i46r",
)
_SYNTHETIC = Notice(
    "Data",
    "Synthetic cells, drawn by this package. A figure on them says nothing about "
    "leukemia.",
)
_OWN = Notice(
    "Data",
    "The user's own cells. Their licence: not available, the record of the run holds "
    "none.",
)
_VGG = Notice(
    "Weights",
    "The VGG weights trained on ImageNet are by K. Simonyan and A. Zisserman, Visual "
    "Geometry Group, University of Oxford, licensed CC BY 4.0. Of the file used the "
    "record holds name and sha256, from which it must be told that it is theirs.",
)
_RANDOM = Notice(
    "Weights",
    "The backbone was drawn at random from the seed; nobody's weights were used.",
)
_UNKNOWN = Notice("Weights", "Not available: the record of the run names no weights.")
_SOFTWARE = Notice(
    "Software",
    "allcls_jax, Apache-2.0. It re-implements M. Garg, Acute Lymphoblastic Leukemia "
    "Classification Using Convolutional Neural Networks and Transfer Learning; the "
    "paper's own figures are quoted as its claims.",
)


def notices(folder: Folder) -> list[Notice]:
    """Returns the notices on data, weights and software that belong to a run."""
    run = folder.detail or folder
    source = (run.results.get("data") or {}).get("source")
    data = {"cnmc": _CNMC, "synthetic": _SYNTHETIC}.get(str(source), _OWN)
    weights = {"imagenet": _VGG, "random": _RANDOM}.get(
        str((run.results.get("weights") or {}).get("source")), _UNKNOWN
    )
    return [data, weights, _SOFTWARE]
