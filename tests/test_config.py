"""Configurations: what is refused, how fields are named, what differs."""

import dataclasses
import errno
import json
import re
from pathlib import Path

import pytest

from allcls_jax import config_files
from allcls_jax.config import (
    Config,
    DataConfig,
    DataSource,
    EvaluationConfig,
    ExperimentConfig,
    ExperimentKind,
    ModelConfig,
    OptimConfig,
    Sampling,
    SplitKind,
    SyntheticConfig,
    TrainConfig,
)
from allcls_jax.config_rules import nearest_field, validate
from allcls_jax.errors import InputError, explain_failure, list_problems
from configs import vgg16, vgg19


@pytest.mark.parametrize("module", [vgg16, vgg19])
@pytest.mark.parametrize("variant", [None, "smoke", "cv", "ladder"])
def test_shipped_configurations_are_valid(module, variant):
    assert validate(module.get_config(variant))


@pytest.mark.parametrize("module", [vgg16, vgg19])
def test_variants_differ_from_the_recipe_in_what_they_are_for(module):
    recipe = dataclasses.asdict(module.get_config())
    found = {
        variant: config_files.differences(
            recipe, dataclasses.asdict(module.get_config(variant))
        )
        for variant in ("cv", "ladder")
    }
    assert found == {
        "cv": [
            "data.split: None → 'grouped'",
            "experiment.kind: 'run' → 'cross_validation'",
            "experiment.num_seeds: 1 → 3",
        ],
        "ladder": ["experiment.kind: 'run' → 'leak_ladder'"],
    }


def many(num_seeds: int = 1, num_repeats: int = 1) -> ExperimentConfig:
    kind = ExperimentKind.CROSS_VALIDATION
    return ExperimentConfig(kind, num_seeds, num_repeats)


@pytest.mark.parametrize(
    "config",
    [
        Config(data=DataConfig(num_folds=5, test_fold=4)),
        Config(data=DataConfig(groups="g.json", split=SplitKind.IMAGE)),
        Config(seed=2**32 - 1, data=DataConfig(repeat=2**32 - 1)),
        Config(seed=2**32 - 3, experiment=many(num_seeds=3)),
        # Whatever runs every fold does not read the test fold.
        Config(data=DataConfig(num_folds=2), experiment=many(num_repeats=10)),
        Config(evaluation=EvaluationConfig(prevalence=0.01, num_resamples=100)),
    ],
)
def test_what_can_work_is_let_through(config):
    assert validate(config) is config


