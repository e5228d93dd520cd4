"""Structured pruning of the synthesis network: criteria score channels, surgery cuts them out."""

from stylegan2_compress.pruning.criteria import CRITERIA, CriterionOptions
from stylegan2_compress.pruning.student import make_student
from stylegan2_compress.pruning.surgery import masks_from_scores, prune, widths_for_ratio, widths_from_text

__all__ = [
    'CRITERIA',
    'CriterionOptions',
    'make_student',
    'masks_from_scores',
    'prune',
    'widths_for_ratio',
    'widths_from_text',
]
