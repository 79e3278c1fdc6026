r"""From a variable's own units to numbers of order one, and exactly back.

    x --link--> u --minus climatology, over spread--> what the autoencoder sees

A link removes bounds: `sqrt((x - a) / s)`, `log(1 + (x - a) / s)`, `logit((x - a) / (b - a))`. Rain has an atom at
zero: dry cells are moved to a value of their own, half a unit below the smallest wet one, so that a decoder's small
errors cannot make drizzle, and everything nearer to it than to rain comes back as exactly 0. The climatology is a
mean map, or annual harmonics of the phase of the year at each cell (`calendar`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, final, get_args, get_type_hints

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.domains.climate.packing import pack, unpack
from sciLDM.errors import ConfigError

__all__ = ["Identity", "Link", "Logarithm", "Logit", "Normaliser", "SquareRoot", "VariableSettings", "ZeroMass",
           "harmonics", "link_from_dict", "make_link",
           "variable_settings"]  # fmt: skip

_EDGE = 1e-4
"""Shares nearer to a bound than this are at the bound."""
_GAP = 0.5
"""How far dry cells lie below the smallest wet one, in units of (x / s)^power."""


@dataclass(frozen=True)
class VariableSettings:
    """How one variable is transformed."""

    link: Literal["auto", "identity", "sqrt", "log", "logit", "precipitation"] = "auto"
    """auto: precipitation for variables whose standard name or name says so, identity for all others."""
    lower: float | None = None
    """Physical lower bound (sqrt, log, logit); 0 when null."""
    upper: float | None = None
    """Physical upper bound of a logit; 1 when null."""
    power: float = 0.5
    """Exponent of wet amounts; 0.33 for heavier tails."""
    dry: float = 0.0
    """Amounts up to this count as dry (0.1 mm/day, say), in the variable's units."""
    units: str | None = None
    """Units, where the file does not say."""
    harmonics: int | None = None
    """Annual harmonics of the climatology at each cell: 0 is a mean map; null lets the data decide (2, or 0 where
    they do not cover the year)."""
    spread: Literal["scalar", "map"] = "scalar"
    """Divide by one standard deviation, or by a map of them."""

    def __post_init__(self) -> None:
        if not 0 < self.power <= 1:
            raise ConfigError(f"power must be in (0, 1], got {self.power}")
        if self.dry < 0:
            raise ConfigError(f"dry must be 0 or more, got {self.dry}")
        if self.harmonics is not None and not 0 <= self.harmonics <= 6:
            raise ConfigError(f"harmonics must be 0 to 6, or null, got {self.harmonics}")
        if self.upper is not None and self.upper <= (self.lower or 0.0):
            raise ConfigError(f"upper must be above lower, got {self.upper} and {self.lower or 0.0}")


def variable_settings(name: str, options: Any) -> VariableSettings:
    """Settings from options by name, as a configuration holds them.

    Raises:
        ConfigError: An option that does not exist.
    """
    if isinstance(options, VariableSettings):
        return options
    known = [f.name for f in fields(VariableSettings)]
    if not isinstance(options, Mapping) or (unknown := sorted(set(options) - set(known))):
        got = unknown if isinstance(options, Mapping) else repr(options)
        raise ConfigError(f"variables.{name}: expected options {', '.join(known)}, got {got}")
    if options.get("link", "auto") not in get_args(get_type_hints(VariableSettings)["link"]):
        raise ConfigError(
            f"variables.{name}.link: expected auto, {', '.join(_LINKS)}, got {options['link']!r}"
        )
    return VariableSettings(**options)


