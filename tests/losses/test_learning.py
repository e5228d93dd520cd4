"""Runs that are long enough to learn something: students end nearer to their teacher in what their loss compares."""

from pathlib import Path

import pytest
import torch
from tiny_runs import ADAM, EMBEDDING, compressing, labelled_data, labelled_teacher, loop_arguments, start

from stylegan2_compress import embeddings, pickles
from stylegan2_compress.runs.directory import RunDirectory


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator) -> str:
    return labelled_teacher(tmp_path, make_generator, make_discriminator)


@pytest.fixture
def trained(tmp_path, teacher, make_dataset_zip, small_grids):
    """What becomes of a random student in 150 steps with arguments of the loop: images before, after, the teacher's."""

    def train(**given) -> list[torch.Tensor]:
        data = labelled_data(tmp_path, make_dataset_zip)
        length = dict(total_kimg=2.4, kimg_per_tick=2.4, G_opt_kwargs=ADAM | dict(lr=0.01))
        start(**loop_arguments(tmp_path / 'run', data, labels=True, **length, **given))
        first, *_, last = RunDirectory(tmp_path / 'run').snapshots()
        return [images(path) for path in (first, last, teacher)]

    return train


@torch.no_grad()
def images(path: str | Path) -> torch.Tensor:
    """128 images by the G of a network file, of the same latents for all."""
    rnd = torch.Generator().manual_seed(5)
    z, labels = torch.randn([128, 16], generator=rnd), torch.randint(3, [128], generator=rnd)
    return pickles.load(path)['G'].eval()(z, torch.eye(3)[labels], noise_mode='const')


def test_regression_learns_the_image_of_each_latent(trained, teacher):
    """Nearer than the mean of the teacher's images is to each, and than to those of other latents."""
    loss = dict(class_name='stylegan2_compress.RegressionLoss', teacher=teacher, perceptual_weight=0)
    before, after, teachers = trained(loss_kwargs=loss)

    def distance(x, y):
        return (x - y).abs().mean()

    assert distance(after, teachers) < 0.6 * distance(before, teachers)
    assert distance(after, teachers) < 0.95 * distance(teachers.mean(dim=0), teachers)
    assert distance(after, teachers) < 0.9 * distance(after, teachers.roll(1, dims=0))


def test_dime_brings_the_moments_of_features_together(trained, teacher):
    before, after, teachers = map(embeddings.load(EMBEDDING, 'cpu'), trained(**compressing('moments', teacher)))

    def distance(x, y):
        return sum(((x**order).mean(dim=0) - (y**order).mean(dim=0)).abs().mean() for order in (1, 2))

    assert distance(after, teachers) < distance(before, teachers) / 4
