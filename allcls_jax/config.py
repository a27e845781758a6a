"""Every setting of a run: its meaning, unit, legal values and default.

`configs/*.py` build a `Config`, `--config.section.field=value` overrides one field,
`config_rules.validate` refuses what cannot work before anything is read or computed.
"""

import copy
import dataclasses
import enum
import json


class DataSource(enum.StrEnum):
    """Where cells come from."""

    SYNTHETIC = "synthetic"  # drawn by this package; nothing to download
    CNMC = "cnmc"  # C-NMC 2019 in any of its layouts
    FOLDER = "folder"  # class/patient/image folders, or a csv


class ExperimentKind(enum.StrEnum):
    """What one command does."""

    RUN = "run"  # one network, trained and tested
    CROSS_VALIDATION = "cross_validation"  # every fold, seed and repeat, pooled
    # The same recipe cross-validated under splits that leak more and more.
    LEAK_LADDER = "leak_ladder"
    SWEEP = "sweep"  # recipes compared by cross-validation inside the training images


class SplitKind(enum.StrEnum):
    """How images are divided into training, validation and test."""

    HELD_OUT = "held_out"  # the preliminary part tests, the training part trains
    OFFICIAL = "official"  # the folds that the training part comes with
    GROUPED = "grouped"  # our own folds of it, groups of patients kept whole
    IMAGE = "image"  # the paper's plain split by image; leaky: patients shared
    # Leakier still: classes balanced by turned copies before the split by image.
    IMAGE_COPIES = "image_copies"

    @property
    def leaky(self) -> bool:
        """Whether cells of one patient stand on both sides."""
        return self in (SplitKind.IMAGE, SplitKind.IMAGE_COPIES)


class OnBadImage(enum.StrEnum):
    """What to do with an image that cannot be read."""

    ERROR = "error"  # stop and list all of them
    SKIP = "skip"  # go on without them and write the list


class ModelName(enum.StrEnum):
    """Network variants; `models/vgg.py` holds the table."""

    VGG16 = "vgg16"
    VGG19 = "vgg19"
    TINY = "tiny"  # five small blocks, for tests


class HeadKind(enum.StrEnum):
    """What stands between the convolutional stack and the two logits."""

    FLATTEN = "flatten"  # the paper's: flatten, dense 256, dropout, dense 2
    GAP = "gap"  # global average pooling, dense 256, dropout, dense 2
    # Means of every block's output, standardised, dense 256, dropout, dense 2.
    BLOCKS = "blocks"


class ComputeDtype(enum.StrEnum):
    """The type in which the convolutions are computed; parameters stay float32."""

    AUTO = "auto"  # bfloat16 on GPU and TPU, float32 on CPU
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class OptimizerName(enum.StrEnum):
    """Optimizers of `training/optim.py`."""

    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"  # with Nesterov momentum 0.9


