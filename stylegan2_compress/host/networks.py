"""The host's networks: their classes and constructor arguments, and whether they fit a run."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import dnnlib
import torch
from torch_utils import misc
from training.networks import Generator

from stylegan2_compress.errors import UserError

FILTER_PADDING = 21  # By which the host's augmentation mirrors images at their sides before it filters them.

# Arguments of the smallest discriminator, which pickles have that hold none.
PLACEHOLDER = dict(channel_max=1, mapping_kwargs=dict(num_layers=1), epilogue_kwargs=dict(mbstd_num_channels=0))


def written_class(network: torch.nn.Module) -> type:
    """The class of a network without the host's decorator, which derives a class of the same name from it."""
    return type(network).__mro__[1]


def class_name(network: torch.nn.Module) -> str:
    """The name of a network's class without its module; it may be a class that is defined in a pickle."""
    return type(network).__name__


def student_of(D: Any) -> Any:
    """The D of a network file, None included; of the pair that NICKEL trains (`networks.dual`), the student's."""
    return D.student if class_name(D) == 'DualDiscriminator' else D


def module_source(cls: Any) -> str:
    """The source code, as pickles contain it, of the module that one of the host's persistent classes is in."""
    return cls._orig_module_src


def init_arguments(network: Any) -> tuple[tuple, dict[str, Any]]:
    """The constructor arguments of an instance of one of the host's persistent classes: the objects, not copies."""
    return network._init_args, network._init_kwargs


def is_placeholder(D: torch.nn.Module) -> bool:
    """Whether this is the discriminator of a pickle that has none, see `training_loops.snapshots`."""
    given = init_arguments(D)[1]
    return all(given.get(name) == value for name, value in PLACEHOLDER.items())


def bound_arguments(network: torch.nn.Module, defaults: bool = False) -> dict[str, Any]:
    """The constructor arguments of a network by name, positional ones included; a copy.

    Args:
        network: an instance of one of the host's persistent classes.
        defaults: whether to include arguments that were not given, with their defaults.
    """
    args, kwargs = copy.deepcopy(init_arguments(network))
    bound = inspect.signature(written_class(network)).bind(*args, **kwargs)
    if defaults:
        bound.apply_defaults()
    return dict(bound.arguments)


def generator_arguments(G: torch.nn.Module, defaults: bool = True) -> dict:
    """The constructor arguments of a generator that the host's `Generator` takes, too.

    Args:
        G: an instance of a class that extends the host's.
        defaults: whether to include arguments that were not given, with their defaults.
    """
    shared = inspect.signature(Generator.__mro__[1]).parameters
    return {name: value for name, value in bound_arguments(G, defaults).items() if name in shared}


def constructor_arguments(network: torch.nn.Module) -> dnnlib.EasyDict:
    """Class name and arguments that construct a network like this one, without those that depend on the dataset."""
    written = written_class(network)
    kwargs = dnnlib.EasyDict(copy.deepcopy(init_arguments(network)[1]))
    kwargs.class_name = f'{written.__module__}.{written.__qualname__}'  # Last: arguments may come from a file.
    for name in ('c_dim', 'img_resolution', 'img_channels'):
        kwargs.pop(name, None)
    return kwargs


def has_shapes(network: torch.nn.Module, kwargs: Mapping[str, Any], training_set_kwargs: dict) -> bool:
    """Whether the tensors of a network fit into one that a training loop constructs, as far as they have equal names.

    Args:
        network: whose weights are to be copied.
        kwargs: class name and arguments of the network to be constructed, without those that depend on the dataset.
        training_set_kwargs: class name and constructor arguments of the dataset.
    """
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    other = dnnlib.util.construct_class_by_name(
        **kwargs,
        c_dim=training_set.label_dim,
        img_resolution=training_set.resolution,
        img_channels=training_set.num_channels,
    )
    shapes = {name: tensor.shape for name, tensor in misc.named_params_and_buffers(network)}
    return all(tensor.shape == shapes[name] for name, tensor in misc.named_params_and_buffers(other) if name in shapes)


def check_batch(args: dnnlib.EasyDict, uses_D: bool) -> None:
    """Check that GPUs can share the batch, and the discriminator's minibatch standard deviation layer can group it.

    Args:
        args: keyword arguments of a training loop.
        uses_D: whether images pass through the discriminator.

    Raises:
        UserError: it cannot.
    """
    if args.batch_size % (args.batch_gpu * args.num_gpus):
        raise UserError(
            f'A batch of {args.batch_size} is no multiple of {args.batch_gpu} images on each of {args.num_gpus} GPUs: '
            'choose --batch so that they can share it.'
        )
    pair = [args.D_kwargs[name] for name in ('student_kwargs', 'teacher_kwargs') if args.D_kwargs.get(name)]
    for D_kwargs in (pair or [args.D_kwargs]) if uses_D else []:
        epilogue_kwargs = D_kwargs.get('epilogue_kwargs', {})
        group_size, batch_gpu = epilogue_kwargs.get('mbstd_group_size', 4), args.batch_gpu
        if not epilogue_kwargs.get('mbstd_num_channels', 1) or group_size is None:
            continue
        if batch_gpu % min(group_size, batch_gpu):
            raise UserError(
                f'--batch={args.batch_size} means {batch_gpu} images on a GPU at a time, which D compares in groups of '
                f'{group_size}: choose --batch or --batch-gpu so that it is at most {group_size} or a multiple of it.'
            )


