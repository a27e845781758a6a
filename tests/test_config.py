"""Configurations: what is refused, how fields are named, what differs."""

import dataclasses
import json
import re

import pytest

from allcls_jax import config_fields
from allcls_jax.config import (
    Config,
    DataConfig,
    DataSource,
    ModelConfig,
    OptimConfig,
    SplitKind,
    SyntheticConfig,
    TrainConfig,
)
from allcls_jax.errors import InputError, list_problems
from configs import vgg16, vgg19


@pytest.mark.parametrize("module", [vgg16, vgg19])
@pytest.mark.parametrize("variant", [None, "smoke"])
def test_shipped_configurations_are_valid(module, variant):
    assert module.get_config(variant).validate()


def test_an_unknown_variant_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="smoke"):
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
        (Config(data=DataConfig(groups="g.json")), "data.groups = 'g.json'"),
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
    ],
)
def test_a_broken_rule_is_named_with_its_value(config, named):
    with pytest.raises(InputError, match=re.escape(named)):
        config.validate()


def test_all_broken_rules_are_named_at_once():
    config = Config(seed=-1, train=TrainConfig(batch_size=0))
    with pytest.raises(InputError, match=r"(?s)seed.*train\.batch_size"):
        config.validate()


def test_a_value_of_another_type_is_refused_with_the_legal_values():
    config = Config(data=DataConfig())
    config.data.split = "grouped"  # type: ignore[assignment] # what a user would write
    with pytest.raises(InputError, match="official, grouped, image"):
        config.validate()


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
    assert config_fields.nearest_field(typed) == nearest


def test_differences_name_the_fields_and_pass_over_where_a_run_lies():
    one = Config()
    other = Config(cache_dir="elsewhere")
    other.data.num_workers = 2
    other.data.split = SplitKind.GROUPED
    other.optim.learning_rate = 1e-3
    found = config_fields.differences(
        json.loads(one.to_json()), dataclasses.asdict(other)
    )
    assert found == [
        "data.split: 'official' → 'grouped'",
        "optim.learning_rate: 0.0001 → 0.001",
    ]


def test_a_configuration_is_the_same_after_json():
    config = Config()
    assert not config_fields.differences(
        json.loads(config.to_json()), dataclasses.asdict(config)
    )


@pytest.mark.parametrize(
    ("source", "epochs"), [(DataSource.SYNTHETIC, 5), (DataSource.CNMC, 20)]
)
def test_epochs_left_open_follow_the_data(source, epochs):
    config = Config()
    resolved = config.resolved(source)
    assert resolved.train.num_epochs == epochs
    assert resolved.data.source is source
    assert config.train.num_epochs is None


def test_epochs_given_are_kept():
    config = Config(train=TrainConfig(num_epochs=3))
    assert config.resolved(DataSource.SYNTHETIC).train.num_epochs == 3


def test_a_list_of_problems_is_cut_but_counted():
    error = str(list_problems("reading", map(str, range(60)), remedy="Mend them."))
    assert "reading: 60 problems" in error
    assert "… and 10 more" in error
    assert error.endswith("Mend them.")