class Schedule(enum.StrEnum):
    """How the learning rate goes on after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # half a cosine wave, down to 0 at the end of the last epoch


class Sampling(enum.StrEnum):
    """Which training images an epoch shows; as many as there are in each case."""

    IMAGES = "images"  # each once
    CLASSES = "classes"  # drawn with replacement, either class as often
    PATIENTS = "patients"  # the same, and within a class each patient as often


class Place(enum.StrEnum):
    """Where what the network is given lies during training."""

    AUTO = "auto"  # the first of these in which it takes up little enough
    DEVICE = "device"  # in the memory of each device
    HOST = "host"  # in this machine's memory, sent batch by batch
    DISK = "disk"  # in the cache, read and sent batch by batch


class ClassWeights(enum.StrEnum):
    """How the loss weighs the two classes."""

    NONE = "none"
    BALANCED = "balanced"  # n / (2 n_class), from the training images


@dataclasses.dataclass
class SyntheticConfig:
    """The built-in cells (`data/synthetic.py`)."""

    num_images: int = 240
    num_patients: int = 24  # half ALL, half HEM
    all_share: float = 0.5  # of the images that show ALL, in (0, 1); 0.68 in C-NMC 2019
    # 0: a patient's stain and texture give nothing away; 1: they tell who it is.
    patient_effect: float = 0.5
    seed: int = 0  # of the drawing; the run's own seed leaves the cells alone


@dataclasses.dataclass
class DataConfig:
    """Which cells, how they are cut and resized, and who tests whom."""

    # None: synthetic without `dir`, else told from the folder's layout.
    source: DataSource | None = None
    dir: str | None = None  # folder, zip or csv; or what allcls prepare wrote
    image_size: int = 224  # pixels, the network's square input
    pack_size: int | None = None  # pixels stored, ≥ image_size; None: image_size
    crop: int | None = None  # centre square in pixels before resizing; None: whole
    limit: int | None = None  # number of labelled images; every patient keeps a share
    # None: held_out where there is a labelled preliminary part, else official where
    # there are folds, else grouped.
    split: SplitKind | None = None
    num_folds: int = 3  # of the splits grouped and image; official ones are three
    test_fold: int = 2  # 0 to num_folds - 1; a held-out part has no folds
    repeat: int = 0  # which drawing of the folds
    validation: float = 0.15  # share of the training patients, in (0, 1)
    # Patients that share cells: what the audit wrote, or JSON lists of patients.
    groups: str | None = None
    without: str | None = None  # file with a JSON list of patients to leave out
    on_bad_image: OnBadImage = OnBadImage.ERROR
    num_workers: int = 0  # processes that read training images; 0: threads only
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)


@dataclasses.dataclass
class AugmentConfig:
    """How training images are varied, each time anew; 0 leaves a thing as it is."""

    # Each of the 8 flips and quarter turns is as likely. Exact, and the only variation
    # under which features of a frozen stack can be kept.
    dihedral: bool = False
    rotation: float = 0.0  # degrees to either side, in [0, 180]
    scale: float = 0.0  # zoomed by 1 - scale to 1 + scale, in [0, 1)
    shift: float = 0.0  # moved in each direction by up to this share of the side
    # Optical density of haematoxylin and of eosin, each scaled by 1 - stain to
    # 1 + stain, in [0, 1).
    stain: float = 0.0
    brightness: float = 0.0  # grey levels scaled by 1 ± brightness, in [0, 1)
    blur: float = 0.0  # standard deviation of a Gaussian, up to so many pixels, [0, 8]
    jpeg: float = 0.0  # steps of JPEG's quantisation, up to so many times quality 50's
    mask: float = 0.0  # a black square, its side up to this share of the image's

    @property
    def continuous(self) -> bool:
        """Whether pictures vary beyond flips and quarter turns."""
        return any(
            getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "dihedral"
        )


@dataclasses.dataclass
class ModelConfig:
    """The network and where its frozen part comes from."""

    name: ModelName = ModelName.VGG19
    # "imagenet": found in the caches or downloaded; "random": seeded; else a file.
    weights: str = "imagenet"
    head: HeadKind = HeadKind.FLATTEN
    blocks: int = 5  # of the head `blocks`: averages of the first so many are given
    dropout: float = 0.5  # in [0, 1), between the two dense layers
    # Give each cell the optical density, mean and spread, of a standard cell first.
    normalise_stain: bool = False
    dtype: ComputeDtype = ComputeDtype.AUTO


@dataclasses.dataclass
class OptimConfig:
    """How trainable parameters move."""

    name: OptimizerName = OptimizerName.ADAM
    learning_rate: float = 1e-4  # the highest, at the end of the warm-up
    schedule: Schedule = Schedule.CONSTANT
    warmup: float = 0.0  # epochs in which the learning rate rises evenly from 0
    weight_decay: float = 0.0  # decoupled, on kernels only; needs adamw or sgd
    clip_norm: float | None = None  # of the trainable gradients; None: no clipping
    # Share of the old in the running mean of trainable parameters that is validated,
    # kept and used, in [0, 1); 0: the parameters themselves.
    ema: float = 0.0
    # (regular expression, whether trainable, or at which share of the learning rate):
    # the first that matches a whole parameter name such as block5_conv4/kernel decides;
    # each name must be matched.
    trainable: tuple[tuple[str, bool | float], ...] = (
        (r"block\d+_conv\d+/.*", False),
        (r"(dense|standardise)_\d+/.*", True),
    )


@dataclasses.dataclass
class TrainConfig:
    """The training loop."""

    num_epochs: int | None = None  # None: 20, or 5 on synthetic cells
    # Images of one step, of the whole network over all devices and processes. None: as
    # many as fit in the devices' free memory.
    batch_size: int | None = 32
    # Images that go through the network at once where nothing is learnt; changes the
    # speed alone. None: as many as fit in the devices' free memory.
    forward_batch_size: int | None = None
    class_weights: ClassWeights = ClassWeights.NONE
    sampling: Sampling = Sampling.IMAGES
    label_smoothing: float = 0.0  # share of the target given to both classes, in [0, 1)
    # Training images, and their labels, are mixed by twos with weights of the
    # distribution Beta(mixup, mixup): at 0.2 most stay near to one of the two, at 1 all
    # weights are as likely; 0 for none (Zhang et al., "mixup", 2018).
    mixup: float = 0.0
    # Epochs without a lower validation loss after which training stops; None: never.
    patience: int | None = None
    # Compute the output of the frozen blocks below the first trained layer once per
    # image and view and keep it; false computes it anew in every step.
    cache_features: bool = True
    keep: Place = Place.AUTO  # where features, or images, lie meanwhile
    # Seconds from one checkpoint to the next; the last state is always saved.
    checkpoint_seconds: float = 60.0


@dataclasses.dataclass
class ExperimentConfig:
    """How many networks are trained, and on what."""

    kind: ExperimentKind = ExperimentKind.RUN
    # Of a cross-validation or a ladder: networks of each fold, with the seeds `seed`,
    # `seed` + 1, …; and drawings of the folds, `data.repeat` being the first.
    num_seeds: int = 1
    num_repeats: int = 1
    # Of a sweep: (name, settings in place of this configuration's), such as
    # ("wide", ("model.dropout=0.2", "optim.learning_rate=3e-5")). The configuration
    # itself is the first candidate.
    candidates: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclasses.dataclass
class EvaluationConfig:
    """What the figures are reported with."""

    prevalence: float = 0.5  # of ALL, in (0, 1), that PPV and NPV are stated at
    num_resamples: int = 2000  # of the bootstrap behind every interval
    # Views of an image whose logits are averaged: 1, the image itself; 8, its flips and
    # quarter turns; 8 k, those of the image turned by j 90 / k degrees as well.
    views: int = 1


@dataclasses.dataclass
class Config:
    """One run, from cells to figures."""

    # Of the validation patients, the initial parameters, shuffling and dropout.
    seed: int = 0
    cache_dir: str | None = None  # packed cells, weights; None: the user's cache folder
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    experiment: ExperimentConfig = dataclasses.field(default_factory=ExperimentConfig)

    @property
    def pack_size(self) -> int:
        """Pixels at which cells are stored."""
        return self.data.pack_size or self.data.image_size

    def resolved(self, source: DataSource, split: SplitKind) -> "Config":
        """Returns a copy without the choices that were left to the kind of data."""
        config = copy.deepcopy(self)
        config.data.source, config.data.split = source, split
        if config.train.num_epochs is None:
            config.train.num_epochs = 5 if source is DataSource.SYNTHETIC else 20
        return config

    def to_json(self) -> str:
        """This configuration as indented JSON, fields in their written order."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"
