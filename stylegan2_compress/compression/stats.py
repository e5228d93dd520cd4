"""`stats`: the statistics that DiME matches, as a file."""

from stylegan2_compress import embeddings
from stylegan2_compress.compression.options import StatsOptions
from stylegan2_compress.distributions import sources, statistics
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets, devices
from stylegan2_compress.host.networks import check_against_data, generator_of, require_average_of_w
from stylegan2_compress.losses import dime
from stylegan2_compress.pickles.networks import Networks


def write_statistics(options: StatsOptions) -> str:
    """Compute and write the statistics of a teacher's or a data set's images.

    Returns:
        One line about what was written.

    Raises:
        UserError: there are fewer images than that, or a file or embedding cannot be loaded.
    """
    device = devices.choose(options.device)
    devices.set_backends()
    training_set_kwargs, networks = None, Networks()
    if options.data is not None:
        _training_set, training_set_kwargs = datasets.open_training_set(options.data)
        training_set_kwargs.update(xflip=options.mirror)
    if options.teacher is not None:
        G = generator_of(options.teacher, networks[options.teacher])
        require_average_of_w('--truncation', options.teacher, G, options.truncation)
        if training_set_kwargs is not None:
            training_set_kwargs.update(use_labels=G.c_dim > 0)
            check_against_data('--teacher', options.teacher, G, training_set_kwargs)
    source = sources.reference_images(
        options.teacher,
        networks,
        truncation_psi=options.truncation,
        seed=options.seed,
        training_set_kwargs=training_set_kwargs,
        device=device,
    )
    samples = options.samples or source.size or max(sources.TEACHER_SAMPLES, options.bank)
    sources.check_size(source, '--samples', samples)
    if options.bank > samples:
        raise UserError(f'--bank={options.bank} is more than the {samples} images of the statistics: raise --samples.')
    specs = embeddings.split(list(options.embeddings) or dime.PAPER_EMBEDDINGS)
    loaded = [embeddings.load(spec, device, source.resolution) for spec in specs]
    computed = statistics.compute_statistics(source, loaded, samples, options.bank)
    statistics.write_statistics(options.out, source, samples, loaded, computed)
    return f'{options.out}: {samples} images, {", ".join(embedding.spec for embedding in loaded)}'