def check_size_of_images(args: dnnlib.EasyDict) -> None:
    """Check that images are large enough for the host's discriminator and augmentations.

    Args:
        args: keyword arguments of a training loop.

    Raises:
        UserError: they are not.
    """
    resolution = args.training_set_kwargs['resolution']
    if resolution < 8:
        raise UserError(f"The host's discriminator looks at images of 8 pixels or more, and these have {resolution}.")
    if args.get('augment_kwargs', {}).get('imgfilter') and resolution <= FILTER_PADDING:
        raise UserError(
            f'Filters are for images of 32 pixels or more, and these have {resolution}: choose another --augpipe, such '
            'as bgc.'
        )


def check_path_lengths(args: dnnlib.EasyDict) -> None:
    """Check that the host's loss, which regularises the path lengths of half of the images, has two at a time.

    Args:
        args: keyword arguments of a training loop with `StyleGAN2Loss`.

    Raises:
        UserError: it has one, and would stop at the first step.
    """
    used = args.batch_gpu // args.loss_kwargs.get('pl_batch_shrink', 2)
    if args.loss_kwargs.get('pl_weight', 2) and used < 1:
        raise UserError(
            f"{args.batch_gpu} image on a GPU at a time is too few for the path lengths of the host's loss: raise "
            '--batch or --batch-gpu, switch them off with --loss-arg pl_weight=0, or take '
            '--loss=stylegan2_compress.AdversarialLoss.'
        )


def require_generator(file: str, data: Mapping[str, Any]) -> None:
    """Check that the contents of a network file have a StyleGAN2 generator as G_ema.

    Raises:
        UserError: they have none.
    """
    if not hasattr(getattr(data['G_ema'], 'synthesis', None), 'block_resolutions'):
        raise UserError(
            f'{file} has no StyleGAN2 generator as G_ema: `stylegan2-compress inspect` shows what it contains.'
        )


def generator_of(file: str, data: Mapping[str, Any]) -> Generator:
    """The G_ema in the contents of a network file.

    Raises:
        UserError: it is no StyleGAN2 generator, or has weights that are not finite.
    """
    require_generator(file, data)
    require_finite(file, data['G_ema'])
    return data['G_ema']


def require_arguments_of_the_host(file: str, G: torch.nn.Module) -> None:
    """Check that the host's `Generator` takes the constructor arguments of a generator whose class a file defines.

    Raises:
        UserError: it does not.
    """
    try:
        Generator(**generator_arguments(G))
    except Exception as error:  # Arguments of an unknown class can be anything.
        raise UserError(
            f'{file} cannot be pruned: its {class_name(G)} is not constructed as the host constructs a generator.'
        ) from error


def require_finite(file: str, network: torch.nn.Module, name: str = 'G_ema') -> None:
    """Check that all weights of a network are finite.

    Args:
        file: where it is from, for the error.
        network: the network.
        name: which of the file's it is, for the error.

    Raises:
        UserError: some are not.
    """
    tensors = [*network.parameters(), *network.buffers()]
    bad = sum(int((~tensor.isfinite()).sum()) for tensor in tensors if tensor.is_floating_point())
    if bad:
        total = sum(tensor.numel() for tensor in tensors)
        raise UserError(
            f'{file} has {bad:,} weights of {total:,} in {name} that are NaN or infinite: its training had diverged; '
            'use an earlier snapshot.'
        )


def require_average_of_w(option: str, file: str, G: Generator, psi: float) -> None:
    """Check that a generator knows the average of w, if its images are to be truncated.

    Args:
        option: the option that gives truncation ψ, for the error.
        file: the generator's file.
        G: the generator.
        psi: truncation ψ; 1 needs no average.

    Raises:
        UserError: it does not.
    """
    if psi != 1 and G.mapping.w_avg_beta is None:
        raise UserError(f'{option}={psi:g}: {file} has no average of w to truncate to.')


def check_against_data(option: str, file: str, G: Generator, training_set_kwargs: Mapping[str, Any]) -> None:
    """Check that a generator makes images and takes labels like those of the training set.

    Args:
        option: the option that names the generator's file, for the error.
        file: the file.
        G: the generator.
        training_set_kwargs: class name and constructor arguments of the training set.

    Raises:
        UserError: it does not.
    """
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    for what, expected, actual, way_out in [
        ('images of resolution', G.img_resolution, training_set.resolution, 'dataset_tool.py resizes'),
        ('channels', G.img_channels, training_set.num_channels, 'convert the images'),
        ('label dimensions', G.c_dim, training_set.label_dim, None),
    ]:
        if expected != actual:
            data = f'--data={training_set_kwargs["path"]}'
            if not hasattr(training_set, '_image_fnames'):
                data, way_out = (
                    f'--teacher={training_set_kwargs["path"]}',
                    'without --data, its images are the real ones',
                )
            way_out = way_out or _way_to_labels(expected, training_set_kwargs)
            raise UserError(f'{option}={file} has {what} {expected}, but {data} has {actual} ({way_out}).')


def _way_to_labels(c_dim: int, training_set_kwargs: Mapping[str, Any]) -> str:
    """What to do about a training set whose labels do not fit a generator: `--cond`, if that helps."""
    if c_dim == 0:
        return '--cond=0 leaves them out'
    if dnnlib.util.construct_class_by_name(**{**training_set_kwargs, 'use_labels': True}).label_dim == c_dim:
        return '--cond=1 uses those that there are'
    return f'use the data it was trained on, or other data with classes 0 to {c_dim - 1}'
