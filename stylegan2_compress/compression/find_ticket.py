"""`find-ticket`: from a data set to a mask, and to the best and the last ticket of a run."""

import glob
import json
import os

import dnnlib
import numpy as np
import torch
from tqdm import tqdm

from stylegan2_compress import distributed, embeddings, pickles
from stylegan2_compress.arguments import require_choice, require_number
from stylegan2_compress.compression.plan import use_loss
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import distances, samples
from stylegan2_compress.host import configurations, devices
from stylegan2_compress.host.devices import prepare_for_cpu
from stylegan2_compress.host.networks import check_against_data, constructor_arguments, require_generator
from stylegan2_compress.networks import masked as masks
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs.directory import check_outdir
from stylegan2_compress.runs.resume import check_resume, continue_or_start
from stylegan2_compress.tickets import baking
from stylegan2_compress.tickets.ticket_file import Ticket
from stylegan2_compress.training_loops import snapshots

LOSS = 'stylegan2_compress.MomentMatchingLoss'
GENERATOR = 'stylegan2_compress.ScoreMaskedGenerator'
LOOP = 'stylegan2_compress.training_loops.ticket_search.training_loop'
BETAS = [0.5, 0.999]  # Of Adam on scores (SLT, section 4).
SHAPE = ('z_dim', 'w_dim', 'channel_base', 'channel_max', 'mapping_layers')


