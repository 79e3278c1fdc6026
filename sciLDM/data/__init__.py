"""Data on its way to training: cards of known data sets (`cards`), and what feeds the two training stages."""

__all__: list[str] = []
