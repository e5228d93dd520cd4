"""NICKEL: the student learns from the teacher's discriminator, and its own discriminator from the teacher's generator.

D is a `DualDiscriminator`. The base gives both discriminators in it the adversarial losses and R1; the term here is the
exchange between the teacher's generator and the student's discriminator.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed
from torch_utils import misc

from stylegan2_compress import distributed, pickles
from stylegan2_compress.arguments import require_choice, require_number
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.adversarial import STUDENT, AdversarialLoss, Batch, Summand, Term
from stylegan2_compress.losses.dime import DiMELoss
from stylegan2_compress.losses.features import block_outputs, require_same_latents, teacher_ws
from stylegan2_compress.losses.wavelets import haar_levels
from stylegan2_compress.networks.dual import DualDiscriminator

TEACHER = '/teacher'
PAPER_FEATURE_WEIGHT = 10.0
PAPER_LEVELS = 4
STUDENT_D = ('scratch', 'teacher')


def high_frequency_distance(x: torch.Tensor, y: torch.Tensor, levels: int) -> torch.Tensor:
    """Σ_j MSE(H_j(x), H_j(y)), H_j being the three high-frequency subbands of Haar level j (NICKEL's L_feat).

    Args:
        x, y: feature maps [N, C, H, W].
        levels: J, bounded as in `haar_levels`.

    Returns:
        A scalar, of at least float32 precision.
    """
    precision = torch.promote_types(x.dtype, torch.float32)
    difference = x.to(precision) - y.to(precision)  # The transform is linear.
    return sum(torch.stack(subbands).square().mean() for subbands in haar_levels(difference, levels))


class FeatureExchange(Term):
    """λ L_feat: D_S is to see in the teacher's images what the teacher made them from (NICKEL, arXiv 2405.11614).

    Main D phase only. The teacher makes images from the student's latents, mixed in the same way, and D_S looks at
    them unaugmented, since augmented ones would not show what the teacher's feature maps do.

    Args:
        G: the teacher's generator, frozen and in eval mode.
        D: `DualDiscriminator`, possibly wrapped in DistributedDataParallel.
        levels: J by the names of the blocks whose maps are compared.
        weight: λ.
        precision: arguments of the networks' forward passes.
    """

    def __init__(
        self,
        G: torch.nn.Module,
        D: torch.nn.Module,
        levels: Mapping[str, int],
        weight: float,
        precision: Mapping[str, bool],
    ):
        self.G = G
        self.D = D
        self.levels = dict(levels)
        self.weight = weight
        self.precision = precision

    def discriminator(self, batch: Batch) -> list[Summand]:
        images, wanted = self.run_teacher(batch)
        with misc.ddp_sync(self.D, False):  # The pass on real images synchronises the processes.
            seen = self.D(images, batch.c, match=tuple(self.levels), **self.precision)
        loss = sum(high_frequency_distance(seen[name], wanted[name], levels) for name, levels in self.levels.items())
        return [Summand('NICKEL/features', loss, self.weight)]

    @torch.no_grad()
    def run_teacher(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The teacher's images for the student's latents, and the feature maps behind them by block name."""
        with block_outputs(self.G.synthesis, self.levels) as features:
            images = self.G.synthesis(teacher_ws(self.G, batch), **self.precision)
        return images, features


class NICKELLoss(AdversarialLoss):
    """Adversarial losses against two discriminators, and exchange of features (NICKEL, arXiv 2405.11614).

    D has to be a `stylegan2_compress.DualDiscriminator`; the options of the training loops see to that (`adapt`).
    D_T starts from the teacher pickle's D, and both train on the student's images and on real ones.

    Args:
        teacher: network pickle (path or URL) with the teacher's G_ema and D.
        student_d: D_S starts from 'scratch' (the paper) or from the 'teacher' pickle's D, too.
        feature_weight: λ of L_feat, the paper's 10 by default; 0 switches it off.
        resolutions: sides of the feature maps that are compared, one or several, whose distances are added. By default
            a quarter of the image's, which is the paper's 64 for 256 pixels; at least 4.
        levels: Haar levels J. By default the paper's 4, or as many as the map can be halved if that is less.
        adversarial: arguments of `AdversarialLoss`.

    Raises:
        UserError: if D is not a DualDiscriminator.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        D: torch.nn.Module,
        teacher: str,
        student_d: str = 'scratch',
        feature_weight: float = PAPER_FEATURE_WEIGHT,
        resolutions: int | str | Sequence[int] | None = None,
        levels: int | None = None,
        **adversarial,
    ):
        self.start_base(device, D=D, teacher=teacher, **adversarial)
        data = pickles.load(teacher, device=self.device)
        G = data['G_ema'].eval().requires_grad_(False)
        levels = levels_by_block(G.img_resolution, resolutions, levels)
        start_discriminators(self.D, discriminator_of(data['D']), student_d)
        if feature_weight != 0:
            self.terms.append(FeatureExchange(G, self.D, levels, feature_weight, self.precision))

    def start_base(self, device: torch.device, teacher: str, **adversarial) -> None:
        """Construct what the exchange of knowledge is added to."""
        super().__init__(device, **adversarial)

    def judge(self, images, c) -> dict[str, torch.Tensor]:
        """Logits [N, 1] of D_S and of D_T."""
        student, teacher = self.D(images, c, both=True, **self.precision)
        return {STUDENT: student, TEACHER: teacher}

    @classmethod
    def check_arguments(
        cls,
        *,
        networks: Mapping[str, dict],
        teacher: str,
        student_d='scratch',
        feature_weight=PAPER_FEATURE_WEIGHT,
        resolutions=None,
        levels=None,
        **adversarial,
    ) -> None:
        """Refuse what the constructor would trip over, before a run directory exists."""
        AdversarialLoss.check_arguments(**adversarial)
        require_choice('--loss-arg student_d', student_d, STUDENT_D)
        require_number('--loss-arg feature_weight', feature_weight, least=0)
        data = networks[teacher]
        levels_by_block(data['G_ema'].img_resolution, resolutions, levels)
        if data['D'] is None:
            raise UserError(
                f'--teacher={teacher} holds no discriminator, from which NICKEL starts; give one that does.'
            )

    @classmethod
    def adapt(cls, args: dict, networks: Mapping[str, dict]) -> None:
        """Turn the D of a run into a `DualDiscriminator` for the teacher. `args` are the training loop's."""
        teacher, student_d = args['loss_kwargs']['teacher'], args['loss_kwargs'].get('student_d', 'scratch')
        resolutions, levels = (args['loss_kwargs'].get(name) for name in ('resolutions', 'levels'))
        data = networks[teacher]
        G = data['G_ema']
        require_same_latents('NICKEL', teacher, G, args)
        matched = {
            name: getattr(G.synthesis, name).conv1.weight.shape[0]
            for name in levels_by_block(G.img_resolution, resolutions, levels)
        }
        args['D_kwargs'] = dual_arguments(args['D_kwargs'], discriminator_of(data['D']), student_d, matched)


class NickelDimeLoss(NICKELLoss, DiMELoss):
    """NICKEL and DiME: the sum of both methods' terms on one adversarial loss (the paper's full method).

    Takes the arguments of both.
    """

    def start_base(self, device: torch.device, teacher: str, **dime) -> None:
        """Construct what the exchange of knowledge is added to: DiME."""
        DiMELoss.__init__(self, device, teacher=teacher, **dime)

    @classmethod
    def check_arguments(cls, **arguments) -> None:
        """Refuse what the constructor would trip over, before a run directory exists."""
        NICKELLoss.check_arguments(**arguments)
        DiMELoss.check_arguments(**arguments)


# --- Which feature maps, and how deep ---------------------------------------------------------------------------------


def levels_by_block(
    img_resolution: int, resolutions: int | str | Sequence[int] | None, levels: int | None
) -> dict[str, int]:
    """Haar levels by the name of the block whose map is compared, `{'b64': 4}`, from the arguments of `NICKELLoss`.

    Raises:
        UserError: a resolution that the networks do not have, or more levels than one of the maps allows.
    """
    available = [2**k for k in range(2, int(math.log2(img_resolution)))]  # D_S has a map of half the image at most.
    if resolutions is None:
        resolutions = max(img_resolution // 4, 4)
    chosen = list(resolutions) if isinstance(resolutions, (list, tuple)) else [resolutions]
    if isinstance(resolutions, str):  # Two or more, separated by commas; one came as a number.
        chosen = [int(side) if side.strip().isdecimal() else side for side in resolutions.split(',')]
    if not chosen or len(set(map(repr, chosen))) < len(chosen) or any(side not in available for side in chosen):
        raise UserError(
            f'--loss-arg resolutions={resolutions} must be one or several of {", ".join(map(str, available))} '
            f'for images of {img_resolution} pixels.'
        )
    most = int(math.log2(min(chosen)))
    if levels is not None and not (isinstance(levels, int) and 1 <= levels <= most):
        raise UserError(f'--loss-arg levels={levels} must be from 1 to {most} for feature maps of side {min(chosen)}.')
    return {f'b{side}': levels or min(PAPER_LEVELS, int(math.log2(side))) for side in chosen}


# --- The dual discriminator -------------------------------------------------------------------------------------------


def discriminator_of(D: torch.nn.Module) -> torch.nn.Module:
    """The host's discriminator in a pickle's D: of a student that NICKEL trained, the student's."""
    return D.student if isinstance(D, DualDiscriminator) else D


def dual_arguments(D_kwargs: Mapping, teacher_D: torch.nn.Module, student_d: str, matched: Mapping[str, int]) -> dict:
    """`D_kwargs` of a `DualDiscriminator`, from those of a run with the host's discriminator or with a dual one.

    Precision, the number of FP16 resolutions and the clamp that goes with it, is the run's for both. Frozen layers
    (`--freezed`) are for weights that were learned before: D_T's, and D_S's only if they are the teacher's.

    Raises:
        UserError: D is of a class that is neither, or a dual one whose networks are not those asked for.
    """
    if D_kwargs['class_name'].rpartition('.')[2] not in ('Discriminator', 'DualDiscriminator'):
        raise UserError(f"NICKEL needs the host's discriminator, training.networks.Discriminator, and D is a "
                        f'{D_kwargs["class_name"]}.')  # fmt: skip
    student_kwargs = D_kwargs.get('student_kwargs', D_kwargs)
    trained_before = {name: kwargs for name in ('student_kwargs', 'teacher_kwargs') if (kwargs := D_kwargs.get(name))}
    frozen = D_kwargs.get('block_kwargs') or trained_before.get('teacher_kwargs', {}).get('block_kwargs', {})
    teacher_kwargs = _own_arguments(teacher_D.init_kwargs, frozen.get('freeze_layers', 0))
    new = type(D_kwargs)(
        {name: D_kwargs[name] for name in ('num_fp16_res', 'conv_clamp') if name in D_kwargs},
        class_name='stylegan2_compress.DualDiscriminator',
        student_kwargs=teacher_kwargs if student_d == 'teacher' else _own_arguments(student_kwargs, freeze_layers=0),
        teacher_kwargs=teacher_kwargs,
        matched_channels=dict(matched),
    )
    for name, kwargs in trained_before.items():
        if _own_arguments(kwargs, 0) != _own_arguments(new[name], 0):
            raise UserError(
                'The student was trained by NICKEL before, with another D than --teacher and --loss-arg student_d '
                f'ask for ({name} are {dict(kwargs)}, not {dict(new[name])}); give what it was trained with.'
            )
    return new


def _own_arguments(kwargs: Mapping, freeze_layers: int) -> dict:
    """Arguments of the host's `Discriminator` without those that a `DualDiscriminator` gives to both."""
    shared = ('class_name', 'c_dim', 'img_resolution', 'img_channels', 'num_fp16_res', 'conv_clamp')
    own = {name: value for name, value in kwargs.items() if name not in shared}
    own['block_kwargs'] = {k: v for k, v in own.get('block_kwargs', {}).items() if k != 'freeze_layers'}
    if freeze_layers:
        own['block_kwargs']['freeze_layers'] = freeze_layers
    return own


def start_discriminators(D: torch.nn.Module, teacher_D: torch.nn.Module, student_d: str) -> None:
    """Give D_T, and D_S if it is to start from the teacher's, their first weights.

    This happens here and not in a pickle to resume from, because a run may have none, and because the host's loop
    copies from one by name only. A D that was resumed from a snapshot of such a run says that it has been `started`.

    Args:
        D: `DualDiscriminator`, possibly wrapped in DistributedDataParallel.
        teacher_D: the discriminator in the teacher's pickle.
        student_d: see `NICKELLoss`.
    """
    D = D.module if isinstance(D, torch.nn.parallel.DistributedDataParallel) else D
    if not isinstance(D, DualDiscriminator):
        raise UserError(f'NICKEL needs D_kwargs with class_name stylegan2_compress.DualDiscriminator, not a '
                        f'{type(D).__name__}; train.py and distill write them.')  # fmt: skip
    if distributed.world() is not None:
        # Only the first process resumes in the host's loop, and some versions of torch hand on its parameters only.
        for buffer in D.buffers():
            torch.distributed.broadcast(buffer, src=0)
    if D.started:
        return
    with torch.no_grad():
        misc.copy_params_and_buffers(teacher_D, D.teacher, require_all=True)
        if student_d == 'teacher':
            misc.copy_params_and_buffers(teacher_D, D.student, require_all=True)
        D.started.fill_(1)
