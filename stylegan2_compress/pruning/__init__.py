"""Structured pruning of the synthesis network: criteria score channels, surgery cuts them out."""

from stylegan2_compress.pruning.criteria import CRITERIA, CriterionOptions, load_content_mask
from stylegan2_compress.pruning.initialization import INITIALIZATIONS
from stylegan2_compress.pruning.student import make_student
from stylegan2_compress.pruning.surgery import masks_from_scores, prune, widths_for_ratio, widths_from_text

__all__ = [
    'CRITERIA',
    'INITIALIZATIONS',
    'CriterionOptions',
    'load_content_mask',
    'make_student',
    'masks_from_scores',
    'prune',
    'widths_for_ratio',
    'widths_from_text',
]
