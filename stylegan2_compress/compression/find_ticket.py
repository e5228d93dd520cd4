"""`find-ticket`: from a data set to a mask."""

from typing import Any

import dnnlib
import torch
from training.networks import Generator

from stylegan2_compress import distributed
from stylegan2_compress.arguments import given_options, require_choice
from stylegan2_compress.compression import best_ticket, planning
from stylegan2_compress.compression.options import (
    ABOUT_THE_COMMAND,
    LAYER_MOMENTS,
    PRESETS,
    TRAINED_INIT,
    WEIGHT_INIT,
    TicketOptions,
)
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import configurations, devices
from stylegan2_compress.host.datasets import has_classes
from stylegan2_compress.host.networks import check_against_data, class_name, constructor_arguments, generator_of
from stylegan2_compress.host.precision import Precision
from stylegan2_compress.losses.dime import DistanceLoss
from stylegan2_compress.losses.moment_matching import MomentMatchingLoss
from stylegan2_compress.networks import masked as masks
from stylegan2_compress.runs.directory import KIMG_PER_TICK
from stylegan2_compress.runs.plan import Plan
from stylegan2_compress.runs.resume import check_resume
from stylegan2_compress.tickets import baking, ticket_file
from stylegan2_compress.training_loops import snapshots

LOSS = 'stylegan2_compress.MomentMatchingLoss'
DISTANCE_LOSS = 'stylegan2_compress.DistanceLoss'
SNAPSHOTS = 10  # Of a run at least, where its ticks allow it: `best.ticket` is chosen from them.
# Arguments of the losses that have options, by which snapshots are compared, too.
HAS_AN_OPTION = dict(embedding='embedding', embeddings='embedding', estimator='distance')
MEMORY = 1024  # Images that count together in a distance of DiME's.
GENERATOR = 'stylegan2_compress.ScoreMaskedGenerator'
LOOP = 'stylegan2_compress.training_loops.ticket_search.training_loop'
GEM_MINER = 'gem-miner'  # Rounds its scores, which therefore have one start, in the paper's code too.


def find_ticket(data: str, outdir: str, **options) -> str:
    """Search for the mask under which a generator of fixed weights makes images like the reference's.

    Args:
        options: the fields of `TicketOptions`, of which `data` and `outdir` are required. `loss_args` may be a
            dictionary of values.

    Returns:
        The run directory, with `best.ticket` and `last.ticket` in it.

    Raises:
        UserError: before anything is written, for anything that could not be searched for.
    """
    chosen = TicketOptions(data=data, outdir=outdir, **options)
    plan = plan_search(chosen)
    run_dir = planning.run(plan, chosen.outdir, chosen.resume, chosen.dry_run)
    if not chosen.dry_run:  # Under torchrun, only rank 0 is left.
        # The processes that trained have ended, so that a GPU is free, however many there were.
        best_ticket.keep_tickets(run_dir, chosen.compared_in, chosen.eval_samples, devices.choose(chosen.device))
    return run_dir


def plan_search(options: TicketOptions) -> Plan:
    """What `find-ticket` runs with these options.

    Raises:
        UserError: for anything that could not be searched for.
    """
    check_names(options)
    check_resume(options.resume)
    device = devices.choose(options.device)
    plan = Plan('', dnnlib.EasyDict(), chosen=given_options(options, without=ABOUT_THE_COMMAND))
    options = options.settled(trains_weights=not masks.rule_of(options.rule).scored)
    G = None if options.teacher is None else teacher_generator(plan, options.teacher)
    given = options.host_options()
    if G is not None:
        given.setdefault('cond', G.c_dim > 0)
    gpus = distributed.number_of_processes(options.gpus, options.device)
    # In FP32, as published, and as masked networks compute in any case.
    plan.name, plan.args = configurations.loop_arguments(options.data, aug='noaug', fp32=True, gpus=gpus, **given)
    require_several_images(options.data, plan.args.training_set_kwargs)
    plan.name += f'-ticket-{options.rule}-keep{options.keep:g}'
    if options.train_unmasked:
        plan.name += '-trained-unmasked'
    if options.distance != LAYER_MOMENTS:
        plan.name += f'-{options.distance}'
    set_generator(plan, options, G)
    loss, loss_args = loss_of(options, plan.args.training_set_kwargs)
    # A large batch makes steps of the scores as rare as it is large.
    set_options(plan.args, options, device, images_of_a_step=loss_args.get('large_batch') or plan.args.batch_size)
    plan.embedding(options.compared_in)
    planning.use_loss(plan, loss, loss_args)
    plan.args.D_kwargs = plan.args.D_opt_kwargs = None
    if options.cuda_graphs:
        planning.record(plan)
    masked_G = build(plan.args.G_kwargs, plan.args.training_set_kwargs)
    ticket_file.require_readable(masked_G)
    require_kept_weights(masked_G, options.keep)
    plan.student = None if G is None else starting_networks(masked_G, G, plan.args.training_set_kwargs)
    return plan


