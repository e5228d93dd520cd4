"""Masks while they train: their rule's schedule and penalty, beside whatever else a generator learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from stylegan2_compress import distributed
from stylegan2_compress.arguments import argument
from stylegan2_compress.losses.method import Context, Method
from stylegan2_compress.losses.terms import Batch, Summand, Term
from stylegan2_compress.networks.masked import RULES, ScoreMasked, rule_of
from stylegan2_compress.runs.plan import Plan


class MaskSchedule(Term):
    """Lets the masks of a generator follow their rule, and adds the rule's penalty on scores.

    Args:
        parts: the masked modules of one generator, of one rule.
        total_nimg: length of the run in images.
    """

    looks_at_images = False

    def __init__(self, parts: Sequence[ScoreMasked], total_nimg: float):
        self.parts = list(parts)
        self.rule = rule_of(self.parts[0].rule)
        self.total_nimg = total_nimg

    @torch.no_grad()
    def before_step(self, nimg: int) -> None:
        self.rule.advance(self.parts, min(nimg / self.total_nimg, 1))

    def obstacle(self) -> str:
        name = self.parts[0].rule
        return '' if name in RULES else f'the rule {name} is not known to be fit for it'

    def generator(self, batch: Batch) -> list[Summand]:
        penalty = self.rule.penalty(self.parts)
        return [] if penalty is None else [Summand('scores', penalty)]


@dataclass(frozen=True)
class Masks(Method):
    """Lets the masks of a `ScoreMaskedGenerator` follow their rule. Of any other generator, it does nothing."""

    is_objective: ClassVar[bool] = False

    total_kimg: float = argument('Length of the run, for rules with a schedule.', 25000, internal=True)

    def adapt(self, plan: Plan) -> None:
        """Tell the loss how long the run is, if a schedule of masks depends on it. (Other runs can be made longer.)"""
        rule = plan.args.G_kwargs.get('rule')
        if rule is not None and rule_of(rule).scheduled:
            plan.args.loss_kwargs.total_kimg = plan.args.total_kimg

    def terms(self, context: Context) -> Sequence[Term]:
        modules = (distributed.unwrapped(part) for part in (context.G_mapping, context.G_synthesis))
        parts = [part for part in modules if isinstance(part, ScoreMasked)]
        return [MaskSchedule(parts, self.total_kimg * 1000)] if parts else []
