"""`stats`: what a run would compute first, computed once and for all."""

import click

from stylegan2_compress.cli.shared import SEED, force_option, host_option
from stylegan2_compress.errors import UserError
from stylegan2_compress.files import refuse_to_overwrite


@click.command()
@click.option('--teacher', metavar='PKL|URL', help='Network pickle whose images are looked at.')
@click.option('--data', metavar='PATH', help='Instead the images of a data set; with --teacher only its labels.')
@click.option(
    '--embedding',
    'embeddings',
    multiple=True,
    metavar='SPEC',
    help='Embedding network; may be repeated  [default: dino_resnet50 and clip_rn50]',
)
@click.option(
    '--samples',
    type=click.IntRange(min=1),
    metavar='N',
    help='How many images  [default: 10000 of a teacher, all of a data set]',
)
@click.option(
    '--bank',
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar='N',
    help='Keep the features of the first N images, for the estimators linear, rbf and cubic.',
)
@click.option('--truncation', type=float, default=1, show_default=True, metavar='PSI', help="Of the teacher's images.")
@click.option('--mirror', type=bool, default=False, metavar='BOOL', help='Add flipped images  [default: false]')
@click.option('--seed', type=SEED, default=0, show_default=True, help='Random seed.')
@click.option('--device', metavar='NAME', help='cpu, cuda, cuda:1  [default: cuda where there is one]')
@click.option('--out', required=True, type=click.Path(dir_okay=False), metavar='NPZ', help='File to write.')
@force_option
@host_option
def stats(teacher, data, embeddings, samples, bank, truncation, mirror, seed, device, out, force, host_dir):
    """Compute what DiME matches: statistics of a teacher's or a data set's images in embedding spaces.

    Runs do this by themselves and remember the result; with the file they start at once, on another machine, too:
    --loss-arg statistics=FILE. A file that was made for something else is refused.

    \b
    Examples:
      stylegan2-compress stats --teacher ffhq256.pkl --samples 50000 --out ffhq256.npz
    \b
      # With features for --loss-arg estimator=rbf
      stylegan2-compress stats --teacher ffhq256.pkl --embedding dinov2_vits14 --bank 4096 --out ffhq256-dinov2.npz
    \b
      # A conditional teacher, with labels as often as in the data set it was trained on
      stylegan2-compress stats --teacher mnist.pkl --data mnist.zip --embedding efficientnet_lite0 --out mnist.npz
    \b
      # The data set itself, for --loss-arg reference=data
      stylegan2-compress stats --data ffhq256.zip --mirror 1 --out ffhq256-data.npz
    """
    from stylegan2_compress import host
    from stylegan2_compress.arguments import require_number

    require_number('--truncation', truncation)
    if teacher is None and data is None:
        raise UserError('Say whose images to look at: --teacher or --data.')
    if teacher is None and truncation != 1:
        raise UserError(f'--truncation={truncation:g} goes with --teacher, whose images it changes.')
    if data is None and mirror:
        raise UserError('--mirror=true goes with --data, whose images it doubles.')
    refuse_to_overwrite(out, force)
    host.activate(host_dir)
    from stylegan2_compress import pickles
    from stylegan2_compress.distributions import sources, statistics
    from stylegan2_compress.embeddings import load, split
    from stylegan2_compress.host import datasets, devices
    from stylegan2_compress.host.networks import check_against_data, require_generator
    from stylegan2_compress.losses import dime

    device = devices.choose(device)
    training_set_kwargs = None
    if data is not None:
        _training_set, training_set_kwargs = datasets.open_training_set(data)
        training_set_kwargs.update(xflip=mirror)
    if teacher is None:
        source = sources.DatasetImages(training_set_kwargs, seed=seed, device=device)
    else:
        networks = pickles.load(teacher)
        require_generator(teacher, networks)
        G = networks['G_ema']
        if data is not None:
            training_set_kwargs.update(use_labels=G.c_dim > 0)
            check_against_data('--teacher', teacher, G, training_set_kwargs)
        source = sources.TeacherImages(
            teacher, G, truncation_psi=truncation, seed=seed, training_set_kwargs=training_set_kwargs, device=device
        )
    samples = samples or source.size or max(dime.TEACHER_SAMPLES, bank)
    sources.check_size(source, '--samples', samples)
    if bank > samples:
        raise UserError(f'--bank={bank} is more than the {samples} images that are looked at: raise --samples.')
    loaded = [load(spec, device) for spec in split(list(embeddings) or dime.PAPER_EMBEDDINGS)]
    found = statistics.compute(source, loaded, samples, bank)
    statistics.write(out, source, samples, list(zip(loaded, found, strict=True)))
    click.echo(f'{out}: {samples} images, {", ".join(embedding.spec for embedding in loaded)}')
