"""Structured pruning of the synthesis network: criteria score channels, surgery removes them."""

from stylegan2_compress.pruning.content import ContentMask, load_content_mask
from stylegan2_compress.pruning.criteria import CRITERIA, Criterion, CriterionOptions, Scores
from stylegan2_compress.pruning.initialization import INITIALIZATIONS, Initialization
from stylegan2_compress.pruning.student import find_criterion, make_student, require_prunable
from stylegan2_compress.pruning.surgery import masks_from_scores, prune, rounded_up, widths_for_ratio, widths_from_text

__all__ = [
    'CRITERIA',
    'INITIALIZATIONS',
    'ContentMask',
    'Criterion',
    'CriterionOptions',
    'Initialization',
    'Scores',
    'find_criterion',
    'load_content_mask',
    'make_student',
    'masks_from_scores',
    'prune',
    'require_prunable',
    'rounded_up',
    'widths_for_ratio',
    'widths_from_text',
]
