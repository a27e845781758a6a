import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic
from allcls_jax.data.cells import ALL
from allcls_jax.data.synthetic_fields import Field, FieldSettings, draw

SMALL = FieldSettings(width=420, height=320, scale=0.2, nuclei=12, touching=0.5)


@pytest.fixture(scope="module")
def field() -> Field:
    return draw(SMALL, 3)


def optical_density(field: Field) -> np.ndarray:
    background = np.percentile(field.picture, 95, axis=(0, 1))
    return np.log(background) - np.log(np.maximum(field.picture, 1))


def test_the_same_seed_draws_the_same_field_and_another_one_another(field: Field):
    again, other = draw(SMALL, 3), draw(SMALL, 4)
    np.testing.assert_array_equal(field.picture, again.picture)
    np.testing.assert_array_equal(field.nuclei, again.nuclei)
    assert np.mean(field.picture != other.picture) > 0.5


def test_the_map_numbers_connected_nuclei_of_the_drawn_cells(field: Field):
    assert field.picture.shape == (320, 420, 3)
    assert field.picture.dtype == np.uint8
    numbers = np.unique(field.nuclei)
    np.testing.assert_array_equal(numbers, np.arange(len(field.cells) + 1))
    cells = synthetic.cells(SMALL.cells)
    for number, cell in enumerate(field.cells, 1):
        regions = np.zeros(field.nuclei.shape, np.int32)
        ndimage.label(field.nuclei == number, output=regions)
        sizes = np.bincount(regions.ravel())[1:]
        assert sizes.max() > 0.98 * sizes.sum()
        assert field.labels[number - 1] == cells[int(cell)].label
    assert {int(label) for label in field.labels} <= {0, ALL}


def test_a_nucleus_has_the_area_of_its_cell_at_the_scale(field: Field):
    inside = field.nuclei[1:-1, 1:-1]
    cut = set(np.unique(field.nuclei)) - set(np.unique(inside))
    edges = np.concatenate([field.nuclei[i] for i in (0, -1)])
    edges = np.concatenate([edges, field.nuclei[:, 0], field.nuclei[:, -1]])
    whole = set(np.unique(inside)) - set(np.unique(edges)) - cut - {0}
    assert len(whole) >= 5
    for number in whole:
        cell = int(field.cells[int(number) - 1])
        area = np.count_nonzero(synthetic.draw(SMALL.cells, cell).max(axis=-1))
        # Shreds are left out, bites filled, a few pixels lie below a neighbour.
        found = np.count_nonzero(field.nuclei == number)
        assert found == pytest.approx(area * SMALL.scale**2, rel=0.12)


def test_some_nuclei_touch_if_asked_and_none_else():
    def touching(field: Field) -> int:
        pairs = set()
        for axis in (0, 1):
            ahead = np.moveaxis(field.nuclei, axis, 0)
            first, second = ahead[:-1], ahead[1:]
            both = (first > 0) & (second > 0) & (first != second)
            pairs |= set(zip(first[both].tolist(), second[both].tolist(), strict=True))
        return len(pairs)

    apart = dataclasses.replace(SMALL, touching=0.0)
    against = dataclasses.replace(SMALL, touching=1.0)
    assert touching(draw(apart, 1)) == 0
    assert touching(draw(against, 1)) >= 4


def test_nuclei_absorb_red_light_and_red_cells_do_not(field: Field):
    density = optical_density(field)
    nuclei = field.nuclei > 0
    assert np.median(density[nuclei][:, 0]) > 0.4
    plain = dataclasses.replace(SMALL, nuclei=0, platelets=0, debris=0, crowding=0.8)
    red = optical_density(draw(plain, 3))
    stained = red[..., 1] > 0.25
    assert stained.mean() > 0.2
    assert np.percentile(red[stained][:, 0], 95) < 0.3


def test_a_field_may_be_empty_tiny_or_of_other_cells():
    nothing = FieldSettings(
        width=64, height=48, nuclei=0, crowding=0.0, platelets=0, debris=0
    )
    empty = draw(nothing, 0)
    assert len(empty.cells) == 0
    assert not empty.nuclei.any()
    assert empty.picture.min() > 120
    one = draw(dataclasses.replace(nothing, width=1, height=1), 0)
    assert one.picture.shape == (1, 1, 3)
    other = dataclasses.replace(SMALL, cells=SyntheticConfig(num_images=24, seed=5))
    assert draw(other, 3).cells.max() < 24
