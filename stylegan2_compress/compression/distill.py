"""`distill`: from a teacher pickle and a dataset to a training run, with defaults read off the teacher."""

from stylegan2_compress import distributed, pruning
from stylegan2_compress.arguments import require_number
from stylegan2_compress.compression.plan import compress, parse_metrics
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import host_metrics
from stylegan2_compress.host import configurations, devices
from stylegan2_compress.host.networks import require_generator
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs.directory import check_outdir
from stylegan2_compress.runs.launch import OUR_LOOP
from stylegan2_compress.runs.resume import check_resume, continue_or_start

DEFAULT_LOSS = 'stylegan2_compress.DiMELoss'
DEFAULT_RATIO = 0.7


def distill(
    teacher: str,
    data: str,
    outdir: str,
    student: str | None = None,
    ratio: float | None = None,
    loss: str = DEFAULT_LOSS,
    loss_args: tuple[str, ...] = (),
    loop: str | None = None,
    metrics: str = 'none',
    device: str | None = None,
    dry_run: bool = False,
    lr: float | None = None,
    ema_kimg: float | None = None,
    pl_weight: float | None = None,
    kimg_per_tick: float | None = None,
    state_kimg: float | None = None,
    resume: str | None = None,
    **host_options,
) -> str:
    """Train a small generator to do what the teacher does. Returns the run directory.

    Args:
        teacher: network pickle (path or URL).
        data: directory or zip of training images in the host's format.
        outdir: where the run directory is created.
        student: network pickle to start from; without one the teacher is pruned by L1 magnitude.
        ratio: share of channels to cut where there is no `student`, 0.7 by default.
        loss, loss_args, loop: see `compress`.
        metrics: names of the host's metrics, separated by commas, or 'none'.
        device: 'cpu', 'cuda', 'cuda:1'; CUDA where there is one by default.
        dry_run: print the options and write nothing.
        lr: learning rate of both optimizers, the configuration's by default.
        ema_kimg: half-life of the average that G_ema is, in thousands of images; the configuration's by default.
        pl_weight: weight of path length regularisation, the loss's own by default.
        kimg_per_tick: thousands of images between two lines of progress.
        state_kimg: thousands of images after which the state is saved that a run is continued from.
        resume: 'latest' or a run directory, to continue: see `continue_or_start`.
        host_options: of `configurations.host_arguments`; `cfg` and `cond` are read off the teacher by default, `aug` is
            'noaug' (the paper trains without augmentation).

    Raises:
        UserError: before anything is written, for anything that could not train.
    """
    if student is not None and ratio is not None:
        raise UserError(f'--student={student} and --ratio={ratio} exclude each other: a student is pruned already.')
    for option, value in [
        ('lr', lr),
        ('ema-kimg', ema_kimg),
        ('pl-weight', pl_weight),
        ('kimg-per-tick', kimg_per_tick),
        ('state-kimg', state_kimg),
    ]:
        if value is not None:
            require_number(f'--{option}', value, least=0)
    check_outdir(outdir)
    check_resume(resume)
    if device is not None:
        devices.choose(device)  # Refuses one that is not here.
    networks = Networks()
    teacher_data = networks[teacher]
    require_generator(teacher, teacher_data)
    G = teacher_data['G_ema']
    given = {name: value for name, value in host_options.items() if value is not None}
    given['gpus'] = distributed.number_of_processes(given.get('gpus'))
    given['metrics'] = parse_metrics(metrics)
    for metric in given['metrics']:
        host_metrics.require_detector(metric)  # What is missing now would end the run at its first snapshot.
    desc, args = configurations.host_arguments(data, **{**defaults_for(G), **given})

    if student is None:
        ratio = DEFAULT_RATIO if ratio is None else ratio
        student_data = pruning.make_student(teacher_data, pruning.widths_for_ratio(G, ratio))
        desc += f'-ratio{ratio:g}'
    desc, args = compress(
        desc,
        args,
        loss=loss,
        loss_args=loss_args,
        teacher=teacher,
        student=student or student_data,
        loop=loop or OUR_LOOP,
        device=device,
        networks=networks,
    )
    for opt_kwargs in (args.G_opt_kwargs, args.D_opt_kwargs):
        opt_kwargs.lr = opt_kwargs.lr if lr is None else lr
    if ema_kimg is not None:
        args.ema_kimg = ema_kimg
    if pl_weight is not None:
        args.loss_kwargs.pl_weight = pl_weight
    if kimg_per_tick is not None:
        args.kimg_per_tick = kimg_per_tick
    if state_kimg is not None:
        if 'loop' not in args:
            raise UserError(f"--state-kimg={state_kimg:g} is for our loops, not for the host's: leave one out.")
        args.state_kimg = state_kimg
    start = student_data if student is None else None
    return continue_or_start(outdir, desc, args, student=start, resume=resume, dry_run=dry_run)


def defaults_for(G) -> dict:
    """What a distillation run takes from the teacher instead of asking for it."""
    return dict(cfg=configurations.configuration_of(G), cond=G.c_dim > 0, aug='noaug')