def test_an_unknown_variant_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="variants are smoke, cv, ladder, best"):
        vgg19.get_config("smok")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (Config(seed=-1), "seed = -1"),
        (Config(data=DataConfig(image_size=100)), "data.image_size = 100"),
        (Config(data=DataConfig(pack_size=200)), "data.pack_size = 200"),
        (Config(data=DataConfig(crop=0)), "data.crop = 0"),
        (Config(data=DataConfig(limit=-5)), "data.limit = -5"),
        (Config(data=DataConfig(test_fold=3)), "data.test_fold = 3"),
        (Config(data=DataConfig(validation=0.0)), "data.validation = 0.0"),
        (Config(data=DataConfig(validation=1)), "data.validation = 1"),
        (Config(data=DataConfig(test_fold=-1)), "data.test_fold = -1"),
        (
            Config(data=DataConfig(num_folds=2)),
            "data.test_fold = 2: must be from 0 to data.num_folds - 1 = 1",
        ),
        (Config(data=DataConfig(num_folds=1)), "data.num_folds = 1"),
        (Config(data=DataConfig(repeat=-1)), "data.repeat = -1"),
        (Config(data=DataConfig(repeat=2**32)), "data.repeat = 4294967296"),
        (
            Config(data=DataConfig(split=SplitKind.OFFICIAL, num_folds=5)),
            "data.num_folds = 5: the official folds are 3; others are drawn with "
            "data.split = 'grouped'",
        ),
        (
            Config(evaluation=EvaluationConfig(prevalence=0)),
            "evaluation.prevalence = 0",
        ),
        (
            Config(evaluation=EvaluationConfig(prevalence=1.0)),
            "evaluation.prevalence = 1.0",
        ),
        (
            Config(evaluation=EvaluationConfig(num_resamples=99)),
            "evaluation.num_resamples = 99",
        ),
        (Config(evaluation=EvaluationConfig(views=4)), "evaluation.views = 4"),
        (Config(evaluation=EvaluationConfig(views=72)), "evaluation.views = 72"),
        (Config(experiment=ExperimentConfig(num_seeds=0)), "experiment.num_seeds = 0"),
        (
            Config(experiment=ExperimentConfig(num_seeds=3)),
            "experiment.num_seeds = 3: a single run is one network; set "
            "experiment.kind = 'cross_validation', or take the variant :cv",
        ),
        (
            Config(experiment=ExperimentConfig(num_repeats=2)),
            "experiment.num_repeats = 2: a single run is one network",
        ),
        (
            Config(seed=2**32 - 2, experiment=many(num_seeds=3)),
            "experiment.num_seeds = 3: must be at least 1, and all of them below 2**32",
        ),
        (
            Config(data=DataConfig(repeat=2**32 - 1), experiment=many(num_repeats=2)),
            "experiment.num_repeats = 2: must be at least 1, and all of them below",
        ),
        (Config(experiment=many(num_repeats=-1)), "experiment.num_repeats = -1"),
        (Config(data=DataConfig(source=DataSource.CNMC)), "needs data.dir"),
        (
            Config(data=DataConfig(source=DataSource.SYNTHETIC, dir="x")),
            "data.dir = 'x'",
        ),
        (Config(data=DataConfig(num_workers=-1)), "data.num_workers = -1"),
        (
            Config(data=DataConfig(synthetic=SyntheticConfig(num_patients=13))),
            "num_patients = 13",
        ),
        (
            Config(data=DataConfig(synthetic=SyntheticConfig(num_images=3))),
            "num_images = 3",
        ),
        (
            Config(data=DataConfig(synthetic=SyntheticConfig(patient_effect=1.5))),
            "patient_effect = 1.5",
        ),
        (Config(model=ModelConfig(weights="")), "model.weights = ''"),
        (Config(model=ModelConfig(dropout=1.0)), "model.dropout = 1.0"),
        (Config(optim=OptimConfig(learning_rate=0.0)), "optim.learning_rate = 0.0"),
        (Config(optim=OptimConfig(weight_decay=0.1)), "optim.name = 'adamw'"),
        (Config(optim=OptimConfig(clip_norm=0.0)), "optim.clip_norm = 0.0"),
        (Config(optim=OptimConfig(trainable=(("(", True),))), "no pattern"),
        (Config(train=TrainConfig(batch_size=0)), "train.batch_size = 0"),
        (Config(train=TrainConfig(num_epochs=0)), "train.num_epochs = 0"),
        (Config(train=TrainConfig(mixup=-0.2)), "train.mixup = -0.2"),
        # In float32, which it is drawn in, this is infinite.
        (Config(train=TrainConfig(mixup=1e300)), "train.mixup = 1e+300"),
        (Config(train=TrainConfig(mixup=float("nan"))), "train.mixup = nan"),
    ],
)
def test_a_broken_rule_is_named_with_its_value(config, named):
    with pytest.raises(InputError, match=re.escape(named)):
        validate(config)


def test_all_broken_rules_are_named_at_once():
    config = Config(seed=-1, train=TrainConfig(batch_size=0))
    with pytest.raises(InputError, match=r"(?s)seed.*train\.batch_size"):
        validate(config)


def test_a_value_of_another_type_is_refused_with_the_legal_values():
    config = Config(data=DataConfig())
    config.data.split = "grouped"  # type: ignore[assignment] # what a user would write
    with pytest.raises(
        InputError, match="held_out, official, grouped, image, image_copies"
    ):
        validate(config)


def test_the_type_is_refused_before_a_rule_stumbles_over_it():
    config = Config(seed=-1)
    config.data.image_size = "224"  # type: ignore[assignment] # what a user would write
    with pytest.raises(InputError, match=r"data\.image_size = '224': must be .* int"):
        validate(config)