def check_names(options: TicketOptions) -> None:
    """Refuse names that do not exist."""
    if '.' not in options.rule:
        require_choice('--rule', options.rule, masks.RULES)
    try:
        rule = masks.rule_of(options.rule)
    except ValueError as error:
        raise UserError(f'--rule={options.rule} cannot be used ({error}).') from error
    if options.density is not None:
        require_choice('--density', options.density, masks.DENSITIES)
    if options.density not in (None, 'uniform') and not rule.by_layer:
        raise UserError(
            f'--density={options.density} is for rules that go layer by layer; {options.rule} compares all weights '
            'together.'
        )
    if options.weight_init is not None:
        require_choice('--weight-init', options.weight_init, masks.WEIGHT_INITS)
    if options.score_init is not None:
        require_choice('--score-init', options.score_init, masks.SCORE_INITS)
        if not rule.scored:
            raise UserError(
                f'--score-init={options.score_init} is for rules with scores; {options.rule} trains weights.'
            )
        if options.rule == GEM_MINER and options.score_init != rule.usual_scores:
            raise UserError(
                f'--score-init={options.score_init} starts nearly all scores below 0.5, above which {options.rule} '
                f'counts them: leave it out, or give {rule.usual_scores}.'
            )


def teacher_generator(plan: Plan, teacher: str) -> Generator:
    """The G_ema whose weights are masked."""
    G = generator_of(teacher, plan.resources.networks[teacher])
    if class_name(G) != 'Generator':
        raise UserError(f"--teacher={teacher} is a {class_name(G)}: tickets are made of the host's Generator.")
    return G


def set_generator(plan: Plan, options: TicketOptions, G: Generator | None) -> None:
    """Put the masked generator into a loop's arguments: of a teacher's weights, or of random ones."""
    args = plan.args
    if options.teacher is None or G is None:
        use_shape(args, options.shape())
        # Of weights that all have one size, which are the largest says nothing.
        usual = WEIGHT_INIT if masks.rule_of(options.rule).scored else TRAINED_INIT
        args.G_kwargs.weight_init = options.weight_init or usual
    else:
        check_against_data('--teacher', options.teacher, G, args.training_set_kwargs)
        precision = Precision.of_generator(args.G_kwargs)
        args.G_kwargs = constructor_arguments(G)
        precision.put_into_generator(args.G_kwargs)
        args.G_kwargs.update(weight_init=None, teacher=plan.resources.networks.sha256(options.teacher))
    args.G_kwargs.update(class_name=GENERATOR, keep=options.keep, rule=options.rule)
    density = density_of(options)
    if density != 'uniform':
        args.G_kwargs.density = density
    args.G_kwargs.update(masked=list(options.masked), unmasked=list(options.unmasked), seed=args.random_seed)
    args.G_kwargs.update(score_init_of(options))
    if options.train_unmasked:
        args.G_kwargs.train_unmasked = True


def density_of(options: TicketOptions) -> str:
    """How the weights that count are shared out among layers: as asked for, or as in the preset where rules let it."""
    if options.density is not None:
        return options.density
    return PRESETS[options.preset].density if masks.rule_of(options.rule).by_layer else 'uniform'


def score_init_of(options: TicketOptions) -> dict[str, str]:
    """The generator's argument for scores: as asked for, or as in the preset, or nothing for what the rule wants."""
    if options.score_init is not None:
        return {'score_init': options.score_init}
    rule, presets = masks.rule_of(options.rule), PRESETS[options.preset].score_init
    return {'score_init': presets} if rule.scored and options.rule != GEM_MINER and presets is not None else {}


def set_options(args: dnnlib.EasyDict, options: TicketOptions, device: torch.device, images_of_a_step: int) -> None:
    """Put optimizer, lengths, loop and device into a loop's arguments."""
    lr = options.learning_rate(args.total_kimg, images_of_a_step)
    args.G_opt_kwargs = dnnlib.EasyDict(
        class_name='torch.optim.Adam', lr=lr, betas=list(PRESETS[options.preset].betas), eps=1e-8
    )
    args.G_reg_interval = None
    args.update(options.given('kimg_per_tick', 'state_kimg', 'track'), **options.averaging(args.total_kimg))
    args.update(options.lr_decay_kimg(args.total_kimg))
    if options.snap is None:
        ticks = args.total_kimg / args.get('kimg_per_tick', KIMG_PER_TICK)
        snap = min(max(int(ticks / SNAPSHOTS), 1), args.network_snapshot_ticks)
        args.image_snapshot_ticks = args.network_snapshot_ticks = snap
    args.loop = LOOP
    args.device = str(device)
    if device.type != 'cuda':
        devices.prepare_without_cuda(args)