class Link(ABC):
    """An invertible map of a variable's values; differentiable almost everywhere."""

    kind: ClassVar[str]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """`u` from `x`; NaN stays NaN."""

    @abstractmethod
    def inverse(self, u: Tensor) -> Tensor:
        """`x` from any `u`, within the physical bounds."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        assert hasattr(self, "__dataclass_fields__")
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@final
@dataclass(frozen=True)
class Identity(Link):
    """`u = x`."""

    kind: ClassVar[str] = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, u: Tensor) -> Tensor:
        return u


@final
@dataclass(frozen=True)
class SquareRoot(Link):
    """`u = sqrt((x - lower) / scale)`."""

    kind: ClassVar[str] = "sqrt"
    lower: float
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.lower) / self.scale).clamp_min(0).sqrt()

    def inverse(self, u: Tensor) -> Tensor:
        return u.clamp_min(0).square() * self.scale + self.lower


@final
@dataclass(frozen=True)
class Logarithm(Link):
    """`u = log(1 + (x - lower) / scale)`."""

    kind: ClassVar[str] = "log"
    lower: float
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        return torch.log1p(((x - self.lower) / self.scale).clamp_min(0))

    def inverse(self, u: Tensor) -> Tensor:
        return torch.expm1(u.clamp(0, 80)) * self.scale + self.lower


@final
@dataclass(frozen=True)
class Logit(Link):
    """`u = logit((x - lower) / (upper - lower))`; values at a bound come back as that bound."""

    kind: ClassVar[str] = "logit"
    lower: float
    upper: float

    def forward(self, x: Tensor) -> Tensor:
        return torch.logit(((x - self.lower) / (self.upper - self.lower)).clamp(_EDGE, 1 - _EDGE))

    def inverse(self, u: Tensor) -> Tensor:
        share = torch.sigmoid(u)
        edge = _EDGE * 1.01  # rounding in float32
        share = torch.where(share <= edge, torch.zeros_like(share), share)
        share = torch.where(share >= 1 - edge, torch.ones_like(share), share)
        return share * (self.upper - self.lower) + self.lower


@final
@dataclass(frozen=True)
class ZeroMass(Link):
    """Amounts with an atom at zero: `u = (x / scale)^power - (dry / scale)^power`, and `-1/2` where `x <= dry`."""

    kind: ClassVar[str] = "precipitation"
    scale: float
    power: float
    dry: float

    def forward(self, x: Tensor) -> Tensor:
        wet = (x.clamp_min(0) / self.scale).pow(self.power) - (self.dry / self.scale) ** self.power
        return torch.where(x <= self.dry, torch.full_like(x, -_GAP), wet)

    def inverse(self, u: Tensor) -> Tensor:
        # A bounded argument: the derivative of a power is infinite at 0, and infinity times 0 is no number.
        amount = (u.clamp_min(1e-9) + (self.dry / self.scale) ** self.power).pow(1 / self.power) * self.scale
        dry = u <= (0.0 if self.dry == 0 else -_GAP / 2)
        return torch.where(dry, torch.zeros_like(u), amount)


_LINKS = {kind.kind: kind for kind in (Identity, SquareRoot, Logarithm, Logit, ZeroMass)}
_RAIN = ("pr", "tp", "precip", "rain", "rainfall", "precipitation", "prcp", "rr")


def make_link(settings: VariableSettings, name: str, attrs: Mapping[str, Any], sample: np.ndarray) -> Link:
    """The link of a variable.

    Args:
        settings: What the user wants.
        name: Of the variable.
        attrs: Its CF attributes.
        sample: Finite values of the training period; they set the scale.

    Raises:
        ConfigError: Values beyond the bounds.
    """
    kind, low = settings.link, settings.lower or 0.0
    if kind == "auto":
        known = str(attrs.get("standard_name", ""))
        rain = (
            "precipitation" in known or "rainfall" in known or name.lower() in _RAIN
        ) and sample.min() >= 0
        kind = "precipitation" if rain else "identity"
    if kind == "identity":
        return Identity()
    high = (1.0 if settings.upper is None else settings.upper) if kind == "logit" else np.inf
    low = 0.0 if kind == "precipitation" else low
    slack = 1e-4 * (high - low if kind == "logit" else max(float(sample.max() - low), 1e-30))
    if sample.min() < low - slack or sample.max() > high + slack:
        raise ConfigError(
            f"variable {name!r}: expected values in [{low:g}, {high:g}] for link {kind!r}, got {sample.min():g} to "
            f"{sample.max():g}; set `variables.{name}.lower` and `upper`, or another link"
        )
    if kind == "logit":
        return Logit(float(low), float(high))
    above = sample[sample > low + (settings.dry if kind == "precipitation" else 0.0)] - low
    if above.size == 0:
        raise ConfigError(f"variable {name!r}: all values are {low:g} in the training period; leave it out")
    scale = float(above.astype(np.float64).mean())
    if kind == "precipitation":
        return ZeroMass(scale, settings.power, settings.dry)
    return SquareRoot(low, scale) if kind == "sqrt" else Logarithm(low, scale)


def link_from_dict(state: Mapping[str, Any]) -> Link:
    """The link of `Link.to_dict`."""
    options = {name: value for name, value in state.items() if name != "kind"}
    return _LINKS[state["kind"]](**options)


def harmonics(phase: Float[Tensor, "*dates"], count: int) -> Float[Tensor, "*dates terms"]:
    """`1, cos 2 pi k p, sin 2 pi k p` for `k = 1..count`."""
    angle = 2 * torch.pi * phase[..., None] * torch.arange(1, count + 1, device=phase.device)
    waves = torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(-2)
    return torch.cat([torch.ones_like(phase)[..., None], waves], dim=-1).to(phase.dtype)


@final
class Normaliser:
    """Links, climatology and spread of all channels; both directions are differentiable and act row by row.

    Args:
        links: One per channel.
        climatology: Coefficients of `harmonics`, `[channel, term, H, W]`, of linked values.
        spread: Standard deviations of linked anomalies, `[channel, H, W]`, or `[channel, 1, 1]`.
    """

    def __init__(self, links: list[Link], climatology: np.ndarray, spread: np.ndarray) -> None:
        self.links = tuple(links)
        self._climatology = torch.from_numpy(np.ascontiguousarray(climatology, dtype=np.float32))
        self._spread = torch.from_numpy(np.ascontiguousarray(spread, dtype=np.float32))
        self.terms = self._climatology.shape[1]

    def to_units(
        self, x: Float[Tensor, "batch channel *grid"], phase: Float[Tensor, "batch state"]
    ) -> Float[Tensor, "batch channel *grid"]:
        """Values in the variables' own units. `*grid` is `(H, W)`, or `(state, H, W)`."""
        single = x.ndim == 4
        states = x[:, :, None] if single else x
        u = states * self._spread.to(x)[:, None] + self._mean(phase, x)
        out = torch.stack([link.inverse(u[:, c]) for c, link in enumerate(self.links)], dim=1)
        return out[:, :, 0] if single else out

    def from_units(
        self, x: Float[Tensor, "batch channel *grid"], phase: Float[Tensor, "batch state"]
    ) -> Float[Tensor, "batch channel *grid"]:
        """Normalised values; NaN stays NaN."""
        single = x.ndim == 4
        states = x[:, :, None] if single else x
        u = torch.stack([link.forward(states[:, c]) for c, link in enumerate(self.links)], dim=1)
        out = (u - self._mean(phase, x)) / self._spread.to(x)[:, None]
        return out[:, :, 0] if single else out

    def normalise_(self, x: Float[Tensor, "state channel H W"], phase: Float[Tensor, "state"]) -> None:
        """As `from_units`, in place and in few passes over memory; for streams of data."""
        basis = harmonics(phase, (self.terms - 1) // 2)
        for c, link in enumerate(self.links):
            own = x[:, c]
            if not isinstance(link, Identity):
                own.copy_(link.forward(own))
            flat = own.view(len(x), -1)
            mean, spread = self._climatology[c].flatten(1), self._spread[c]
            if spread.numel() == 1:  # one pass over memory
                flat.addmm_(basis, mean / spread.view(()), beta=1.0 / float(spread), alpha=-1.0)
            else:
                flat.addmm_(basis, mean, alpha=-1.0).div_(spread.reshape(-1))

    def _mean(self, phase: Tensor, like: Tensor) -> Tensor:
        """Climatology `[batch, channel, state, H, W]`."""
        basis = harmonics(phase.to(like), (self.terms - 1) // 2)
        return torch.einsum("bsk,ckhw->bcshw", basis, self._climatology.to(like))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "links": [link.to_dict() for link in self.links],
            "climatology": pack(self._climatology.numpy()),
            "spread": pack(self._spread.numpy()),
        }

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> "Normaliser":
        """The normaliser of `to_dict`."""
        links = [link_from_dict(entry) for entry in state["links"]]
        return Normaliser(links, unpack(state["climatology"]), unpack(state["spread"]))
