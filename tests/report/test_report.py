"""The report: what is read from run directories of all kinds, and that the page shows it, and nothing but it."""

import hashlib
import html
import html.parser
import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from commands import refused

from stylegan2_compress import errors, pickles, report
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import profiling
from stylegan2_compress.host.teachers import TEACHERS
from stylegan2_compress.report import charts, generators, page, reading
from stylegan2_compress.report.page import flatten, short_names, short_paths
from stylegan2_compress.report.reading import Point
from stylegan2_compress.runs import launch
from stylegan2_compress.runs.directory import RunDirectory

# --- Runs to report on ------------------------------------------------------------------------------------------------

LOG = 'Loading training set...\nTraining for 10 kimg...\n\ntick 0     kimg 0.1\ntick 1     kimg 4.1\n'
TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    1 / 0\n'


def tick(kimg, timestamp=None, **values):
    """A line of stats.jsonl."""
    values = {'Progress/kimg': kimg, **{name.replace('__', '/'): value for name, value in values.items()}}
    record = {name: {'num': 1, 'mean': value, 'std': 0.0} for name, value in values.items()}
    return json.dumps({**record, 'timestamp': time.time() if timestamp is None else timestamp}) + '\n'


@pytest.fixture
def make_run(tmp_path):
    """Writes a run directory: `make_run('name', options={…}, stats=[line, …], log='…', metrics={name: [line, …]})`."""

    def build(name='00000-run', options=None, stats=(), log=None, metrics=None):
        run_dir = tmp_path / name
        run_dir.mkdir()
        if options is not None:
            (run_dir / 'training_options.json').write_text(json.dumps(options))
        if stats:
            (run_dir / 'stats.jsonl').write_text(''.join(stats))
        if log is not None:
            (run_dir / 'log.txt').write_text(log)
        for metric, lines in (metrics or {}).items():
            (run_dir / f'metric-{metric}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        return run_dir

    return build


class Parsed(html.parser.HTMLParser):
    """A page taken apart: its tags, the text outside scripts and styles, and the data for its script."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding='utf-8')
        self.tags, self.text, self.data, self.inside = [], '', None, None
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = (tag, dict(attrs)) if tag in ('script', 'style') else self.inside

    def handle_endtag(self, tag):
        self.inside = None if tag in ('script', 'style') else self.inside

    def handle_data(self, data):
        if self.inside is None:
            self.text += data + ' '
        elif self.inside[1].get('id') == 'chart-data':
            self.data = json.loads(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def lines(self):
        """The drawn curves: {(title of the chart, label of the line): points}."""
        titles = map(html.unescape, re.findall('<strong>(.*?)</strong>', self.source))
        return {
            (title, line['label']): line['points']
            for title, chart in zip(titles, self.data['charts'], strict=True)
            for line in chart['lines']
        }


def write(*run_dirs, out=None, **options):
    options.setdefault('snapshots', 0)
    return Parsed(report.write(run_dirs, None if out is None else str(out), **options))


# --- What is read -----------------------------------------------------------------------------------------------------


def test_curves_have_the_numbers_of_the_files(make_run):
    stats = [tick(0.016, Loss__G__loss=1.25, Loss__r1_penalty=0.5), tick(4.0, Loss__G__loss=0.1 + 0.2)]
    metrics = {
        'fid50k_full': [
            {'results': {'fid50k_full': 31.0}, 'metric': 'fid50k_full', 'snapshot_pkl': 'network-snapshot-000000.pkl'},
            {'results': {'fid50k_full': 9.5}, 'metric': 'fid50k_full', 'snapshot_pkl': 'network-snapshot-000004.pkl'},
            {'results': {'fid50k_full': 9.25}, 'metric': 'fid50k_full', 'snapshot_pkl': 'network-snapshot-000004.pkl'},
        ],
        'pr50k3_full': [
            {'results': {'pr50k3_full_precision': 0.5, 'pr50k3_full_recall': 0.0}, 'metric': 'pr50k3_full',
             'snapshot_pkl': 'network-snapshot-000004.pkl'},
        ],
    }  # fmt: skip
    lines = write(make_run(stats=stats, metrics=metrics)).lines()
    assert lines == {
        ('fid50k_full', ''): [[0, 31.0], [4, 9.25]],  # Measured again: the last counts. One number is no curve.
        ('Generator loss', ''): [[0.016, 1.25], [4.0, 0.1 + 0.2]],
        ('R1 penalty', ''): [[0.016, 0.5]],
    }


def test_both_discriminators_and_every_embedding_are_drawn(make_run):
    names = ['scores__real', 'scores__fake', 'scores__real__teacher', 'scores__fake__teacher', 'r1_penalty']
    names += ['r1_penalty__teacher', 'DiME__dino_resnet50', 'DiME__clip_rn50', 'NICKEL__features', 'Mine__term']
    names += ['DiME__weight__clip_rn50', 'DiME__spread__clip_rn50']
    values = {f'Loss__{name}': float(i + 1) for i, name in enumerate(names)}
    lines = write(make_run(stats=[tick(1.0, **values)])).lines()
    assert {key: points[0][1] for key, points in lines.items()} == {
        ('Scores of the discriminator', 'real images'): 1,
        ('Scores of the discriminator', 'generated images'): 2,
        ('Scores of the teacher’s discriminator', 'real images'): 3,
        ('Scores of the teacher’s discriminator', 'generated images'): 4,
        ('R1 penalty', 'student’s discriminator'): 5,
        ('R1 penalty', 'teacher’s discriminator'): 6,
        ('DiME distance: dino_resnet50', ''): 7,
        ('DiME distance: clip_rn50', ''): 8,
        ('NICKEL feature distance', ''): 9,
        ('Loss/Mine/term', ''): 10,
        ('DiME weight: clip_rn50', ''): 11,
        ('Spread: clip_rn50', ''): 12,
    }


@pytest.mark.parametrize(
    ('generator', 'loss', 'is_search'),
    [
        ('PrunedGenerator', 'RegressionLoss+MomentMatchingLoss', False),
        ('PrunedGenerator', 'MomentMatchingLoss', False),
        ('ScoreMaskedGenerator', 'MomentMatchingLoss', True),
        ('ScoreMaskedGenerator', 'DistanceLoss', True),
    ],
)
def test_what_is_trained_is_said(make_run, generator, loss, is_search):
    G_kwargs, loss_kwargs = (dict(class_name=f'stylegan2_compress.{name}') for name in (generator, loss))
    page = write(make_run(options=dict(G_kwargs=G_kwargs, loss_kwargs=loss_kwargs | dict(teacher='a.pkl'))))
    assert ('A lottery ticket is searched for' in page.text) == is_search
    assert ('the student, is trained' in page.text) == (not is_search)


def test_half_a_line_at_the_end_is_being_written(make_run):
    whole = tick(1.0, Loss__G__loss=1.0)
    page = write(make_run(stats=[whole, tick(2.0, Loss__G__loss=2.0)[:-20]]))
    assert page.lines() == {('Generator loss', ''): [[1.0, 1.0]]}
    assert 'cannot be read' not in page.text
    page = write(make_run('broken', stats=[whole, '{"Progress/kimg": \n', '[1]\n', tick(2.0, Loss__G__loss=2.0)]))
    assert page.lines() == {('Generator loss', ''): [[1.0, 1.0], [2.0, 2.0]]}
    assert '2 of the lines of stats.jsonl cannot be read' in page.text


def test_a_run_that_went_on_from_an_earlier_state_has_one_curve(make_run):
    stats = [tick(k, Loss__G__loss=v) for k, v in [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (2.0, 20.0), (3.0, 30.0)]]
    assert write(make_run(stats=stats)).lines() == {('Generator loss', ''): [[1.0, 1.0], [2.0, 20.0], [3.0, 30.0]]}


def test_values_that_are_no_numbers_are_left_out(make_run):
    odd = [float('nan'), float('inf'), None, 'x', True, 1e300, [], {}]
    stats = [tick(i + 1.0, Loss__G__loss=value) for i, value in enumerate([0.5, *odd, 0.25])]
    stats += ['{"Progress/kimg": 7}\n', '{"Progress/kimg": {"mean": "x"}}\n', '[' * 10000 + '\n']
    assert write(make_run(stats=stats)).lines() == {('Generator loss', ''): [[1.0, 0.5], [10.0, 0.25]]}


@pytest.mark.parametrize(
    ('log', 'kimg', 'ago', 'word', 'words'),
    [
        (LOG, 4.1, 10, 'running', 'at 4.1 of 10 kimg'),
        (LOG, 4.1, 50000, 'stopped', 'nothing was written for 13 h 53 min'),
        (LOG + '\nExiting...\n', 10.0, 50000, 'finished', 'at 10 of 10 kimg'),
        (LOG + '\nAborting...\n\nExiting...\n', 4.1, 10, 'stopped', 'at 4.1 of 10 kimg'),
        (LOG + TRACEBACK + 'ZeroDivisionError: division by zero\n', 4.1, 10, 'crashed', 'at 4.1 of 10 kimg'),
        (LOG + '\nStopped at 4.1 kimg, with everything saved.\n', 4.1, 10, 'stopped', 'with everything saved'),
        (LOG + TRACEBACK + 'KeyboardInterrupt\n', 4.1, 10, 'stopped', 'Ctrl-C'),
        (LOG + 'Error: The loss was not finite.\n', 4.1, 10, 'crashed', 'at 4.1 of 10 kimg'),
        # A traceback that the run outlived: the host prints one where a CUDA plugin cannot be compiled.
        (TRACEBACK + 'RuntimeError: no ninja\n' + LOG, 4.1, 10, 'running', 'at 4.1 of 10 kimg'),
        (None, 4.1, 10, 'running', 'at 4.1 of 10 kimg'),
    ],
)
def test_state(make_run, log, kimg, ago, word, words):
    run_dir = make_run(options={'total_kimg': 10}, stats=[tick(kimg, timestamp=time.time() - ago)], log=log)
    if log is not None:
        os.utime(run_dir / 'log.txt', (time.time() - ago,) * 2)
    state = reading.read(run_dir).state
    assert state.word == word
    assert words in state.sentence


def test_a_run_that_has_just_been_continued_is_alive(make_run):
    assert reading.read(make_run(stats=[tick(1.0, timestamp=0)], log=LOG)).state.word == 'running'


@pytest.mark.parametrize(
    ('ticks', 'left'),
    [([(1, 60)], '9 min'), ([(1, 60), (2, 100)], '8 min'), ([(1, 60), (2, 100), (4, 300)], '10 min')],
    ids=['first', 'second', 'with a snapshot in between'],
)
def test_the_time_that_is_left_counts_what_is_between_ticks(make_run, ticks, left):
    stats = [tick(kimg, Timing__total_sec=seconds, Timing__sec_per_kimg=60) for kimg, seconds in ticks]
    state = reading.read(make_run(options={'total_kimg': 10}, stats=stats, log=LOG)).state
    assert state.sentence.endswith(f'about {left} left.')


def test_a_crash_shows_its_last_error_line(make_run):
    first = TRACEBACK + 'KeyError: 1\n\nDuring handling of the above exception, another exception occurred:\n\n'
    log = LOG + 'bar 1%\rbar 2%\n' + first + TRACEBACK + '\x1b[31mRuntimeError: <b>out of memory</b>\n  in two lines\n'
    page = write(make_run(log=log))
    assert 'RuntimeError: <b>out of memory</b>' in page.text
    assert 'KeyError' not in page.text
    assert 'b' not in [tag for tag, _ in page.tags]


def test_a_long_tick_is_no_sign_of_death(make_run):
    slow = {'Timing__sec_per_tick': 4000.0, 'Timing__maintenance_sec': 2000.0}
    run_dir = make_run(stats=[tick(1.0, timestamp=time.time() - 10000, **slow)], log=LOG)
    os.utime(run_dir / 'log.txt', (time.time() - 10000,) * 2)
    assert reading.read(run_dir).state.word == 'running'


def test_almost_empty_directories_are_runs(make_run, tmp_path):
    page = write(make_run('only-log', log='Loading training set...\n'))
    assert 'no complete line yet' in page.text
    assert 'before its first tick' in page.text
    page = write(make_run('only-options', options={'total_kimg': 3, 'batch_size': 8}))
    assert 'batch_size 8' in re.sub(r'\s+', ' ', page.text)
    page = write(make_run('broken-options', stats=[tick(1.0)]))
    assert 'no training_options.json' in page.text
    for text in ['[' * 100000, '{"a": ' * 900 + '1' + '}' * 900, '{"a": 1', '[]', '']:
        (tmp_path / 'broken-options' / 'training_options.json').write_text(text)
        assert 'training_options.json cannot be read' in write(tmp_path / 'broken-options').text


def test_what_is_no_run_is_refused_before_anything_is_written(make_run, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').write_text('')
    run_dir = make_run('outdir')
    (run_dir / '00003-x').mkdir()
    (run_dir / '00003-x' / 'log.txt').write_text('')
    (make_run('broken') / 'training_options.json').write_text('{')
    for path, words in [
        ('absent', 'there is no such directory'),
        ('file', 'it is a file'),
        ('empty', 'no readable training_options.json'),
        ('broken', 'no readable training_options.json'),
        ('outdir', 'such as'),
    ]:
        message = refused('report', '--snapshots', 0, tmp_path / path, unchanged=tmp_path)
        assert str(tmp_path / path) in message
        assert words in message


# --- What is drawn ----------------------------------------------------------------------------------------------------


def test_long_curves_are_averaged_by_weight():
    points = [Point(float(i), float(i % 7), 1 + i % 3) for i in range(5003)]
    thin = charts.thin(points)
    assert len(thin) == charts.MOST_POINTS
    assert thin[-1].kimg == points[-1].kimg
    assert sum(p.count for p in thin) == sum(p.count for p in points)
    mean = sum(p.value * p.count for p in points) / sum(p.count for p in points)
    assert sum(p.value * p.count for p in thin) / sum(p.count for p in thin) == pytest.approx(mean)
    assert charts.thin(points[:400]) == points[:400]


RANGES = [(0, 1), (-3, 8.5), (1e-30, 1e30), (1e6, 1e6 + 1), (0.0289, 0.0291), (-2e38, 2e38), (5, 5), (0, 0), (1.7, 2.9)]
RANGES += [(1e-3, 1e2), (0.9, 110), (1e-9, 1e-2), (2, 70), (1.2e-4, 30), (0.02, 0.7)]


@pytest.mark.parametrize(('low', 'high'), RANGES)
def test_axes_hold_all_points_and_have_readable_ticks(low, high):
    chart = charts.Chart('', '', [charts.Line('', '', 0, 0, [Point(0.0, low), Point(7.0, high), Point(7.5, low)])])
    across, up = charts.axes(chart)
    for axis, values in [(across, [0, 7, 7.5]), (up, [low, high])]:
        ticks = axis.ticks()
        assert 3 <= len(ticks) <= 13
        assert len({text for _value, text in ticks}) == len(ticks)
        for value in values + [value for value, _text in ticks]:
            place = axis.place(value)
            assert min(axis.start, axis.end) - 1e-6 <= place <= max(axis.start, axis.end) + 1e-6
    assert up.place(high) <= up.place(low)


def test_tick_values_are_round():
    axis = charts.Axis(0, 23.99, 0, 100)
    assert axis.ticks() == [(0, '0'), (5, '5'), (10, '10'), (15, '15'), (20, '20')]
    halves = [text for _value, text in charts.Axis(0, 17, 0, 1).ticks()]
    assert halves == ['0.0', '2.5', '5.0', '7.5', '10.0', '12.5', '15.0']
    assert [text for _value, text in charts.Axis(-0.31, 0.42, 0, 1).ticks()] == ['−0.2', '0.0', '0.2', '0.4']
    assert [text for _value, text in charts.Axis(0.5, 2000, 0, 1, logarithmic=True).ticks()] == [
        '1',
        '10',
        '100',
        '1,000',
    ]


def test_runs_are_laid_over_each_other(make_run):
    first = make_run('00000-mnist-DiMELoss', options={'total_kimg': 5, 'a': {'b': 1}, 'run_dir': 'x'},
                     stats=[tick(1.0, Loss__scores__real=1.0, Loss__scores__fake=2.0)])  # fmt: skip
    second = make_run('00001-mnist-NICKELLoss', options={'total_kimg': 5, 'a': {'b': 2}, 'run_dir': 'y'},
                      stats=[tick(1.0, Loss__scores__real=3.0)])  # fmt: skip
    page = write(first, second, first, out=first / 'both.html')  # Naming one twice changes nothing.
    assert {label for _title, label in page.lines()} == {
        '00000-DiMELoss, real images', '00000-DiMELoss, generated images', '00001-NICKELLoss, real images',
    }  # fmt: skip
    colors = {line['label']: line['color'] for line in page.data['charts'][0]['lines']}
    assert colors['00000-DiMELoss, real images'] == colors['00000-DiMELoss, generated images']
    assert colors['00000-DiMELoss, real images'] != colors['00001-NICKELLoss, real images']
    words = re.sub(r'\s+', ' ', page.text)
    assert 'The runs differ in these options: Option 00000-DiMELoss 00001-NICKELLoss a.b 1 2 ' in words
    assert [attrs.get('class') for attrs in page.all('tr')].count('differs') == 1
    assert 'run_dir' not in words


def test_chosen_options_stand_before_what_follows_from_them(make_run):
    first = make_run('00000-a', options={'total_kimg': 5, 'lr': 0.1})
    second = make_run('00001-b', options={'total_kimg': 6, 'lr': 0.1})
    RunDirectory(first).write_inputs({'directory': '/', 'option.--kimg': '5', 'option.--ratio': '0.8'})
    words = re.sub(r'\s+', ' ', write(first).text)
    assert 'Chosen; everything else follows from these: Option Value --kimg 5 --ratio 0.8 All 2 arguments' in words
    RunDirectory(second).write_inputs({'option.--kimg': '6'})
    page = write(first, second, out=first / 'both.html')
    words = re.sub(r'\s+', ' ', page.text)
    assert 'follow' in words
    assert 'Option 00000-a 00001-b --kimg 5 6 --ratio 0.8 – All 2 arguments' in words
    assert [attrs.get('class') for attrs in page.all('tr')].count('differs') == 3


def test_a_curve_without_a_name_says_where_its_number_is_from(make_run):
    page = write(make_run(stats=[tick(1.0, Loss__G__loss=0.25), tick(2.5, Loss__G__loss=0.5)]))
    assert re.search(r'Losses.*at 2.5 kimg\s+0.5\s', page.text, re.DOTALL)


def test_names_in_short():
    assert short_names(['00000-a-b', '00001-a-c']) == ['00000-b', '00001-c']
    assert short_names(['00000-a']) == ['00000-a']
    assert short_names(['a', 'a']) == ['1: a', '2: a']
    assert short_names(['a', 'a-b']) == ['1: a', '2: a-b']


def test_metrics_in_the_table_are_the_newest_and_the_best(make_run):
    def line(kimg, **results):
        return {'results': results, 'snapshot_pkl': f'network-snapshot-{kimg:06d}.pkl'}

    metrics = {
        'fid': [line(1, fid50k=9.0), line(2, fid50k=7.0), line(3, fid50k=8.0)],
        'pr': [line(1, pr50k3_recall=0.25), line(3, pr50k3_recall=0.125)],
        'kid': [line(1, kid50k=0.5), line(4, kid50k=0.25)],
    }
    words = re.sub(r'\s+', ' ', write(make_run(metrics=metrics)).text)
    assert 'Generator – – 8 at 3 kimg; best 7 at 2 0.25 at 4 kimg 0.125 at 3 kimg; best 0.25 at 1' in words


def test_what_was_measured_of_the_start_is_in_the_table_and_the_curve(make_run):
    """As `quickstart` does, and `evaluate RUN/student.pkl`."""
    metrics = {
        'fid': [
            {'results': {'fid5k': 90.0}, 'snapshot_pkl': 'student.pkl'},
            {'results': {'fid5k': 8.0}, 'snapshot_pkl': 'network-snapshot-000006.pkl'},
        ]
    }
    page = write(make_run(metrics=metrics))
    assert page.lines() == {('fid5k', ''): [[0, 90.0], [6, 8.0]]}
    assert 'Before training – – 90 Generator – – 8 at 6 kimg' in re.sub(r'\s+', ' ', page.text)


def test_a_curve_has_results_of_one_setting(make_run):
    """What `evaluate` measures with other data does not replace a point; further seeds are averaged."""

    def line(kimg, fid, **more):
        return {'results': {'fid5k': fid}, 'snapshot_pkl': f'network-snapshot-{kimg:06d}.pkl', **more}

    other = [line(6, 99.0, seed=0, data='other.zip')]
    start = [{'results': {'fid5k': 90.0}, 'snapshot_pkl': 'student.pkl', 'seed': 0, 'data': 'data.zip'}]
    own = [line(3, 9.0), line(6, 8.0)]  # As training leaves them.
    options = {'training_set_kwargs': {'path': 'data.zip'}}
    page = write(make_run('trained', options, metrics={'fid': own + start + other}))
    assert page.lines() == {('fid5k', ''): [[0, 90.0], [3, 9.0], [6, 8.0]]}
    seeds = [line(6, 6.0, seed=0, data='data.zip'), line(6, 7.0, seed=1, data='data.zip')]
    page = write(make_run('repeated', options, metrics={'fid': own + seeds + other}))
    assert page.lines() == {('fid5k', ''): [[3, 9.0], [6, 6.5]]}
    run = reading.read(make_run('measured', options, metrics={'fid': seeds + other}))
    assert run.metrics == {'fid5k': [reading.Point(6, 99.0)]}  # Of as many snapshots, the newest.


def test_results_of_a_snapshot_that_was_replaced_are_on_no_curve(make_run, capsys):
    def line(kimg, fid, **more):
        return {'results': {'fid5k': fid}, 'snapshot_pkl': f'network-snapshot-{kimg:06d}.pkl', **more}

    run_dir = make_run(metrics={'fid': [line(3, 9.0), line(6, 2.0, seed=0, sha256='0' * 64), line(6, 8.0)]})
    (run_dir / 'network-snapshot-000006.pkl').write_bytes(b'another run')
    assert reading.read(run_dir).metrics == {'fid5k': [reading.Point(3, 9.0), reading.Point(6, 8.0)]}
    assert '000006.pkl: 1 result is of another file that had this name, and left out.' in capsys.readouterr().err


def test_the_spread_of_a_score_has_no_best(make_run):
    lines = [
        {'results': {'is5k_mean': mean, 'is5k_std': std}, 'snapshot_pkl': f'network-snapshot-{kimg:06d}.pkl'}
        for kimg, mean, std in [(3, 7.0, 0.1), (6, 6.0, 0.4)]
    ]
    words = re.sub(r'\s+', ' ', write(make_run(metrics={'is': lines})).text)
    assert 'Generator – – 6 at 6 kimg; best 7 at 3 0.4 at 6 kimg' in words
    assert words.count('; best ') == 1


def test_nested_options_by_dotted_names():
    options = {'a': {'b': {'c': 1.5, 'd': {}}}, 'e': [1, 'x'], 'f': None, 'g': 'text'}
    assert flatten(options) == {'a.b.c': '1.5', 'a.b.d': '{}', 'e': '[1, "x"]', 'f': 'null', 'g': 'text'}


# --- The page ---------------------------------------------------------------------------------------------------------

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)>"\'&amp;\u202e\x07'


@pytest.fixture
def hostile_run(make_run):
    name = '<img src=x onerror=alert(0)>\'"&'
    options = {'loss_kwargs': {'class_name': HOSTILE, 'teacher': 'https://evil.example/' + HOSTILE}, HOSTILE: HOSTILE}
    stats = tick(1.0, **{'Loss__DiME__' + HOSTILE.replace('/', ''): 1.0}) + tick(2.0, Loss__G__loss=1.0)
    metric = {'results': {HOSTILE: 1.0}, 'snapshot_pkl': 'network-snapshot-000001.pkl'}
    return make_run(name, options, [stats], LOG + TRACEBACK + f'Error: {HOSTILE}\n', {'fid': [metric]})


def test_nothing_in_the_files_becomes_markup(hostile_run):
    page = write(hostile_run)
    assert [attrs.get('type') for attrs in page.all('script')] == ['application/json', None]  # Ours, both.
    assert page.all('img') == []
    assert all(not name.startswith('on') for _tag, attrs in page.tags for name in attrs)
    assert '<img src=x onerror=alert(0)>' in page.text  # The name, as text.
    assert not re.search('[\u202e\x07]', page.source)
    assert any('onerror=alert(2)' in title for title, _label in page.lines())


def test_names_do_not_end_the_script_that_holds_them(make_run, tmp_path):
    stats = [tick(1.0, Loss__G__loss=1.0)]
    page = write(make_run('<!--<script>', stats=stats), make_run('other', stats=stats), out=tmp_path)
    assert len(page.lines()) == 2
    assert re.search('id="chart-data">[^<]*</script>', page.source)


def test_the_page_asks_for_nothing_and_could_not(make_run):
    options = {'loss_kwargs': {'teacher': 'https://example.com/teacher.pkl'}}
    page = write(make_run(options=options, stats=[tick(1.0, Loss__G__loss=1.0)]))
    for tag, attrs in page.tags:
        for name in ('src', 'href', 'srcset', 'data', 'action', 'poster', 'xlink:href'):
            assert re.match(r'data:|#|$', attrs.get(name, '')), (tag, attrs)
    style = re.search('<style>(.*?)</style>', page.source, re.DOTALL)[1]
    assert not re.search(r'url\(|@import', style)
    (policy,) = [attrs['content'] for attrs in page.all('meta') if 'http-equiv' in attrs]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert 'unsafe' not in policy


def test_pictures_can_be_heard(make_run):
    page = write(make_run(stats=[tick(0.5, Loss__G__loss=1.5), tick(2.0, Loss__G__loss=0.25)]))
    charts_ = [attrs for attrs in page.all('svg') if attrs.get('role') == 'img']
    assert len(charts_) == len(page.all('title')) - 1 == 1
    assert 'Generator loss: from 1.5 at 0.5 kimg to 0.25 at 2 kimg.' in page.text
    assert page.all('html') == [{'lang': 'en'}]


def test_where_it_is_written(make_run, tmp_path, monkeypatch):
    run_dir, other = make_run('00000-a', log=''), make_run('00001-b', log='')
    monkeypatch.chdir(tmp_path)
    assert report.write([run_dir], snapshots=0) == run_dir / 'report.html'
    assert report.write([run_dir], snapshots=0) == run_dir / 'report.html'  # An earlier one is replaced.
    assert report.write([run_dir, other], snapshots=0).resolve() == tmp_path / 'report.html'
    assert report.write([run_dir], out='new/place', snapshots=0).resolve() == tmp_path / 'new/place/report.html'
    assert report.write([run_dir], out='new/name.html', snapshots=0).resolve() == tmp_path / 'new/name.html'
    for mine in ('<p>My page.</p>', '<!doctype html><p>To see a run: stylegan2-compress report runs/00000-a'):
        (tmp_path / 'mine.html').write_text(mine)
        with pytest.raises(UserError, match='is not a report'):
            report.write([run_dir], out=str(tmp_path / 'mine.html'), snapshots=0)
        assert (tmp_path / 'mine.html').read_text() == mine
    with pytest.raises(UserError, match=r'cannot be written to, because of .*mine\.html'):
        report.write([run_dir], out=str(tmp_path / 'mine.html' / 'x'), snapshots=0)


# --- The networks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_networks(make_run, make_generator, make_discriminator, tmp_path):
    """A run with a teacher and eight snapshots of a smaller student."""
    D = make_discriminator()
    teacher = make_generator(seed=1)
    pickles.save(tmp_path / 'teacher.pkl', dict(G=teacher, D=D, G_ema=teacher))
    run_dir = make_run(
        options={'loss_kwargs': {'teacher': 'outside/teacher.pkl'}, 'run_dir': 'outside/00000-run'},
        stats=[tick(7.0)],
    )
    (tmp_path / 'outside').mkdir()
    run_dir = run_dir.rename(tmp_path / 'outside' / run_dir.name)
    (tmp_path / 'teacher.pkl').rename(tmp_path / 'outside' / 'teacher.pkl')
    for kimg in range(8):
        student = make_generator(seed=kimg + 2, synthesis_kwargs={'channel_base': 128, 'channel_max': 8})
        pickles.save(run_dir / f'network-snapshot-{kimg:06d}.pkl', dict(G=student, D=D, G_ema=student))
    return run_dir, teacher, student


def test_teacher_and_student_make_images_of_the_same_z(with_networks):
    run_dir, teacher, student = with_networks
    (seen,) = generators.open_networks([reading.read(run_dir)], snapshots=4, latency=False)
    assert [generator.kimg for generator in seen.students] == [0, 2, 5, 7]
    assert (seen.teacher.parameters, seen.teacher.macs) == (profiling.parameters(teacher), profiling.macs(teacher))
    assert seen.students[-1].parameters == profiling.parameters(student) < seen.teacher.parameters
    assert seen.notes == []
    z = torch.from_numpy(np.random.RandomState(generators.SEED).standard_normal([generators.COLUMNS, 16])).float()
    for G, looked in [(teacher, seen.teacher), (student, seen.students[-1])]:
        with torch.no_grad():
            images = G.eval()(z, None, noise_mode='const', force_fp32=True)
        pixels = ((images + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
        for image, expected in zip(looked.images, pixels, strict=True):
            assert np.abs(np.asarray(image).astype(float) - expected).max() <= 0.51


def test_the_page_shows_networks(with_networks):
    run_dir, teacher, student = with_networks
    page = write(run_dir, snapshots=3, latency=True)
    pictures = page.all('img')
    assert len(pictures) == 4 * generators.COLUMNS
    assert all(picture['src'].startswith('data:image/png;base64,') and picture['alt'] for picture in pictures)
    words = re.sub(r'\s+', ' ', page.text)
    assert f'Teacher {profiling.parameters(teacher):,} {profiling.macs(teacher):,}' in words
    factor = profiling.parameters(teacher) / profiling.parameters(student)
    assert f'Student, 7 kimg {profiling.parameters(student):,} {factor:.1f}× fewer' in words
    assert re.search(r'\d ms', words)


def test_a_teacher_of_several_runs_is_shown_once_with_what_was_measured_of_it(with_networks):
    """Also where runs name it differently. First come the last snapshots of all runs, with its images."""
    run_dir, _teacher, _student = with_networks
    second = run_dir.with_name('00001-other')
    shutil.copytree(run_dir, second)
    options = json.loads((second / 'training_options.json').read_text())
    options['loss_kwargs']['teacher'] = str(run_dir / '..' / 'teacher.pkl')
    (second / 'training_options.json').write_text(json.dumps(options))
    line = {'results': {'fid5k': 0.5}, 'snapshot_pkl': 'teacher.pkl'}
    (run_dir.parent / 'metric-fid5k.jsonl').write_text(json.dumps(line) + '\n')
    line = {'results': {'fid5k': 4.0}, 'snapshot_pkl': 'network-snapshot-000007.pkl'}
    (run_dir / 'metric-fid5k.jsonl').write_text(json.dumps(line) + '\n')
    page = write(run_dir, second, out=run_dir / 'both.html', snapshots=2)
    words = re.sub(r'\s+', ' ', page.text)
    assert words.count(' Teacher ') == 4  # In the cards of both, in the table, beside its images.
    assert re.search(r'Teacher [\d,]+ [\d,]+ 0.5 ', words)
    whose = [picture['alt'].rpartition(', image')[0] for picture in page.all('img')]
    in_order = ['teacher', 'at 7 kimg', 'at 7 kimg', 'at 0 kimg', 'at 7 kimg', 'at 0 kimg', 'at 7 kimg']
    assert whose[:: generators.COLUMNS] == in_order


def test_teachers_of_the_same_name_are_told_apart(with_networks, make_generator, make_discriminator):
    """By as much of their paths as that takes."""
    run_dir, teacher, _student = with_networks
    second = run_dir.parent / 'more' / '00001-other'
    shutil.copytree(run_dir, second)
    other = make_generator(seed=5, synthesis_kwargs={'channel_base': 512, 'channel_max': 16})
    pickles.save(second.parent / 'teacher.pkl', dict(G=other, D=make_discriminator(), G_ema=other))
    options = json.loads((second / 'training_options.json').read_text())
    options['loss_kwargs']['teacher'] = str(second.parent / 'teacher.pkl')
    (second / 'training_options.json').write_text(json.dumps(options))
    page = write(run_dir, second, out=run_dir / 'both.html', snapshots=1)
    words = re.sub(r'\s+', ' ', page.text)
    for name, G in [('outside/teacher.pkl', teacher), ('more/teacher.pkl', other)]:
        assert f'Teacher {name} {profiling.parameters(G):,} ' in words
    whose = [picture['alt'].rpartition(', image')[0] for picture in page.all('img')]
    assert whose.count('teacher') == 2 * generators.COLUMNS


def test_paths_in_short():
    def short(*paths):
        return short_paths([Path(path) for path in paths])

    assert short('/a/b.pkl', 'c.pkl') == ['b.pkl', 'c.pkl']
    assert short('/x/a/b.pkl', '/y/a/b.pkl', '/c.pkl') == ['x/a/b.pkl', 'y/a/b.pkl', '/c.pkl']
    assert short('b.pkl', '/b.pkl') == ['b.pkl', '/b.pkl']


def test_pages_beside_the_report_are_linked(make_run):
    run_dir = make_run(stats=[tick(1.0)])
    (run_dir / 'page.html').write_text('<!DOCTYPE html>')
    write(run_dir, out=run_dir / 'earlier.html')
    assert [link['href'] for link in write(run_dir).all('a') if '#' not in link['href']] == ['page.html']


def test_big_images_become_small(with_networks, tmp_path, make_generator, make_discriminator):
    run_dir, _teacher, _student = with_networks
    G = make_generator(img_resolution=256, synthesis_kwargs={'channel_base': 256, 'channel_max': 4})
    for file in run_dir.glob('*.pkl'):
        file.unlink()
    pickles.save(run_dir / 'network-snapshot-000001.pkl', dict(G=G, D=make_discriminator(), G_ema=G))
    page = write(run_dir, snapshots=1)
    small = [picture for picture in page.all('img') if picture['alt'].startswith('at 1 kimg')]
    assert {(picture['width'], picture['height']) for picture in small} == {('128', '128')}
    assert all(picture['src'].startswith('data:image/jpeg;base64,') for picture in small)


def test_other_widths_of_z_are_told(with_networks, make_generator, make_discriminator):
    run_dir, _teacher, _student = with_networks
    G = make_generator(z_dim=8)
    pickles.save(run_dir / 'network-snapshot-000007.pkl', dict(G=G, D=make_discriminator(), G_ema=G))
    assert 'images are of different z' in write(run_dir, snapshots=1).text


def test_a_snapshot_that_is_being_written(with_networks):
    run_dir, _teacher, _student = with_networks
    newest = run_dir / 'network-snapshot-000007.pkl'
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    page = write(run_dir, snapshots=2, latency=True)
    assert 'The snapshot network-snapshot-000007.pkl cannot be opened' in page.text
    assert 'Student, 0 kimg' in page.text


def test_networks_that_cannot_be_opened_are_told(with_networks):
    run_dir, _teacher, _student = with_networks
    (run_dir.parent / 'teacher.pkl').unlink()
    for kimg in range(8):
        (run_dir / f'network-snapshot-{kimg:06d}.pkl').write_bytes(b'half a pick')
    page = write(run_dir, snapshots=2)
    assert 'The teacher outside/teacher.pkl is not on this machine' in page.text
    assert 'network-snapshot-000007.pkl cannot be opened' in page.text
    assert 'no fakes*.png' in page.text
    grid = np.zeros([32 * 16, 32 * 16, 3], np.uint8)
    grid[:16] = np.repeat(np.arange(32), 16)[:, None] * 8  # Each image of the first row has a colour.
    PIL.Image.fromarray(grid).save(run_dir / 'fakes000004.png')
    (seen,) = generators.open_networks([reading.read(run_dir)], snapshots=2, latency=False)
    name, images = seen.crop
    assert name == 'fakes000004.png'
    assert [image.getcolors() for image in images] == [[(256, (i * 8,) * 3)] for i in range(generators.COLUMNS)]
    assert len(write(run_dir, snapshots=2).all('img')) == generators.COLUMNS


@pytest.mark.parametrize(
    ('resolution', 'size'), [(1024, (7168, 4096)), (512, (7680, 4096)), (128, (4096, 4096)), (16, (512, 512))]
)
def test_cells_of_the_hosts_grids(resolution, size):
    assert generators._cell(size, None) == generators._cell(size, resolution) == resolution


@pytest.mark.parametrize(
    ('name', 'url'),
    [('https://example.com/teacher.pkl',) * 2, ('ffhq256', TEACHERS['ffhq256'].url)],
    ids=['url', 'published'],
)
def test_teachers_by_url_are_not_downloaded(make_run, monkeypatch, tmp_path, name, url):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr('requests.Session.get', lambda *_args, **_kwargs: pytest.fail('asked for something'))
    run = reading.read(make_run(options={'loss_kwargs': {'teacher': name}}))
    assert generators.find_files(name, run) == []
    (tmp_path / 'downloads').mkdir()
    cached = tmp_path / 'downloads' / f'{hashlib.md5(url.encode()).hexdigest()}_teacher.pkl'
    cached.write_bytes(b'')
    assert generators.find_files(name, run) == [str(cached)]


def test_a_teacher_is_found_from_where_the_run_was_started(make_run, tmp_path, monkeypatch):
    path = make_run(options={'loss_kwargs': {'teacher': 'in/teacher.pkl'}, 'run_dir': '/elsewhere/00000-run'})
    (tmp_path / 'started' / 'in').mkdir(parents=True)
    (tmp_path / 'started' / 'in' / 'teacher.pkl').write_bytes(b'')
    monkeypatch.chdir('/')
    assert generators.find_files('in/teacher.pkl', reading.read(path)) == []
    RunDirectory(path).write_inputs({'directory': str(tmp_path / 'started')})
    assert generators.find_files('in/teacher.pkl', reading.read(path)) == [f'{tmp_path}/started/in/teacher.pkl']


def test_a_file_that_has_taken_the_place_of_the_teacher_is_not_shown(make_run, tmp_path, monkeypatch):
    path = make_run(options={'loss_kwargs': {'teacher': 'teacher.pkl'}})
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(generators, '_summary', lambda file, *_more: shown.append(Path(file).read_bytes()))
    for place, content in [(tmp_path, b'another'), (path, b'the one')]:
        Path(place, 'teacher.pkl').write_bytes(content)
    for content in (b'the one', b'gone'):
        RunDirectory(path).write_inputs({'loss_kwargs.teacher': hashlib.sha256(content).hexdigest()})
        notes = []
        generators._teacher(reading.read(path), notes, {}, latency=False)
    assert shown == [b'the one']
    assert re.match('The teacher teacher.pkl on this machine is another file than the run had', notes[0])


def test_results_of_other_files_in_a_run_directory_are_on_no_curve(make_run):
    path = make_run()
    records = [('network-snapshot-000004.pkl', 20), ('student-0.8.pkl', 700)]
    lines = [json.dumps(dict(snapshot_pkl=name, results=dict(own=value), metric='own')) for name, value in records]
    (Path(path) / 'metric-own.jsonl').write_text('\n'.join(lines) + '\n')
    assert [(point.kimg, point.value) for point in reading.read(path).metrics['own']] == [(4, 20)]


def test_a_teachers_results_are_shown_if_they_are_of_the_same_data(make_run):
    run_dir = Path(make_run())
    for name, data, value in [
        ('network-snapshot-000004.pkl', 'a.zip', 20),
        ('teacher.pkl', 'a.zip', 5),
        ('teacher.pkl', 'other.zip', 80),
    ]:
        record = dict(snapshot_pkl=name, results=dict(own=value), metric='own', data=data, seed=0)
        with open(run_dir / 'metric-own.jsonl', 'a') as file:
            file.write(json.dumps(record) + '\n')
    run = reading.read(run_dir)
    teacher = SimpleNamespace(results=reading.results_beside(run_dir / 'teacher.pkl'))
    assert list(teacher.results['own'].values()) == [5, 80]
    assert page._as_measured(teacher, [run]) == {'own': 5}
    run.settings['own'] = 'another'
    assert page._as_measured(teacher, [run]) == {}


def test_odd_names_of_teachers(make_run):
    for name in ['x' * 5000, 'a\0b', '', '.', '/dev/zero', '/']:
        run = reading.read(make_run(f'{len(name)}-{abs(hash(name))}', options={'loss_kwargs': {'teacher': name}}))
        assert generators.find_files(name, run) == []


def test_durations():
    shown = {
        0.4: '0 s',
        59: '59 s',
        61: '1 min',
        3599: '1 h',
        7260: '2 h 1 min',
        90000: '1 day 1 h',
        math.inf: 'centuries',
    }
    assert {seconds: reading.duration(seconds) for seconds in shown} == shown


# --- Runs as they really are ------------------------------------------------------------------------------------------


def test_a_run_of_our_loop(make_run, make_dataset_zip, tmp_path):
    from stylegan2_compress.training_loops.distillation import training_loop

    networks = dict(channel_base=64, channel_max=8)
    adam = dict(class_name='torch.optim.Adam', lr=0.002, betas=[0, 0.99], eps=1e-8)
    options = dict(
        training_set_kwargs=dict(
            class_name='training.dataset.ImageFolderDataset',
            path=str(make_dataset_zip(tmp_path, n=8, labels=3)),
            use_labels=True,
        ),
        G_kwargs=dict(class_name='training.networks.Generator', z_dim=16, w_dim=16, synthesis_kwargs=networks),
        D_kwargs=dict(class_name='training.networks.Discriminator', **networks),
        G_opt_kwargs=adam,
        D_opt_kwargs=adam,
        loss_kwargs=dict(class_name='training.loss.StyleGAN2Loss'),
        total_kimg=0.032,
        kimg_per_tick=0.008,
        batch_size=8,
        batch_gpu=8,
        image_snapshot_ticks=None,
        device='cpu',
    )
    run_dir = make_run(options=options)
    training_loop(run_dir=str(run_dir), **options)
    page = write(run_dir, snapshots=2)
    assert reading.read(run_dir).state.word == 'finished'
    assert 'The options name no teacher' in page.text
    curves = page.lines()
    stats = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    assert curves[('Generator loss', '')] == [
        [round(stat['Progress/kimg']['mean'], 3), stat['Loss/G/loss']['mean']] for stat in stats
    ]
    assert {('Scores of the discriminator', 'real images'), ('Path length penalty', ''), ('Speed', '')} <= set(curves)
    assert len(page.all('img')) == generators.COLUMNS


def test_a_search_for_tickets(make_run, make_generator, make_discriminator):
    keep = dict(class_name='stylegan2_compress.ScoreMaskedGenerator', keep=0.1)
    dense, masked = make_generator(), make_generator(**keep)
    options = {'loss_kwargs': {'class_name': 'stylegan2_compress.MomentMatchingLoss'}, 'D_kwargs': None}
    run_dir = make_run(options=options, stats=[tick(1.0, Loss__moments__mean=0.5)])
    pickles.save(run_dir / 'network-snapshot-000001.pkl', dict(G=masked, D=None, G_ema=masked))
    facts = dict(snapshot='network-snapshot-000001.pkl', frechet_distance=1.5, embedding='e', samples=2)
    lines = [json.dumps(dict(facts, network=name)) + '\n' for name in ('G', 'G_ema')]
    (run_dir / 'tickets.jsonl').write_text(''.join(lines))
    page = write(run_dir, snapshots=1)
    (seen,) = generators.open_networks([reading.read(run_dir)], snapshots=1, latency=False)
    (student,) = seen.students
    assert (student.parameters, student.macs) == (profiling.parameters(dense), profiling.macs(dense))
    weights = sum(p.numel() for name, p in dense.named_parameters() if name.endswith('weight'))
    others = sum(int(p.count_nonzero()) for name, p in dense.named_parameters() if not name.endswith('weight'))
    assert student.kept == pytest.approx(0.1 * weights + others, rel=0.01)
    assert f'{student.parameters:,} {student.kept:,} kept by the mask' in re.sub(r'\s+', ' ', page.text)
    assert page.lines() == {('Moment matching: mean', ''): [[1.0, 0.5]]}
    assert 'Fréchet distance of G_ema, e' in page.text


@pytest.mark.parametrize(
    ('error', 'word', 'words'),
    [
        (UserError('Nothing works.'), 'crashed', 'Error: Nothing works.'),
        (errors.Stopped('Stopped at 4 kimg, with everything saved.'), 'stopped', 'with everything saved'),
        (ZeroDivisionError('division by zero'), 'crashed', 'ZeroDivisionError: division by zero'),
        (KeyboardInterrupt(), 'stopped', 'Ctrl-C'),
    ],
)
def test_the_log_tells_what_ended_a_run(make_run, monkeypatch, error, word, words):
    def loop(**_args):
        print('Loading training set...')
        raise error

    monkeypatch.setattr('stylegan2_compress.runs.loops.run_loop', loop)
    run_dir = make_run(options={})
    with pytest.raises(type(error)):
        launch.run(dict(run_dir=str(run_dir), num_gpus=1))
    state = reading.read(run_dir).state
    assert state.word == word
    assert words in state.sentence + str(state.error)
