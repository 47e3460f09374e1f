"""networks.vgg: averages and maxima of regions."""

import pytest
import torch

from networks.vgg import pool_regions

# Top, left and side of a region, and its rows and columns in maps of 10 x 6 locations.
REGIONS = {
    (0, 0, 1): (range(0, 10), range(0, 6)),
    (0.3, 0, 0.7): (range(3, 10), range(0, 4)),
    (0, 0.3, 0.7): (range(0, 7), range(2, 6)),
    (0.2, 0.2, 0.6): (range(2, 8), range(1, 5)),
    (0.5, 0.5, 0.01): (range(5, 6), range(3, 4)),  # one location at least
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_regions_are_pooled_location_by_location(dtype):
    maps = torch.rand(2, 3, 10, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    pooled = pool_regions(maps, list(REGIONS))
    assert pooled.shape == (2, len(REGIONS), 6) and pooled.dtype == torch.float32
    for index, (rows, columns) in enumerate(REGIONS.values()):
        for image in range(2):
            for channel in range(3):
                values = [maps[image, channel, y, x].item() for y in rows for x in columns]
                average, maximum = pooled[image, index, [channel, 3 + channel]].square().tolist()
                assert average == pytest.approx(sum(values) / len(values), rel=1e-5)
                assert maximum == pytest.approx(max(values), rel=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (14, 14)])
def test_every_region_of_maps_of_any_size_has_a_location(size):
    maps = torch.full((1, 2, *size), 4.0)
    assert torch.equal(pool_regions(maps, list(REGIONS)), torch.full((1, len(REGIONS), 4), 2.0))


def test_zeros_have_a_finite_gradient():
    maps = torch.zeros(1, 2, 4, 4, requires_grad=True)
    pooled = pool_regions(maps, [(0, 0, 1)])
    pooled.sum().backward()
    assert pooled.max() < 0.01 and maps.grad.isfinite().all()
