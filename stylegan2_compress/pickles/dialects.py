"""Networks of the host's family that other code wrote, as records of the local classes.

The stylegan3 repository writes StyleGAN2 networks with the host's tensors and another constructor; the public code of
the NICKEL and DiME paper has one more argument. Only the record is translated: nothing in the file is run.
"""

import dataclasses
from typing import Any

from dnnlib import EasyDict
from training import networks

from stylegan2_compress.host.networks import module_source
from stylegan2_compress.pickles import sources
from stylegan2_compress.pickles.contents import Network, Tensor, Unsupported

STYLEGAN3, PAPER = 'stylegan3', 'NICKEL_AND_DIME'  # The repositories.
_DIMENSIONS = ('z_dim', 'c_dim', 'w_dim', 'img_resolution', 'img_channels')
_GENERATOR_PARAMETERS = (*_DIMENSIONS, 'mapping_kwargs', 'synthesis_kwargs')
_DISCRIMINATOR_PARAMETERS = (
    *('c_dim', 'img_resolution', 'img_channels', 'architecture', 'channel_base', 'channel_max', 'num_fp16_res'),
    *('conv_clamp', 'cmap_dim', 'block_kwargs', 'mapping_kwargs', 'epilogue_kwargs'),
)
_OF_THE_PAPERS_CODE = ('pruning_ratio', 'is_teacher', 'kd_res')  # What its classes add to the host's `Generator`.
_PRUNED = {  # Classes of a pruned generator in the paper's code -> ours.
    'Generator': 'PrunedGenerator',
    'SynthesisNetwork': 'PrunedSynthesisNetwork',
    'SynthesisBlock': 'PrunedSynthesisBlock',
}

# The classes of the public repositories whose source code is not the host's, by `sources.digest`. Read and compared:
# with arguments translated they compute what the local ones do.
_KNOWN = {
    # training/networks_stylegan2.py of NVlabs/stylegan3
    '3fcbf4922d01ca2b1d3b89da7b082c0b',  # FullyConnectedLayer
    'ad47e280093250533e4354fdabb3cc96',  # Conv2dLayer
    '59bf35444a3bcf29168cc23f83b40e4e',  # MappingNetwork
    'cad15eeec1c029065d1a7f5806322d5a',  # SynthesisLayer
    '5c954d39040d2624c412c4371e8e123f',  # ToRGBLayer
    'dff2937af51fef21c74c471972bd5262',  # SynthesisBlock
    '517a75c4c779fc5d7abd5b47c8c3f0d9',  # SynthesisNetwork
    '3532409724c14ddef5f7b9561fce0b53',  # Generator
    '9864c6d5463970e6867d104dc49adda3',  # DiscriminatorBlock
    'b7e0404854335b92c0682370059e9e2f',  # MinibatchStdLayer
    'b608125ceefa154d56b87def17c582e5',  # DiscriminatorEpilogue
    '729b3cc0def9a421d98400828ac491d7',  # Discriminator
    # training/networks_*.py of SangyeopYeo/NICKEL_AND_DIME
    '7b36f593c215fca5c61618f001a52ee5',  # SynthesisLayer
    'bb8db65857cfb9c0e54dab61a7591a7c',  # ToRGBLayer
    '47c47f8791f20734bbce05bdf48bfca9',  # SynthesisBlock
    '7ff8cbf68ebbee758159dd905b7394e1',  # SynthesisNetwork of CAGC, CAGC_with_VEM and GS
    '1104d87323b1203ee2deed4b6a7e516f',  # SynthesisNetwork of DD
    '70b8ce220026f9f7f164c545ae6753fe',  # SynthesisNetwork of StyleKD
    'eb028e4ac6fd1ca81357bdda778fdfee',  # SynthesisNetwork of GCC
    'e03f4ba2ac36715f2bbdde5745af12a8',  # Generator
    'e6c06b90c47803eb3784ccdc64ee3867',  # Generator of GCC
    '11ca41d639038e566883bbf2d0a663d6',  # Discriminator of DD
    '22211c495564d9b40529b4db9f55628d',  # Discriminator of GCC
}


class Translator:
    """Translates the records of one file; a record that the file shares stays shared."""

    def __init__(self):
        self._translated: dict[Network, Network] = {}

    def translate(self, network: Network) -> Network:
        """The record as one of the local classes; those of the host and of unknown code are returned as they are.

        Raises:
            Unsupported: it is a StyleGAN3 generator.
        """
        if network not in self._translated:
            self._translated[network] = _translate(network)
        return self._translated[network]


def is_known(record: Network) -> bool:
    """Whether the source code with a record is known to compute what the local class does."""
    name = record.written_as or record.class_name
    if sources.digest(name, record.module_src) in _KNOWN:
        return True
    return record.written_as is not None and not sources.differ(
        name, record.module_src, module_source(networks.Generator)
    )


def is_generator(record: Any) -> bool:
    """Whether a record is a generator as the host's tools call it, of whatever class: mapping and synthesis."""
    return isinstance(record, Network) and None not in (_child(record, 'mapping'), _child(record, 'synthesis'))


