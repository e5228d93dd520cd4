"""networks.py: how a network is constructed again."""

from stylegan2_compress.host.networks import constructor_arguments


def test_arguments_do_not_say_which_class_is_constructed(make_generator):
    G = make_generator()
    G._init_kwargs['class_name'] = 'torch.hub.load'
    arguments = constructor_arguments(G)
    assert arguments.class_name == 'training.networks.Generator'
    assert arguments.z_dim == 16
