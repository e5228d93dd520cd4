"""What TensorBoard reads back from the event files that a run wrote."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch
from torch_utils import training_stats

from stylegan2_compress.training_loops.tensorboard import TensorBoard


def read(run_dir):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(run_dir))
    return events.Reload()


def scalars(run_dir, name):
    return [(event.step, pytest.approx(event.value)) for event in read(run_dir).Scalars(name)]


@pytest.fixture
def opened(tmp_path):
    pytest.importorskip('tensorboard')
    return lambda *where: TensorBoard.open(str(tmp_path), *where)


def test_statistics_have_the_hosts_names_and_images_seen_as_steps(opened, tmp_path):
    collector = training_stats.Collector(regex='tb_test/.*')
    board = opened()
    for cur_nimg, values in [(64, [1.0, 2.0]), (128, [5.0])]:
        training_stats.report('tb_test/loss', torch.tensor(values))
        collector.update()
        board.scalars(collector.as_dict(), cur_nimg)
    board.metrics({'fid50k_full': 7.5}, 128)
    board.close(failed=False)
    assert scalars(tmp_path, 'tb_test/loss') == [(64, 1.5), (128, 5.0)]
    assert scalars(tmp_path, 'Metrics/fid50k_full') == [(128, 7.5)]


@pytest.mark.parametrize('state', [0, 200], ids=['before the first state', 'at a state'])
def test_a_continued_run_leaves_no_point_twice(opened, tmp_path, state):
    def train(cur_nimg, end, factor):
        board = opened(cur_nimg)
        for nimg in range(cur_nimg + 100, end + 1, 100):
            board.scalars({'Loss/G/loss': {'num': 1, 'mean': factor * nimg, 'std': 0.0}}, nimg)
        board.close(failed=False)

    train(0, 400, 1)
    train(state, 500, 10)  # What came after the state is computed again.
    expected = [(nimg, nimg if nimg <= state else 10 * nimg) for nimg in (100, 200, 300, 400, 500)]
    assert scalars(tmp_path, 'Loss/G/loss') == expected


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_grids_are_stored_no_larger_than_a_screen(opened, tmp_path, mode):
    grid = PIL.Image.fromarray(np.full([600, 2048, 3], 77, np.uint8)).convert(mode)
    grid.save(tmp_path / 'fakes.png')
    board = opened()
    board.image('Images/fakes', str(tmp_path / 'fakes.png'), 64)
    board.close(failed=False)
    (image,) = read(tmp_path).Images('Images/fakes')
    assert (image.step, image.width, image.height) == (64, 1024, 300)


def test_without_tensorboard_there_is_no_writer(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    assert TensorBoard.open(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