def test_a_section_that_is_none_or_another_is_refused():
    config = Config()
    config.data = ModelConfig()  # type: ignore[assignment] # what a user would write
    config.optim = None  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"(?s)data = .*DataConfig.*optim = None"):
        validate(config)


def test_a_field_that_does_not_exist_is_refused_with_the_nearest():
    config = Config()
    # As a file sets them; a dataclass takes any attribute.
    for section, name in (
        (config, "sead"),
        (config.data, "image_sise"),
        (config.data.synthetic, "num_image"),
        (config.model, "drop_out"),
        (config.optim, "batch_size"),
        (config.train, "epochs"),
        (config.evaluation, "resamples"),
        (config.experiment, "num_seed"),
    ):
        setattr(section, name, 1)
    with pytest.raises(InputError) as caught:
        validate(config)
    assert str(caught.value).splitlines()[1:] == [
        "  - sead: no such field; did you mean seed?",
        "  - data.image_sise: no such field; did you mean data.image_size?",
        "  - data.synthetic.num_image: no such field; did you mean "
        "data.synthetic.num_images?",
        "  - model.drop_out: no such field; did you mean model.dropout?",
        "  - optim.batch_size: no such field; did you mean train.batch_size?",
        "  - train.epochs: no such field; did you mean train.num_epochs?",
        "  - evaluation.resamples: no such field; did you mean "
        "evaluation.num_resamples?",
        "  - experiment.num_seed: no such field; did you mean experiment.num_seeds?",
    ]


SET = "from allcls_jax.config import *\ndef get_config():\n    config = Config()\n    "


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("def get_config():\n    raise RuntimeError('too\\nbad')", "too bad"),
        ("def get_config():\n    raise RuntimeError", "line 2: RuntimeError"),
        ("def get_config():\n    raise ValueError", "line 2: ValueError"),
        ("def get_config():\n    open('absent')", "FileNotFoundError.*absent"),
        ("def get_config():\n    return {}['x']", "line 2: KeyError: 'x'"),
        ("def get_config():\n    return absent", "line 2: NameError.*'absent'"),
        ("def get_config(:", r"SyntaxError.*line 1"),
        ("1\nimport absent", "line 2: ModuleNotFoundError.*'absent'"),
        ("x = 1", "has no function get_config"),
        ("get_config = 1", "has no function get_config"),
        ("def get_config(variant):\n    pass", "TypeError.*'variant'"),
        ("def get_config():\n    return {}", r"must return a Config.*returns \{\}"),
        ("def get_config():\n    pass", "must return a Config.*returns None"),
        (SET + "config.data.image_size = '9'\n    return config", "image_size = '9'"),
        (SET + "config.data.image_sise = 224\n    return config", "data.image_size?"),
        (SET + "config.data = {}\n    return config", r"data = \{\}: .*DataConfig"),
    ],
)
def test_a_file_that_gives_no_configuration_is_named_with_the_cause(
    tmp_path, text, cause
):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(
        InputError, match=f"(?s)^--config={re.escape(str(path))}: "
    ) as e:
        config_files.read_file(str(path))
    assert re.search(cause, str(e.value)), e.value


def test_a_file_gets_its_variant_and_may_still_lack_what_flags_give(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from allcls_jax.config import Config\n"
        "def get_config(variant='none'):\n    return Config(seed=-1, cache_dir=variant)"
    )
    assert config_files.read_file(f"{path}:small:er").cache_dir == "small:er"
    assert config_files.read_file(str(path)) == Config(seed=-1, cache_dir="none")
    with pytest.raises(InputError, match="there is no file"):
        config_files.read_file(str(tmp_path / "absent.py"))


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--config.data.dri=x", "--config.data.dri: .* mean --config.data.dir?"),
        ("-config.data.dri=x", "--config.data.dri: .* mean --config.data.dir?"),
        ("--noconfig.train.cahe_features", "mean --config.train.cache_features?"),
        ("--config.dta.dir", "--config.dta.dir: .* mean --config.data.dir?"),
        ("--config.zzzzqqq=1", "--config.zzzzqqq: no such field$"),
        ("--config.data.limit=x=y", "^the command line cannot be read: KeyError$"),
        ("--note=--config.data.dri=x", "cannot be read: KeyError$"),
    ],
)
def test_a_bad_flag_is_told_with_the_nearest_field(flag, told):
    error = config_files.explain_bad_flag(KeyError(), ["main", flag])
    assert re.search(told.replace("?", r"\?"), str(error))