def _translate(network: Network) -> Network:
    args, kwargs = network.state.get('_init_args'), network.state.get('_init_kwargs')
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        return network  # Refused where it is constructed.
    synthesis = _child(network, 'synthesis')
    if network.class_name == 'Generator' and synthesis is not None:
        given = {**dict(zip(_GENERATOR_PARAMETERS, args, strict=False)), **kwargs}
        if _child(synthesis, 'input') is not None:
            raise Unsupported(_stylegan3(given))
        if 'pruning_ratio' in given:
            return _generator_of_the_papers_code(network, synthesis, given)
        # The host's synthesis network does not keep the number, and its generator takes no others than its parameters.
        is_other = 'num_fp16_res' in synthesis.state or not given.keys() <= set(_GENERATOR_PARAMETERS)
        if is_other and 'synthesis_kwargs' not in given:
            return _translated(network, STYLEGAN3, _generator_of_stylegan3(given))
    epilogue = _child(network, 'b4')
    if network.class_name == 'Discriminator' and epilogue is not None:
        conv = _child(epilogue, 'conv')
        if conv is not None and 'in_channels' in conv.state:  # The host's does not keep it.
            given = {**dict(zip(_DISCRIMINATOR_PARAMETERS, args, strict=False)), **kwargs}
            return _translated(network, STYLEGAN3, {'num_fp16_res': 4, 'conv_clamp': 256, **given})
    return network


def _stylegan3(given: dict[str, Any]) -> str:
    config = 'stylegan3-r' if given.get('conv_kernel') == 1 else 'stylegan3-t'
    return (
        f'has a StyleGAN3 generator ({config}): its alias-free layers are not those of StyleGAN2, and only StyleGAN2 '
        f'networks are supported'
    )


def _generator_of_stylegan3(given: dict[str, Any]) -> dict[str, Any]:
    """The host's arguments, from those of stylegan3's `networks_stylegan2.Generator` with that class's own defaults.

    `fused_modconv_default` has no counterpart: it says in which order to multiply, not what.
    """
    mapping = given.get('mapping_kwargs', {})
    return {
        **{name: given[name] for name in _DIMENSIONS if name in given},
        'mapping_kwargs': EasyDict({'w_avg_beta': 0.998, **mapping}) if isinstance(mapping, dict) else mapping,
        'synthesis_kwargs': EasyDict(
            {
                'num_fp16_res': 4,
                'conv_clamp': 256,
                **{
                    name: value
                    for name, value in given.items()
                    if name not in (*_DIMENSIONS, 'mapping_kwargs', 'fused_modconv_default')
                },
            }
        ),
    }


def _generator_of_the_papers_code(network: Network, synthesis: Network, given: dict[str, Any]) -> Network:
    """The host's generator for `pruning_ratio` 0, else our pruned one with the widths that the tensors have."""
    arguments = {name: value for name, value in given.items() if name not in _OF_THE_PAPERS_CODE}
    if not given['pruning_ratio']:
        return _translated(network, PAPER, arguments)
    synthesis_kwargs = arguments.get('synthesis_kwargs', {})
    if isinstance(synthesis_kwargs, dict):
        arguments['synthesis_kwargs'] = EasyDict(
            {k: v for k, v in synthesis_kwargs.items() if k not in ('channel_base', 'channel_max')}
        )
    return _translated(network, PAPER, {**arguments, 'channels': _widths(synthesis)}, _PRUNED)


def _widths(synthesis: Network) -> dict[str, int]:
    """The width of every feature map by the name that `PrunedGenerator` has for it."""
    widths = {}
    modules = synthesis.state.get('_modules')
    for name, block in modules.items() if isinstance(modules, dict) else ():
        if isinstance(block, Network):
            conv0, conv1 = _child(block, 'conv0'), _child(block, 'conv1')
            first = (block, 'const') if conv0 is None else (conv0, 'weight')
            widths[f'{name}.{"const" if conv0 is None else "conv0"}'] = _first_size(*first)
            if conv1 is not None:
                widths[f'{name}.conv1'] = _first_size(conv1, 'weight')
    return widths


def _first_size(record: Network, name: str) -> int:
    parameters = record.state.get('_parameters')
    tensor = parameters.get(name) if isinstance(parameters, dict) else None
    return tensor.size[0] if isinstance(tensor, Tensor) and tensor.size else 0


def _translated(
    network: Network, repository: str, arguments: dict[str, Any], renamed: dict[str, str] | None = None
) -> Network:
    """The network with other constructor arguments, all of its modules marked as translated.

    Args:
        network: the record.
        repository: whose code wrote it.
        arguments: what the local class takes.
        renamed: names of classes in the file -> of the local ones; others keep theirs.
    """
    renamed = renamed or {}
    translated: dict[Network, Network] = {}

    def mark(record: Network) -> Network:
        if record not in translated:
            name = record.class_name
            translated[record] = dataclasses.replace(
                record,
                class_name=renamed.get(name, name),
                written_as=name,
                written_by=repository,
                state=dict(record.state),
            )
            todo.append(translated[record])
        return translated[record]

    # Without recursion, and every record once: how deep they are nested and how often shared is the file's affair.
    todo: list[Network] = []
    root = mark(network)
    root.state |= {'_init_args': (), '_init_kwargs': arguments}
    while todo:
        state = todo.pop().state
        if isinstance(state.get('_modules'), dict):
            state['_modules'] = {
                name: mark(child) if isinstance(child, Network) else child for name, child in state['_modules'].items()
            }
    return root


def _child(network: Network, name: str) -> Network | None:
    modules = network.state.get('_modules')
    child = modules.get(name) if isinstance(modules, dict) else None
    return child if isinstance(child, Network) else None
