r"""The autoencoder for fields on regular grids in one, two and three dimensions: maps, films of maps, volumes.

    x --space-to-depth--> blocks --shrink--> blocks ... --> latents --> blocks --grow--> ... --depth-to-space--> x_hat

Convolutions work at the grid of the first patches, not at full resolution, which is what makes it quick on a CPU.
Nothing normalises over space and nothing attends, so a tile with `halo` cells around it gives what the whole gives
(`grid_tiles`). With `pca`, `z = B^+ (x - mean) + h(x)` and `x_hat = mean + B z + g(z)`: `g` and `h` start at zero, so
training starts at the quality of principal components with as many numbers; `block_pca` does the same with components
of blocks, for volumes of any size (`grid_pca`).
"""

from collections.abc import Iterable, Sequence
from copy import copy
from math import prod
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.autoencoders.base import Autoencoder, Latent
from sciLDM.autoencoders.bottleneck import SaturatingBottleneck
from sciLDM.autoencoders.grid_fields import GridFields, gradient_error, log_spectrum_error, weighted_mean
from sciLDM.autoencoders.grid_moments import StreamingMoments
from sciLDM.autoencoders.grid_pca import BlockPCA, LinearSkip, PCASkip
from sciLDM.autoencoders.grid_settings import GridSettings
from sciLDM.autoencoders.spectral_gain import SpectralGain
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.nets.convolutional import Edge, extend
from sciLDM.nets.grid_coder import GridDecoder, GridEncoder, GridLayout

__all__ = ["GridAutoencoder", "GridFields", "GridSettings"]


