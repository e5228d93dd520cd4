"""The host's networks from outside: their constructor arguments, and whether they fit a run."""

import inspect

import dnnlib
import torch
from training import networks as host_networks

from stylegan2_compress.errors import UserError


def written_class(network: torch.nn.Module) -> type:
    """The class of a network as it was written: the host's decorator derives a class of the same name from it."""
    return type(network).__mro__[1]


def class_name(network: torch.nn.Module) -> str:
    """The name of a network's class, without its module: of classes that a pickle brought along, too."""
    return type(network).__name__


def bound_arguments(network: torch.nn.Module, defaults: bool = False) -> dict:
    """The constructor arguments of a network by name, positional ones included.

    Args:
        network: an instance of one of the host's persistent classes.
        defaults: whether arguments that were not given are there with their defaults.
    """
    bound = inspect.signature(written_class(network)).bind(*network.init_args, **network.init_kwargs)
    if defaults:
        bound.apply_defaults()
    return dict(bound.arguments)


def generator_arguments(G: torch.nn.Module) -> dict:
    """The constructor arguments of a generator that the host's `Generator` takes, too, defaults included.

    Args:
        G: an instance of a class that extends the host's.
    """
    shared = inspect.signature(host_networks.Generator.__mro__[1]).parameters
    return {name: value for name, value in bound_arguments(G, defaults=True).items() if name in shared}


def constructor_arguments(network: torch.nn.Module) -> dict:
    """Class name and arguments that build a network like this one, without those that the training set decides."""
    written = written_class(network)
    kwargs = dnnlib.EasyDict(class_name=f'{written.__module__}.{written.__qualname__}')
    kwargs.update(network.init_kwargs)
    for name in ('c_dim', 'img_resolution', 'img_channels'):
        kwargs.pop(name, None)
    return kwargs


def check_batch(args: dict) -> None:
    """Refuse a batch that the discriminator's minibatch standard deviation cannot cut into groups."""
    D_kwargs = args.D_kwargs.get('student_kwargs', args.D_kwargs)  # Of a discriminator that NICKEL trained.
    epilogue = D_kwargs.get('epilogue_kwargs', {})
    group = epilogue.get('mbstd_group_size', 4)
    if epilogue.get('mbstd_num_channels', 1) and group is not None and args.batch_gpu % min(group, args.batch_gpu):
        raise UserError(
            f'--batch={args.batch_size} means {args.batch_gpu} images on a GPU at a time, and D compares '
            f'them in groups of {group}: choose --batch or --batch-gpu so that it is a multiple of {group}, or less.'
        )


def require_generator(file: str, data: dict) -> None:
    """Refuse the contents of a network file without a StyleGAN2 generator as G_ema."""
    if not hasattr(getattr(data['G_ema'], 'synthesis', None), 'block_resolutions'):
        raise UserError(f'{file} has no StyleGAN2 generator as G_ema: `stylegan2-compress inspect` shows what it has.')


def check_against_data(option: str, name: str, G, training_set_kwargs: dict) -> None:
    """Refuse a generator that makes other images than the training set holds."""
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    for what, mine, theirs, way_out in [
        ('images of resolution', G.img_resolution, training_set.resolution, 'dataset_tool.py resizes'),
        ('channels', G.img_channels, training_set.num_channels, 'convert the images'),
        ('label dimensions', G.c_dim, training_set.label_dim, '--cond=1 turns labels on, --cond=0 off'),
    ]:
        if mine != theirs:
            data = training_set_kwargs['path']
            raise UserError(f'{option}={name} has {what} {mine}, but --data={data} has {theirs} ({way_out}).')