def find_ticket(
    data: str,
    outdir: str,
    teacher: str | None = None,
    reference: str = 'data',
    keep: float = 0.1,
    rule: str = 'edge-popup',
    masked: tuple[str, ...] = ('*weight',),
    unmasked: tuple[str, ...] = (),
    weight_init: str = 'signed-constant',
    score_init: str | None = None,
    embedding: str = 'vgg19_bn',
    loss_args: tuple[str, ...] = (),
    lr: float = 5e-5,
    ema_kimg: float | None = None,
    kimg_per_tick: float | None = None,
    eval_embedding: str | None = None,
    eval_samples: int = 2000,
    state_kimg: float | None = None,
    resume: str | None = None,
    device: str | None = None,
    dry_run: bool = False,
    z_dim: int | None = None,
    w_dim: int | None = None,
    channel_base: int | None = None,
    channel_max: int | None = None,
    mapping_layers: int | None = None,
    **host_options,
) -> str:
    """Search for the mask under which a generator of fixed weights makes images like the reference's.

    Args:
        data: directory or zip of training images in the host's format.
        outdir: where the run directory is created.
        teacher: network pickle whose weights are masked; random ones by default.
        reference: `data` or `teacher`, whose images' moments are to be matched.
        keep, rule, masked, unmasked, weight_init, score_init: of `ScoreMaskedGenerator`.
        embedding, loss_args: of `MomentMatchingLoss`.
        lr: Adam's learning rate for scores.
        ema_kimg: half-life of the average that G_ema is, in thousands of images.
        kimg_per_tick: thousands of images between two lines of progress.
        eval_embedding: in whose features snapshots are compared with the data; the loss's by default.
        eval_samples: how many images for that.
        state_kimg: thousands of images after which the state is saved that a run is continued from.
        resume: 'latest' or a run directory, to continue: see `continue_or_start`.
        device: 'cpu', 'cuda', 'cuda:1'; CUDA where there is one by default.
        dry_run: print the options and write nothing.
        z_dim, w_dim, channel_base, channel_max, mapping_layers: of a random generator; the configuration's by default.
        host_options: of `configurations.host_arguments`.

    Returns:
        The run directory, with `best.ticket` and `last.ticket` in it.

    Raises:
        UserError: before anything is written, for anything that could not be searched for.
    """
    shape = dict(zip(SHAPE, (z_dim, w_dim, channel_base, channel_max, mapping_layers), strict=True))
    check_options(teacher, reference, keep, rule, weight_init, score_init, lr, eval_samples, shape)
    given = {name: value for name, value in host_options.items() if value is not None}
    for option, value in [
        ('ema-kimg', ema_kimg),
        ('kimg-per-tick', kimg_per_tick),
        ('state-kimg', state_kimg),
    ]:
        if value is not None:
            require_number(f'--{option}', value, least=0)
    check_outdir(outdir)
    check_resume(resume)
    device = devices.choose(device)
    eval_embedding = eval_embedding or embedding
    embeddings.load(eval_embedding, 'cpu')
    G = None
    if teacher is not None:
        teacher_data = pickles.load(teacher)
        require_generator(teacher, teacher_data)
        G = teacher_data['G_ema']
        if type(G).__name__ != 'Generator':
            raise UserError(f"--teacher={teacher} is a {type(G).__name__}: tickets are made of the host's Generator.")
        given['cond'] = G.c_dim > 0
    given['gpus'] = distributed.number_of_processes(given.get('gpus'))
    desc, args = configurations.host_arguments(data, aug='noaug', **given)
    desc += f'-ticket-{rule}-keep{keep:g}'
    if channel_base is not None and channel_base < args.training_set_kwargs.resolution:
        least = args.training_set_kwargs.resolution
        raise UserError(f'--channel-base={channel_base} must be at least the resolution, {least}.')

    if G is None:
        use_shape(args.G_kwargs, shape)
    else:
        check_against_data('--teacher', teacher, G, args.training_set_kwargs)
        args.G_kwargs = constructor_arguments(G)
        args.G_kwargs.update(weight_init=None, teacher=pickles.sha256(pickles.local_file(teacher)))
    args.G_kwargs.update(class_name=GENERATOR, keep=keep, rule=rule)
    args.G_kwargs.update(masked=list(masked), unmasked=list(unmasked), seed=args.random_seed)
    if G is None:
        args.G_kwargs.weight_init = weight_init
    if score_init is not None:
        args.G_kwargs.score_init = score_init
    args.G_opt_kwargs = dnnlib.EasyDict(class_name='torch.optim.Adam', lr=lr, betas=BETAS, eps=1e-8)
    args.G_reg_interval = None
    if ema_kimg is not None:
        args.ema_kimg = ema_kimg
    if kimg_per_tick is not None:
        args.kimg_per_tick = kimg_per_tick
    if state_kimg is not None:
        args.state_kimg = state_kimg
    args.loop = LOOP
    args.device = str(device)
    if device.type == 'cpu':
        prepare_for_cpu(args)
    given_to_loss = (f'embedding={embedding}', *loss_args)
    if reference == 'teacher':
        given_to_loss += (f'teacher={teacher}',)
    use_loss(args, LOSS, given_to_loss, None, Networks())
    args.D_kwargs = args.D_opt_kwargs = None
    masked_G = build(args.G_kwargs, args.training_set_kwargs)
    start = None if G is None else starting_networks(masked_G, G, args.training_set_kwargs)
    run_dir = continue_or_start(outdir, desc, args, student=start, resume=resume, dry_run=dry_run)
    if not dry_run:
        keep_tickets(run_dir, eval_embedding, eval_samples, device)  # Under torchrun, only the first process is left.
    return run_dir


def check_options(teacher, reference, keep, rule, weight_init, score_init, lr, eval_samples, shape) -> None:
    """Refuse what needs no look at any file."""
    if not 0 < keep <= 1:
        raise UserError(f'--keep={keep:g} must be above 0 and at most 1: the share of weights that a ticket keeps.')
    for option, value, choices in [
        ('--rule', rule, masks.RULES),
        ('--weight-init', weight_init, masks.WEIGHT_INITS),
        ('--score-init', score_init or 'uniform', masks.SCORE_INITS),
        ('--reference', reference, ('data', 'teacher')),
    ]:
        require_choice(option, value, choices)
    if reference == 'teacher' and teacher is None:
        raise UserError('--reference=teacher needs --teacher=PKL.')
    require_number('--lr', lr, least=0, above=True)
    if eval_samples < 2:
        raise UserError(f'--eval-samples={eval_samples} must be at least 2.')
    for name, value in shape.items():
        option = f'--{name.replace("_", "-")}={value}'
        if value is not None and teacher is not None:
            raise UserError(f"{option} and --teacher exclude each other: the shape is the teacher's.")
        if value is not None and value < 1:
            raise UserError(f'{option} must be at least 1.')