@final
class GridAutoencoder(Autoencoder[GridFields, Tensor]):
    """Autoencoder of fields `[batch, channel, *shape]`; decoded are fields in the data's own units.

    Sizes that the factors do not divide are extended inside. Fields of another size than `shape` are taken too, except
    with `pca` or static fields; `decode_to` then says how large the result is.

    Args:
        data_channels: Channels of the fields.
        shape: Grid of the data.
        settings: Size and losses.
        edges: What lies beyond the ends of each axis; one entry for all, or one an axis. A circular axis is exactly
            periodic if the factors divide its size.
        masked: Values may be missing: the encoder is told which are known.
        static_channels: Static fields, given to encoder and decoder; `prepare` takes them from the data.

    Raises:
        ConfigError: Options that do not fit each other or the grid.
    """

    offset: Tensor
    scale: Tensor
    static: Tensor

    def __init__(
        self,
        data_channels: int,
        shape: Sequence[int],
        settings: GridSettings = GridSettings(),  # noqa: B008 - frozen
        *,
        edges: Edge | Sequence[Edge] = "zeros",
        masked: bool = False,
        static_channels: int = 0,
    ) -> None:
        super().__init__()
        self.layout = layout = settings.layout(shape, edges)
        self.data_channels, self.settings, self.masked = data_channels, settings, masked
        self.latent_channels, self.bottleneck = settings.channels, settings.bottleneck()
        self.register_buffer("offset", torch.zeros(data_channels))
        self.register_buffer("scale", torch.ones(data_channels))
        self.register_buffer("static", torch.zeros(static_channels, *layout.shape))
        self.pca: LinearSkip | None = None
        if settings.pca is not None:
            self.pca = PCASkip(data_channels, layout.shape, settings.channels, layout.factor)
        elif settings.block_pca:
            self.pca = BlockPCA(data_channels, settings.channels, layout.factor, _continued(layout.edges))
        guess = 0 if self.pca is None else data_channels
        inputs = data_channels * (1 + masked) + guess + static_channels
        outputs = settings.channels * (1 if settings.kl_weight is None else 2)
        self.sharpen = _gain(data_channels, layout, settings.sharpen, masked=masked)
        self.encoder = GridEncoder(inputs, 0 if guess else data_channels, outputs, layout)
        self.decoder = GridDecoder(
            settings.channels, data_channels, layout, static=static_channels, guess=guess
        )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Grid of the latents of fields of the built size."""
        return self.layout.coarse(self.layout.shape)

    @property
    def halo(self) -> tuple[int, ...]:
        """How far influence reaches, in data cells per axis; a multiple of the factor."""
        return self.layout.halo

    @property
    def compression(self) -> float:
        """Numbers per field over numbers per latent."""
        return self.data_channels * prod(self.layout.shape) / (self.latent_channels * prod(self.latent_shape))

    @torch.no_grad()
    def prepare(self, batches: Iterable[GridFields]) -> None:
        """One pass over training data: mean and spread of each channel, static fields, principal components.

        Raises:
            DataError: No data, values that are not finite, or static fields missing.
        """
        modes, block = _modes(self.settings, self.layout)
        moments: StreamingMoments | None = None
        for fields in batches:
            if moments is None:
                moments = StreamingMoments(fields, modes, block=block)
                self._take_static(fields.static)
            moments.update(fields)
        if moments is None:
            raise DataError("cannot prepare the autoencoder: no training data were given")
        offset, scale = moments.channels()
        self.offset.copy_(offset)
        self.scale.copy_(scale)
        if self.pca is not None:
            self.pca.fit(moments.components(offset, scale))

    @torch.no_grad()
    def finish(self, batches: Iterable[GridFields]) -> None:
        """One pass over training data: the gains of `sharpen`."""
        if self.sharpen is not None:
            self.sharpen.gain.fill_(1.0)
            self.sharpen.fit(self._compared(f, self.decode(self.code(f)[0]))[:2] for f in batches)

    def estimator(self) -> "GridAutoencoder":
        """Without the gains of `sharpen`, which give samples the spectrum of the data at the price of larger errors."""
        if self.sharpen is None:
            return self
        plain = copy(self)  # shares its networks
        plain._modules = {**self._modules, "sharpen": None}
        return plain

    def encode(self, fields: GridFields) -> Latent:
        x, linear = self.encoder_input(fields)
        return self.to_latent(self.encoder(x), linear)

    def decode(
        self, z: Float[Tensor, "batch latent *coarse"], mask: Bool[Tensor, "batch *coarse"] | None = None
    ) -> Float[Tensor, "batch channel *shape"]:
        return self.decode_to(z, _fine(z, self.layout))

    def decode_to(
        self, z: Float[Tensor, "batch latent *coarse"], shape: Sequence[int]
    ) -> Float[Tensor, "batch channel *shape"]:
        """The fields of this size that these latents stand for.

        Raises:
            ShapeMismatch: Latents of another autoencoder or another grid.
        """
        self.check_latents(z, shape)
        guess, static = self.first_guess(z), self.padded_static()
        x = self.to_fields(self.decoder(z, static, guess), guess, shape)
        return x if self.sharpen is None or self.training else self.sharpen(x, _column(self.offset, x))

    def outline(self, z: Float[Tensor, "batch latent *coarse"]) -> Float[Tensor, "batch channel *shape"]:
        """`decode` without its network: what the principal components say. Without them, `decode`.

        The network only adds what neighbouring cells tell, so the derivatives are close; these cost a hundredth.
        """
        if self.pca is None:
            return self.decode(z)
        shape = _fine(z, self.layout)
        self.check_latents(z, shape)
        guess = self.first_guess(z)
        assert guess is not None
        return self.to_fields(guess, None, shape)

    def reconstruction_loss(
        self, fields: GridFields, decoded: Float[Tensor, "batch channel *shape"]
    ) -> dict[str, Float[Tensor, "batch"]]:
        truth, rebuilt, known = self._compared(fields, decoded)
        return _loss_terms(truth, rebuilt, known, fields.weight, self.settings, self.layout)

    def metrics(self, fields: GridFields, decoded: Float[Tensor, "batch channel *shape"]) -> dict[str, Any]:
        """`mse` and `psnr` in the data's units; `explained`: 1 - square error in units of the training variance."""
        truth, rebuilt, _ = self._compared(fields, decoded)
        square = (rebuilt - truth).square()
        mse = weighted_mean(square * _column(self.scale.square(), square), fields.weight)
        psnr = 10 * torch.log10(self.settings.data_range**2 / mse.clamp_min(1e-20))
        return {"mse": mse, "psnr": psnr, "explained": 1 - weighted_mean(square, fields.weight)}

    # --- parts that tiles use too ---------------------------------------------------------------------------------

    def encoder_input(
        self, fields: GridFields
    ) -> tuple[Float[Tensor, "batch input *fine"], Float[Tensor, "batch latent *coarse"] | None]:
        """What the encoder network is given, on whole blocks, and the linear part of the latents."""
        self._check(fields)
        x, known = self._standardise(fields)
        parts, linear = [x], None
        if self.pca is not None:
            linear = self.pca.analyse(x, known)
            missed = x - _cut(self.pca.synthesise(linear), x.shape[2:])
            parts.append(missed if known is None else missed * known)
        if self.masked:
            parts.append(torch.ones_like(x) if known is None else known.to(x).expand_as(x))
        if len(self.static):
            parts.append(self.static.expand(len(x), *self.static.shape))
        return self._whole_blocks(torch.cat(parts, dim=1)), linear

    def to_latent(
        self, out: Float[Tensor, "batch output *coarse"], linear: Float[Tensor, "batch latent *coarse"] | None
    ) -> Latent:
        """The encoder network's output with the linear part."""
        out = out.to(self.scale.dtype)
        mean, log_std = out.chunk(2, dim=1) if self.settings.kl_weight is not None else (out, None)
        return Latent(mean if linear is None else mean + linear, log_std)

    def check_latents(self, z: Float[Tensor, "batch latent *coarse"], shape: Sequence[int]) -> None:
        """Raises `ShapeMismatch` unless `z` can stand for fields of this size."""
        expected = (self.latent_channels, *self.layout.coarse(shape))
        if tuple(z.shape[1:]) != expected:
            raise ShapeMismatch(
                f"latents of shape {tuple(z.shape)} are no fields of size {tuple(shape)}: expected "
                f"[batch, {', '.join(map(str, expected))}]"
            )
        self._check_size(shape)

    def first_guess(
        self, z: Float[Tensor, "batch latent *coarse"]
    ) -> Float[Tensor, "batch channel *fine"] | None:
        """What the principal components alone say, standardised and on whole blocks; None without them."""
        if self.pca is None:
            return None
        free = self.bottleneck.invert(z) if isinstance(self.bottleneck, SaturatingBottleneck) else z
        return self._whole_blocks(self.pca.synthesise(free))

    def padded_static(self) -> Float[Tensor, "static *fine"] | None:
        """Static fields on whole blocks; None if there are none."""
        return self._whole_blocks(self.static[None])[0] if len(self.static) else None

    def to_fields(
        self,
        out: Float[Tensor, "batch channel *fine"],
        guess: Float[Tensor, "batch channel *fine"] | None,
        shape: Sequence[int],
    ) -> Float[Tensor, "batch channel *shape"]:
        """The decoder network's output with the first guess, cut to `shape`, in the data's own units."""
        out = out.to(self.scale.dtype)
        x = _cut(out if guess is None else out + guess, shape)
        return x * _column(self.scale, x) + _column(self.offset, x)

    def _standardise(self, fields: GridFields) -> tuple[Tensor, Tensor | None]:
        x, known = fields.values.to(self.scale.dtype), None
        x = (x - _column(self.offset, x)) / _column(self.scale, x)
        if fields.weight is not None:
            known = fields.weight > 0
            x = torch.where(known, x, 0.0)
        return x, known

    def _compared(self, fields: GridFields, decoded: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        truth, known = self._standardise(fields)
        for dim, n in enumerate(truth.shape[2:], start=2):
            if decoded.shape[dim] < n:
                raise ShapeMismatch(
                    f"decoded fields of size {tuple(decoded.shape[2:])}, expected {tuple(truth.shape[2:])}; use "
                    "decode_to for fields of another size than the autoencoder's grid"
                )
            decoded = decoded.narrow(dim, 0, n)
        rebuilt = (decoded.to(truth.dtype) - _column(self.offset, truth)) / _column(self.scale, truth)
        return truth, (rebuilt if known is None else torch.where(known, rebuilt, 0.0)), known

    def _whole_blocks(self, x: Tensor) -> Tensor:
        after = [-n % f for n, f in zip(x.shape[2:], self.layout.factor, strict=True)]
        return extend(x, [0] * len(after), after, _continued(self.layout.edges))

    def _take_static(self, static: Tensor | None) -> None:
        if not len(self.static):
            return
        if static is None or static.shape != self.static.shape:
            raise DataError(
                f"expected static fields of shape {tuple(self.static.shape)} with the data, got "
                f"{'none' if static is None else tuple(static.shape)}"
            )
        self.static.copy_(static)

    def _check(self, fields: GridFields) -> None:
        values = fields.values
        if values.ndim != 2 + len(self.layout.shape) or values.shape[1] != self.data_channels:
            raise ShapeMismatch(
                f"expected fields [batch, {self.data_channels}, *{self.layout.shape}], got {tuple(values.shape)}"
            )
        self._check_size(values.shape[2:])

    def _check_size(self, shape: Sequence[int]) -> None:
        if tuple(shape) != self.layout.shape and (
            isinstance(self.pca, PCASkip) or len(self.static) or self.sharpen is not None
        ):
            raise ShapeMismatch(
                f"an autoencoder with principal components, static fields or sharpening is bound to its grid "
                f"{self.layout.shape}, got {tuple(shape)}"
            )


def _gain(channels: int, layout: GridLayout, share: float, *, masked: bool) -> SpectralGain | None:
    if not share:
        return None
    if masked or "circular" in layout.edges:
        raise ConfigError("autoencoder.sharpen needs complete fields that are not periodic; set it to 0")
    return SpectralGain(channels, layout.shape, share)


def _continued(edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """Zeros beyond the data would be an edge to rebuild; the outermost values are none."""
    return tuple("replicate" if edge == "zeros" else edge for edge in edges)


def _cut(x: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, n in enumerate(shape):
        x = x.narrow(2 + axis, 0, n)
    return x


def _column(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(-1, *[1] * (x.ndim - 2))


def _modes(settings: GridSettings, layout: GridLayout) -> tuple[int, tuple[int, ...] | None]:
    """Principal components to gather, and the block that they are of, where they are local."""
    if settings.block_pca:
        return settings.channels, layout.factor
    largest = prod((settings.channels, *layout.coarse(layout.shape)))
    return (
        0 if settings.pca is None else largest if settings.pca == -1 else min(settings.pca, largest)
    ), None


def _fine(z: Tensor, layout: GridLayout) -> Sequence[int]:
    """Size of the fields that latents stand for: the data's own, or whole blocks on another grid."""
    coarse, own = tuple(z.shape[2:]), layout.coarse(layout.shape)
    if coarse == own or len(coarse) != len(own):
        return layout.shape
    return [n * f for n, f in zip(coarse, layout.factor, strict=True)]


def _loss_terms(
    truth: Tensor,
    rebuilt: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    settings: GridSettings,
    layout: GridLayout,
) -> dict[str, Tensor]:
    error, terms = rebuilt - truth, {}
    if settings.l1:
        terms["l1"] = settings.l1 * weighted_mean(error.abs(), weight)
    if settings.mse:
        terms["mse"] = settings.mse * weighted_mean(error.square(), weight)
    if settings.gradient:
        terms["gradient"] = settings.gradient * gradient_error(error, weight)
    if settings.spectral:
        there = torch.ones_like(truth) if known is None else known.to(truth)
        spectra = log_spectrum_error(truth * there, rebuilt * there, layout.edges)
        terms["spectral"] = settings.spectral * spectra
    return terms