def test_what_a_file_was_refused_for_goes_before_the_flags():
    inner = InputError("mine.py: line 1")
    outer = ValueError("a whole traceback")
    outer.__context__ = inner  # as absl wraps what its parsers raise
    argv = ["main", "--config.data.dri=x"]
    assert config_files.explain_bad_flag(outer, argv) is inner


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("as it is"), "^as it is$"),
        (PermissionError(errno.EACCES, "denied", "a/b"), "^a/b: denied; .*--workdir"),
        (OSError(errno.ENOSPC, "full", "a/b"), "^a/b: full; make room, .*cache_dir"),
        (OSError(errno.ENOSPC, "full"), "^a file: full; make room"),
        (OSError(errno.EDQUOT, "quota"), "^a file: quota; make room"),
        (OSError(errno.EROFS, "read-only"), "^a file: read-only; change"),
        (OSError(errno.EIO, "input/output", b"a/b"), "^a/b: input/output; "),
    ],
)
def test_what_the_system_refuses_is_told_with_the_file_and_a_remedy(error, told):
    assert re.search(told, str(explain_failure(error)))


def test_an_error_of_the_system_without_a_file_is_no_users_mistake():
    assert explain_failure(BrokenPipeError(errno.EPIPE, "pipe")) is None
    assert explain_failure(OSError("some library's own")) is None


@pytest.mark.parametrize(
    ("argument", "folder"),
    [("configs/vgg19.py", "vgg19"), ("a/vgg19.py:smoke", "vgg19-smoke")],
)
def test_a_workdir_is_called_after_file_variant_and_time(argument, folder):
    workdir = config_files.default_workdir(argument)
    assert workdir.parent == Path("runs") / folder
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ", workdir.name)


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("data.valdation", "data.validation"),
        ("dta.validation", "data.validation"),
        ("learning_rate", "optim.learning_rate"),
        ("train.epochs", "train.num_epochs"),
        ("zzzzqqq", None),
    ],
)
def test_a_misspelt_field_finds_its_nearest_name(typed, nearest):
    assert nearest_field(typed) == nearest


def test_differences_name_the_fields_and_pass_over_where_a_run_lies():
    one = Config()
    other = Config(cache_dir="elsewhere")
    other.data.num_workers = 2
    other.data.split = SplitKind.GROUPED
    other.optim.learning_rate = 1e-3
    found = config_files.differences(
        json.loads(one.to_json()), dataclasses.asdict(other)
    )
    assert found == [
        "data.split: None → 'grouped'",
        "optim.learning_rate: 0.0001 → 0.001",
    ]


def test_a_configuration_is_the_same_after_json():
    config = Config()
    assert not config_files.differences(
        json.loads(config.to_json()), dataclasses.asdict(config)
    )


@pytest.mark.parametrize(
    ("source", "epochs"), [(DataSource.SYNTHETIC, 5), (DataSource.CNMC, 20)]
)
def test_epochs_left_open_follow_the_data(source, epochs):
    config = Config()
    resolved = config.resolved(source, SplitKind.OFFICIAL)
    assert resolved.train.num_epochs == epochs
    assert resolved.data.source is source
    assert resolved.data.split is SplitKind.OFFICIAL
    assert config.train.num_epochs is None
    assert config.data.source is None
    assert config.data.split is None


def test_epochs_given_are_kept():
    config = Config(train=TrainConfig(num_epochs=3))
    resolved = config.resolved(DataSource.SYNTHETIC, SplitKind.GROUPED)
    assert resolved.train.num_epochs == 3


