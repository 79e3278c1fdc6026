"""A trained model adapted to a few items of one's own (`finetune`).

The encoder stays as it is; the result is an ordinary model, which everything that takes a model takes.
"""

from sciLDM.adapt.finetune import FineTune, finetune
from sciLDM.adapt.low_rank import add_low_rank, merge_low_rank

__all__ = ["FineTune", "add_low_rank", "finetune", "merge_low_rank"]
