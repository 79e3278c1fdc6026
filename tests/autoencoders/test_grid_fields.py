"""Loss terms of grid fields against values that can be worked out by hand."""

import math

import pytest
import torch

from sciLDM.autoencoders.grid_fields import band_power, gradient_error, log_spectrum_error, weighted_mean


def test_the_weighted_mean_ignores_what_has_no_weight() -> None:
    x = torch.randn(2, 3, 4, 5)
    weight = torch.rand(2, 1, 4, 5)
    weight[1] = 0.0
    weight[0, :, 2] = 0.0
    expected = (x[0] * weight[0]).sum() / (3 * weight[0].sum())
    torch.testing.assert_close(weighted_mean(x, weight), torch.stack([expected, torch.tensor(0.0)]))
    torch.testing.assert_close(weighted_mean(x, None), x.mean(dim=(1, 2, 3)))


def test_the_gradient_error_of_a_ramp_is_its_slope() -> None:
    ramp = 0.3 * torch.arange(6.0)[:, None] - 0.1 * torch.arange(8.0)
    torch.testing.assert_close(gradient_error(ramp[None, None], None), torch.tensor([0.2]))
    weight = torch.ones(1, 1, 6, 8)
    weight[..., 3:, :] = 0.0
    ramp[3:] = 1e3 * torch.randn(3, 8)  # missing
    torch.testing.assert_close(gradient_error(ramp[None, None], weight), torch.tensor([0.2]))
    assert gradient_error(torch.randn(2, 1, 1, 1), None).tolist() == [0.0, 0.0]


def test_a_wave_lies_in_the_band_of_its_wavenumber() -> None:
    place = torch.arange(32.0)
    for wave in (1, 5, 9, 13):
        field = torch.sin(2 * math.pi * wave * place / 32)[None, None, None].expand(1, 1, 16, 32)
        power = band_power(field, ("circular", "circular"), 8)[0, 0]
        assert power.argmax() == int(2 * wave / 32 * 8)
        assert power.max() / power.sum() > 0.999


@pytest.mark.parametrize("edges", [("zeros", "zeros"), ("replicate", "circular"), ("pole", "circular")])
def test_white_noise_has_a_flat_spectrum(edges: tuple) -> None:
    power = band_power(torch.randn(200, 1, 24, 30), edges, 6).mean(dim=(0, 1))
    assert (power / power.mean() - 1).abs().max() < 0.1


def test_the_spectrum_error_is_the_log_of_the_amplification() -> None:
    x = torch.randn(3, 2, 12, 10, 8)
    error = log_spectrum_error(x, 0.5 * x, ("zeros",) * 3)
    torch.testing.assert_close(error, torch.full((3,), 2 * math.log(2)), rtol=1e-3, atol=0)
    assert log_spectrum_error(x, x.roll(3, -1), ("circular",) * 3).max() < 1e-4