@pytest.mark.parametrize("kind", SplitKind)
def test_a_split_by_image_is_leaky_and_no_other(kind):
    assert kind.leaky == kind.startswith("image")


def test_a_list_of_problems_is_cut_but_counted():
    error = str(list_problems("reading", map(str, range(60)), remedy="Mend them."))
    assert "reading: 60 problems" in error
    assert "… and 10 more" in error
    assert error.endswith("Mend them.")


@pytest.mark.parametrize("variant", [None, "smoke", "cv", "ladder"])
def test_a_run_s_configuration_comes_back_as_it_was(tmp_path, variant):
    config = vgg19.get_config(variant).resolved(DataSource.SYNTHETIC, SplitKind.GROUPED)
    config.data.limit, config.optim.clip_norm = 12, 0.5
    (tmp_path / "config.json").write_text(config.to_json())
    again = config_files.read_run(tmp_path / "config.json")
    assert again == config
    assert type(again.data.split) is SplitKind
    assert validate(again)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree.pop("seed"), "seed"),
        (lambda tree: tree["data"].update(old=1), "old"),
        (lambda tree: tree["data"].update(split="x"), "'x'"),
        (lambda tree: tree["data"].update(limit="x"), "data.limit"),
        (lambda tree: tree.update(model=3), "fit"),
    ],
)
def test_another_version_s_configuration_is_refused(tmp_path, change, named):
    tree = json.loads(Config().to_json())
    change(tree)
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=rf"config\.json: was not written.*{named}"):
        config_files.read_run(tmp_path / "config.json")


TRAINABLE = (("dense.*", True), (".*", 0.5))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optim.learning_rate=3e-5", 3e-5),
        ("optim.learning_rate = 1", 1.0),
        ("optim.clip_norm=None", None),
        ("optim.clip_norm=2", 2.0),
        ("augment.dihedral=true", True),
        ("augment.dihedral=False", False),
        ("train.num_epochs=7", 7),
        ("train.num_epochs=null", None),
        ("train.sampling=patients", Sampling.PATIENTS),
        ("data.split=official", SplitKind.OFFICIAL),
        ("data.split=None", None),
        ("data.dir=12", "12"),
        ("model.weights=a=b", "a=b"),
        ('optim.trainable=[["dense.*", true], [".*", 0.5]]', TRAINABLE),
        ("optim.trainable=(('dense.*', True), ('.*', 0.5))", TRAINABLE),
    ],
)
def test_a_setting_becomes_a_value_of_its_field_s_type(setting, value):
    config = Config()
    before = config.to_json()
    found: object = config_files.override(config, setting)
    for part in setting.partition("=")[0].strip().split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)
    assert config.to_json() == before


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("optim.learning_rat=1", r"did you mean optim\.learning_rate\?"),
        ("optim=1", r"optim=1: no such field"),
        ("optim.name.value=1", r"no such field"),
        ("optim.learning_rate", r"must be section\.field=value"),
        ("optim.learning_rate=fast", r"= 'fast': must be of type float"),
        ("optim.learning_rate=true", r"= True: must be of type float"),
        ("optim.learning_rate=None", r"must be of type float"),
        ("augment.dihedral=1", r"= 1: must be of type bool"),
        ("train.num_epochs=2.0", r"= 2\.0: must be of type int or None"),
        ("train.sampling=cells", r"'cells': must be a Sampling \(images, classes, pat"),
        ("train.sampling=None", r"None: must be a Sampling"),
        ("optim.trainable=x", r"= 'x': must be of type tuple"),
    ],
)
def test_a_setting_that_cannot_be_is_told_with_its_rule(setting, told):
    with pytest.raises(InputError, match=told):
        config_files.override(Config(), setting)


def test_a_sweep_reads_its_test_fold():
    sweep = ExperimentConfig(kind=ExperimentKind.SWEEP)
    with pytest.raises(InputError, match=r"data\.test_fold = 3: must be from 0"):
        validate(Config(data=DataConfig(test_fold=3), experiment=sweep))