def use_shape(G_kwargs: dict, shape: dict) -> None:
    """Put the sizes that were asked for in the place of the configuration's."""
    for name, value in shape.items():
        if value is not None:
            place, key = {
                'channel_base': (G_kwargs.synthesis_kwargs, 'channel_base'),
                'channel_max': (G_kwargs.synthesis_kwargs, 'channel_max'),
                'mapping_layers': (G_kwargs.mapping_kwargs, 'num_layers'),
            }.get(name, (G_kwargs, name))
            place[key] = value


def build(G_kwargs: dict, training_set_kwargs: dict) -> torch.nn.Module:
    """The generator that the loop will build.

    Raises:
        UserError: A pattern of layers matches nothing.
    """
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    try:
        return dnnlib.util.construct_class_by_name(
            **G_kwargs,
            c_dim=training_set.label_dim,
            img_resolution=training_set.resolution,
            img_channels=training_set.num_channels,
        )
    except ValueError as error:
        raise UserError(f'--masked, --unmasked: {error}.') from error


def starting_networks(G: masks.ScoreMaskedGenerator, dense: torch.nn.Module, training_set_kwargs: dict) -> dict:
    """Contents of the network pickle that a search in a teacher's weights starts from."""
    baking.put_weights(G, dense)
    networks = dict(G=G, G_ema=G, D=None, augment_pipe=None)
    return snapshots.network_snapshot(networks, training_set_kwargs)


@torch.no_grad()
def keep_tickets(run_dir: str, embedding: str, count: int, device: torch.device) -> None:
    """Compare the snapshots of a run, G and G_ema of each, with its data; keep the best and the last as tickets.

    The measure is the Fréchet distance in the features of an embedding; the numbers go to `tickets.jsonl`.
    """
    with open(f'{run_dir}/training_options.json') as file:
        training_set_kwargs = json.load(file)['training_set_kwargs']
    network = embeddings.load(embedding, device)
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    reals = features_of(network, samples.reals(training_set), device)
    found, best = [], None
    for path in tqdm(sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl')), desc='Comparing snapshots', disable=None):
        data = pickles.load(path, device=device)
        for name in ('G', 'G_ema'):
            G = data[name].eval()
            z, c = samples.latents(G, count, seed=0), samples.draw_labels(training_set_kwargs, G.c_dim, count, seed=0)
            facts = {
                'snapshot': os.path.basename(path),
                'network': name,
                'frechet_distance': distances.frechet_distance(
                    features_of(network, samples.fakes(G, z, c), device), reals
                ),
                'embedding': network.spec,
                'samples': count,
            }
            found.append(facts)
            if best is None or facts['frechet_distance'] < best[0]['frechet_distance']:
                best = facts, G.cpu()
    last = found[-1], data['G_ema'].cpu()
    with open(f'{run_dir}/tickets.jsonl', 'w') as file:
        file.writelines(json.dumps(facts) + '\n' for facts in found)
    for name, (facts, G) in [('best', best), ('last', last)]:
        path = f'{run_dir}/{name}.ticket'
        where = f'{facts["network"]} of {facts["snapshot"]}, Fréchet distance {facts["frechet_distance"]:.4g}'
        if G.mapping.rule == 'imp':
            print(f'{name}: {where}; no ticket, because the rule imp trains weights')
            continue
        size = Ticket.from_generator(G, facts).write(path)
        print(f'{path}: {size:,} bytes, {where} in {network.spec}')


def features_of(network, batches, device: torch.device) -> np.ndarray:
    """Features [N, dim] of batches of images."""
    return torch.cat([network(images.to(device)).cpu() for images in batches]).numpy()
