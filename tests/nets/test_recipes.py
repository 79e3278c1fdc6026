"""A recipe builds the network that its fields say, and a YAML file can name it."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from sciLDM.conditions import Scalar
from sciLDM.nets import DiT, DiTNetwork, Network, UNet, UNetNetwork


class _Owner:
    def __init__(self, net: Network = DiTNetwork()) -> None:  # noqa: B008
        self.net = net


def parsed(path: Path, text: str) -> Network:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(_Owner, "owner")
    path.write_text(text)
    return parser.instantiate(parser.parse_args([f"--config={path}"])).owner.net


def test_every_field_of_a_recipe_reaches_the_network() -> None:
    conditions = (Scalar("gap"),)
    dit = DiTNetwork(width=24, depth=3, heads=2, patch=2, positions="rotary").build(5, (4, 6), conditions)
    assert isinstance(dit, DiT)
    assert (dit.channels, dit.shape, dit.patch, dit.conditions) == (5, (4, 6), 2, conditions)
    assert (len(dit.blocks), dit.blocks[0].attention.heads, dit.embed.out_features) == (3, 2, 24)
    assert (dit.learned is None, dit.rotary is None) == (True, False)
    recipe = UNetNetwork(
        widths=(8, 12), blocks_per_level=3, attention_levels=(0,), heads=2, boundary=("reflect", "circular")
    )
    unet = recipe.build(5, (4, 6), conditions)
    assert isinstance(unet, UNet)
    assert (unet.channels, unet.axes, unet.conditions) == (5, 2, conditions)
    assert [stage.blocks[0].conv_2.conv.out_channels for stage in unet.down] == [8, 12]
    assert [len(stage.blocks) for stage in (*unet.down, *unet.up)] == [3, 3, 4, 4]
    assert [len(stage.attention) > 0 for stage in unet.down] == [True, False]
    assert unet.down[0].attention[0].attention.heads == 2
    assert unet.stem.boundary == ("reflect", "circular")


@pytest.mark.parametrize("recipe", [DiTNetwork(width=16, depth=1, heads=2), UNetNetwork(widths=(8, 8))])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 2)])
def test_recipes_build_for_any_grid(recipe: Network, shape: tuple[int, ...]) -> None:
    net = recipe.build(3, shape, ())
    x = torch.randn(2, 3, *shape)
    assert net(x, torch.rand(2), None, None, None).shape == x.shape
    assert (
        len({id(p) for p in net.parameters()} & {id(p) for p in recipe.build(3, shape, ()).parameters()}) == 0
    )


def test_a_configuration_names_a_recipe(tmp_path: Path) -> None:
    options = "{widths: [8, 16], boundary: [zeros, circular]}"
    text = f"owner:\n  net:\n    class_path: sciLDM.nets.UNetNetwork\n    init_args: {options}\n"
    assert parsed(tmp_path / "a.yaml", text) == UNetNetwork(widths=(8, 16), boundary=("zeros", "circular"))
    assert parsed(tmp_path / "b.yaml", "owner:\n  net: {class_path: UNetNetwork}\n") == UNetNetwork()
    assert parsed(tmp_path / "c.yaml", "owner: {}\n") == DiTNetwork()


def test_recipes_share_no_field_whose_defaults_differ() -> None:
    """jsonargparse carries a default over when a configuration changes the class: it must be right there, too."""
    defaults = {field.name: field.default for field in fields(DiTNetwork)}
    for field in fields(UNetNetwork):
        assert defaults.get(field.name, field.default) == field.default, field.name


def test_recipes_are_frozen_and_the_role_is_abstract() -> None:
    with pytest.raises(FrozenInstanceError):
        DiTNetwork().width = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="abstract"):
        Network()  # type: ignore[abstract]
