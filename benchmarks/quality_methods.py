"""The rows of `quality.py`: what students are trained by, and on what."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One row of the table per ratio."""

    loss: str
    start: str = 'teacher'  # Where D starts: the teacher's, or from scratch.
    embeds: bool = False  # Takes DiME's arguments.
    estimator: str = 'moments'  # DiME's.
    weight: float = 1  # DiME's, in units of --weight.
    layers: bool = False  # Takes an embedding that shows its layers.
    arguments: tuple[str, ...] = ()  # Further ones; {…} is filled in, see `filled_in`.
    balanced: bool = False  # DiME finds its weights.
    adversarial: bool = True  # Trains against a discriminator.
    lr: float = 1  # Learning rate, in units of --lr.


RBF = dict(estimator='rbf', weight=0.2)  # Moments pull 0.18 to 0.27 times as hard (estimator_weights.py).
SQUARED = dict(estimator='squared-moments', weight=0.04)
MEMORY, LARGE = ('memory={memory}',), ('large_batch={large_batch}',)
IMAGES = ('images=3', 'images_kimg={images_kimg:g}', 'images_embedding={layers_embedding}')
MOMENTS = ('normalize=true', 'moments_penalty=1')
DAMPED = ('normalize=true', 'moments_penalty=5')
OF_DATA = (*MOMENTS, 'reference=data')
WITHOUT_D = dict(layers=True, adversarial=False)
DUAL = dict(start='scratch', embeds=True)
METHODS = {
    'adversarial': Method('AdversarialLoss', start='scratch'),
    'teacher-d': Method('AdversarialLoss'),
    'images': Method('ImageDistillationLoss', layers=True),
    'stylekd': Method('StyleKDLoss', layers=True),
    'itgc': Method('ITGCLoss', layers=True),
    'gcc': Method('GCCLoss'),
    'dime': Method('DiMELoss', embeds=True),
    'dime-rbf': Method('DiMELoss', embeds=True, **RBF),
    'nickel': Method('NICKELLoss', start='scratch'),
    'both': Method('NickelDimeLoss', start='scratch', embeds=True),
    'both-rbf': Method('NickelDimeLoss', start='scratch', embeds=True, **RBF),
    'both-light': Method('NickelDimeLoss', **DUAL, weight=0.01),
    'both-fading': Method('NickelDimeLoss', **DUAL, arguments=('dime_kimg={half_kimg:g}',)),
    'both-by-label': Method('NickelDimeLoss', **DUAL, arguments=('by_label=true',)),
    'both-teacher-d': Method('NickelDimeLoss', embeds=True, arguments=('student_d=teacher',)),
    'dime-memory': Method('DiMELoss', embeds=True, arguments=MEMORY),
    'both-memory': Method('NickelDimeLoss', **DUAL, arguments=MEMORY),
    'both-squared': Method('NickelDimeLoss', **DUAL, **SQUARED),
    'both-squared-memory': Method('NickelDimeLoss', **DUAL, **SQUARED, arguments=MEMORY),
    'both-rbf-memory': Method('NickelDimeLoss', **DUAL, **RBF, arguments=MEMORY),
    'both-rbf-large': Method('NickelDimeLoss', **DUAL, **RBF, arguments=LARGE),
    'both-rbf-balance': Method('NickelDimeLoss', **DUAL, **RBF, balanced=True, arguments=('balance=0.5', *MEMORY)),
    'both-images': Method('NickelDimeLoss', **DUAL, arguments=IMAGES),
    'both-rbf-images': Method('NickelDimeLoss', **DUAL, **RBF, arguments=IMAGES),
    'both-rbf-memory-images': Method('NickelDimeLoss', **DUAL, **RBF, arguments=(*MEMORY, *IMAGES)),
    'images-moments': Method('ImageDistillationLoss+MomentMatchingLoss', layers=True, arguments=MOMENTS),
    'images-moments-slow': Method(
        'ImageDistillationLoss+MomentMatchingLoss', layers=True, arguments=(*MOMENTS, 'moving_average_lr=2e-6')
    ),
    'images-moments-light': Method(
        'ImageDistillationLoss+MomentMatchingLoss', layers=True, arguments=(*MOMENTS, 'moments_weight=0.1')
    ),
    'images-moments-fading': Method(
        'ImageDistillationLoss+MomentMatchingLoss', layers=True, arguments=(*MOMENTS, 'moments_kimg={kimg:g}')
    ),
    'images-lr2': Method('ImageDistillationLoss', layers=True, lr=2),
    'regression': Method('RegressionLoss', **WITHOUT_D),
    'regression-moments': Method('RegressionLoss+MomentMatchingLoss', **WITHOUT_D, arguments=MOMENTS),
    'regression-moments-lr2': Method('RegressionLoss+MomentMatchingLoss', **WITHOUT_D, arguments=MOMENTS, lr=2),
    'regression-moments-damped': Method('RegressionLoss+MomentMatchingLoss', **WITHOUT_D, arguments=DAMPED, lr=2),
    'regression-moments-data': Method('RegressionLoss+MomentMatchingLoss', **WITHOUT_D, arguments=OF_DATA),
    'moments-data': Method('MomentMatchingLoss', **WITHOUT_D, arguments=OF_DATA),
    'nickel-images': Method('NICKELLoss+ImageDistillationLoss', start='scratch', layers=True),
}
# Not the paper's, which the others are compared with.
OTHERS = ('adversarial', 'teacher-d', 'images', 'images-lr2', 'regression', 'stylekd', 'itgc', 'gcc')
IN_WORDS = {
    'adversarial': 'adversarial only, D from scratch',
    'teacher-d': "adversarial only, the teacher's D",
    'images': 'image distillation',
    'stylekd': 'StyleKD',
    'itgc': 'ITGC',
    'gcc': 'GCC, its distillation',
    'dime': 'DiME',
    'dime-rbf': 'DiME, Gaussian kernel',
    'nickel': 'NICKEL',
    'both': 'NICKEL and DiME',
    'both-rbf': 'NICKEL and DiME, Gaussian kernel',
    'both-light': 'NICKEL and DiME at a hundredth of the weight',
    'both-fading': 'NICKEL and DiME with a weight that falls to 0',
    'both-by-label': 'NICKEL and DiME of each label',
    'both-teacher-d': "NICKEL and DiME, both D the teacher's",
    'dime-memory': 'DiME, memory',
    'both-memory': 'NICKEL and DiME, memory',
    'both-squared': 'NICKEL and DiME, squared moments',
    'both-squared-memory': 'NICKEL and DiME, squared moments, memory',
    'both-rbf-memory': 'NICKEL and DiME, Gaussian kernel, memory',
    'both-rbf-large': 'NICKEL and DiME, Gaussian kernel, large batches',
    'both-rbf-balance': 'NICKEL and DiME, Gaussian kernel, memory, balanced',
    'both-images': 'NICKEL and DiME, images',
    'both-rbf-images': 'NICKEL and DiME, Gaussian kernel, images',
    'both-rbf-memory-images': 'NICKEL and DiME, Gaussian kernel, memory, images',
    'images-moments': 'image distillation, moments of the teacher',
    'images-moments-slow': 'image distillation, moments of the teacher, v at a fifth of its rate',
    'images-moments-light': 'image distillation, moments of the teacher at a tenth of the weight',
    'images-moments-fading': 'image distillation, moments of the teacher with a weight that falls to 0',
    'images-lr2': 'image distillation, twice the learning rate',
    'regression': 'image distillation without D',
    'regression-moments': 'image distillation without D, moments of the teacher',
    'regression-moments-lr2': 'image distillation without D, moments of the teacher, twice the learning rate',
    'regression-moments-damped': 'image distillation without D, moments of the teacher damped, twice the learning rate',
    'regression-moments-data': 'image distillation without D, moments of the data',
    'moments-data': 'moments of the data alone, without D',
    'nickel-images': 'NICKEL, image distillation',
}
FULL, NONE = 'full', 'none'  # What students are trained on: all of the data, or the teacher's images. Or P%.
