"""Seeds of a single image, for tests that need no batch."""

from collections.abc import Sequence

from torch import Tensor

from wsss.cams import CamMethod, seed_scores
from wsss.models import Classifier


def scores_of(
    method: CamMethod, network: Classifier | None, image: Tensor, class_ids: Sequence[int], **views: object
) -> Tensor:
    """The scores of one image."""
    [scores] = seed_scores(method, network, [image], [class_ids], **views)
    return scores
