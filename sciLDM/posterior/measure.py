"""The autoencoder's error, measured on held-out fields."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from sciLDM.autoencoders import Autoencoder
from sciLDM.autoencoders.grid_fields import GridFields
from sciLDM.domain import FieldCodec
from sciLDM.errors import DataError
from sciLDM.posterior.error_model import AutoencoderError
from sciLDM.posterior.hooks import HasTarget

__all__ = ["measure_error", "target_of"]


@torch.no_grad()
def measure_error(
    autoencoder: Autoencoder[Any, Any],
    codec: FieldCodec,
    batches: Iterable[Any],
    *,
    training: Iterable[Any] | None = None,
) -> AutoencoderError:
    """Fit `AutoencoderError` on the noise-free round trip of these inputs through `Autoencoder.estimator`.

    Sizes of errors come from held-out inputs; how errors of one field go together takes many fields, and is much the
    same where the autoencoder was trained.

    Args:
        autoencoder: Trained, on the CPU.
        codec: Says what an input should decode to, where that is not plain.
        batches: The autoencoder's inputs, not seen in training.
        training: Inputs from training, for the correlation of errors on small grids; None leaves it out.

    Raises:
        DataError: No inputs, inputs that do not say what they decode to, or a decoder that is not finite.
        ShapeMismatch: Fields of several shapes.
    """

    rebuilding = autoencoder.estimator()

    def pairs(inputs: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        for fields in inputs:
            yield target_of(codec, fields), rebuilding.decode(*rebuilding.code(fields))

    error = AutoencoderError.fitted(pairs(batches))
    if training is not None:
        error.measure_correlation(pairs(training))
    return error


def target_of(codec: FieldCodec, fields: Any) -> Tensor:
    """What the decoder should say, `[batch, channel, *grid]`; NaN where not known.

    Asked of `codec.target` where there is one; tensors and `GridFields` say it themselves.

    Raises:
        DataError: Neither.
    """
    if isinstance(codec, HasTarget):
        return codec.target(fields)
    if isinstance(fields, GridFields):
        values, weight = fields.values, fields.weight
        return values if weight is None else torch.where(weight.expand_as(values) > 0, values, torch.nan)
    if isinstance(fields, Tensor):
        return fields
    raise DataError(
        f"autoencoder error: cannot tell what {type(fields).__name__} should decode to; give the codec a "
        "`target(fields)` (sciLDM.posterior.hooks)"
    )