def loss_of(options: TicketOptions, training_set_kwargs: dict) -> tuple[str, dict]:
    """Importable name and arguments of the loss; those that are given go before ours.

    Args:
        options: settled ones.
        training_set_kwargs: the data set of the run.

    Raises:
        UserError: one of the arguments does not exist, or has an option of its own.
    """
    if options.distance == LAYER_MOMENTS:
        loss = LOSS
        ours: dict[str, Any] = {**PRESETS[options.preset].loss_args, 'embedding': options.embedding}
        given = planning.values_of(loss, MomentMatchingLoss, options.loss_args)
    else:
        loss = DISTANCE_LOSS
        ours = dict(estimator=options.distance, embeddings=options.embedding, reference=options.reference)
        given = planning.values_of(loss, DistanceLoss, options.loss_args)
        of_all_labels = any(given.get(name) for name in ('large_batch', 'refresh', 'statistics'))
        ours['by_label'] = has_classes(training_set_kwargs) and not of_all_labels
        ours['memory'] = 0 if given.get('large_batch') or options.batch > MEMORY else MEMORY
    for name in given:
        if name in HAS_AN_OPTION:
            raise UserError(f'--loss-arg {name}=… has an option of its own here: give --{HAS_AN_OPTION[name]}.')
    if options.reference == 'teacher':
        ours['teacher'] = options.teacher
    return loss, {**ours, **given}


def use_shape(args: dnnlib.EasyDict, shape: dict[str, int]) -> None:
    """Put the sizes that were asked for in the place of the configuration's."""
    resolution = args.training_set_kwargs.resolution
    if shape.get('channel_base', resolution) < resolution:
        raise UserError(f'--channel-base={shape["channel_base"]} must be at least the resolution, {resolution}.')
    for name, value in shape.items():
        place, key = {
            'channel_base': (args.G_kwargs.synthesis_kwargs, 'channel_base'),
            'channel_max': (args.G_kwargs.synthesis_kwargs, 'channel_max'),
            'mapping_layers': (args.G_kwargs.mapping_kwargs, 'num_layers'),
        }.get(name, (args.G_kwargs, name))
        place[key] = value


def build(G_kwargs: dict, training_set_kwargs: dict) -> masks.ScoreMaskedGenerator:
    """The generator that the loop will build.

    Raises:
        UserError: A pattern of layers matches nothing.
    """
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    try:
        with devices.fitting('The generator is larger than memory: lower --channel-max, --w-dim or --z-dim.'):
            return dnnlib.util.construct_class_by_name(
                **G_kwargs,
                c_dim=training_set.label_dim,
                img_resolution=training_set.resolution,
                img_channels=training_set.num_channels,
            )
    except ValueError as error:
        raise UserError(f'--masked, --unmasked: {error}.') from error


def require_several_images(data: str, training_set_kwargs: dict) -> None:
    """Refuse data without a distribution to match.

    Raises:
        UserError: it has one image.
    """
    if training_set_kwargs['max_size'] < 2:
        raise UserError(f'--data={data} is one image here, and moments are of several: use more.')


def require_kept_weights(G: masks.ScoreMaskedGenerator, keep: float) -> None:
    """Refuse masks that keep nothing, at the start or in the end.

    Raises:
        UserError: they do.
    """
    all_masks = [mask for part in G.parts for mask in part.masks().values()]
    total = sum(mask.numel() for mask in all_masks)
    if not any(mask.any() for mask in all_masks) or round(keep * total) < 1:
        raise UserError(f'--keep={keep:g} keeps none of the {total:,} weights: keep more.')
    if masks.rule_of(G.synthesis.rule).by_layer:
        layers = {name: mask for name, mask in G.masks().items() if mask.dim() == 4}
        rgb = [name for name in layers if '.torgb.' in name]
        empty = [name for name, mask in layers.items() if name not in rgb and not mask.any()]
        empty += rgb[-1:] if rgb and not any(layers[name].any() for name in rgb) else []
        if empty:
            raise UserError(
                f'--keep={keep:g} keeps none of the weights of {empty[0]}, without which all images are alike: keep '
                'more, or give --density=erk-odds, with which small layers keep more of theirs.'
            )


def starting_networks(G: masks.ScoreMaskedGenerator, dense: Generator, training_set_kwargs: dict) -> dict:
    """Contents of the network pickle that a search in a teacher's weights starts from."""
    baking.put_weights(G, dense)
    networks = dict(G=G, G_ema=G, D=None, augment_pipe=None)
    return snapshots.network_snapshot(networks, training_set_kwargs)
