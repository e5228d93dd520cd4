"""The options of `generate`. Nothing here imports torch."""

import collections
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stylegan2_compress import arguments
from stylegan2_compress.arguments import LAST_SEED, argument, device_argument
from stylegan2_compress.errors import UserError

MOST_IMAGES = 10**6
IMAGE = '.png'
FILMS = ('.gif', '.mp4')
# Of no directory's name, in small or capital letters.
FILE_ENDINGS = (IMAGE, '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.zip', '.pkl', *FILMS)


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `generate`.

    Raises:
        UserError: a value is not allowed, or does not go with another one.
    """

    out: str | None = argument(
        'A name ending in .png: a grid. Else a directory: a PNG for each seed, under the names of generate.py.',
        None,
        metavar='FILE.png|DIR',
    )
    interpolate: str | None = argument(
        'Instead: a walk from seed to seed and back to the first, as a film.', None, metavar='FILE.gif|FILE.mp4'
    )
    compare: bool = argument('Several networks, each a row with images of the same z.', False, flag=True)
    seeds: str | None = argument(
        "Seeds of z, as for the host's generate.py: numbers and ranges.",
        None,
        default_text='as many as --grid has places, else 0-7',
        metavar='0-63,70',
    )
    grid: str | None = argument(
        'Columns and rows of --out=FILE.png.', None, default_text='about as many of each', metavar='8x8'
    )
    class_: str | None = argument(
        'For networks with labels: the class, or several that take turns.', None, metavar='N|0-9'
    )
    trunc: float = argument('Truncation psi: 1 is none, 0 the average image.', 1.0, least=-10, most=10, metavar='PSI')
    noise: str | None = argument(
        'Noise inputs: constant, random, or none.',
        None,
        default_text='const; of an export, its own',
        choices=('const', 'random', 'none'),
        metavar='const|random|none',
    )
    batch: int = argument(
        'Images at a time; of more than 1, rounding differs. With --noise=random, always 1.', 1, least=1, most=10**6
    )
    frames: int | None = argument(
        'Of --interpolate: frames from one seed to the next, 25 a second.', None, least=1, most=10**4, default_text='25'
    )
    device: str | None = device_argument()

    def __post_init__(self):
        arguments.check(self)
        if (self.out is None) == (self.interpolate is None):
            raise UserError('Say what to write: --out=FILE.png, --out=DIR or --interpolate=FILE, one of the three.')
        if self.is_film:
            self._check_film()
        elif self.frames is not None:
            raise UserError(f'--frames={self.frames} is about --interpolate=FILE: leave it out.')
        elif not self.is_grid:
            self._check_directory()
        self._check_grid()
        if self.class_ is not None:
            parse_numbers('--class', self.class_, 2**31)

    def _check_film(self) -> None:
        if not self.destination.endswith(FILMS):
            raise UserError(f'--interpolate={self.interpolate} must end in {" or ".join(FILMS)}.')
        if self.destination.endswith('.mp4') and importlib.util.find_spec('imageio_ffmpeg') is None:
            raise UserError(
                f'--interpolate={self.interpolate} needs the package imageio-ffmpeg: pip install imageio-ffmpeg, or '
                'take .gif.'
            )
        if len(self.seed_list) < 2:
            raise UserError(f'--seeds={self.seeds} is one place to be, and --interpolate walks: give several.')

    def _check_directory(self) -> None:
        if not self.destination.strip():
            raise UserError('--out= is empty: name a file or a directory.')
        if self.destination.lower().endswith(FILE_ENDINGS):
            raise UserError(f'--out={self.out} is no name of a directory: for a grid, end it in {IMAGE}.')
        twice = next((seed for seed, times in collections.Counter(self.seed_list).items() if times > 1), None)
        if twice is not None:
            raise UserError(f'--seeds={self.seeds} has {twice} twice, and {self.out} would have one image of it.')

    def _check_grid(self) -> None:
        if self.grid is None:
            return
        if self.compare or not self.is_grid:
            raise UserError(f'--grid={self.grid} goes with --out=FILE.png of one network: leave it out.')
        columns, rows = self._grid_size()
        if columns * rows != len(self.seed_list):
            raise UserError(
                f'--grid={self.grid} has {columns * rows} places, but --seeds={self.seeds} has {len(self.seed_list)} '
                'seeds: leave one of the two out.'
            )

    @property
    def destination(self) -> str:
        """What is written: a file or a directory."""
        return str(self.out if self.interpolate is None else self.interpolate)

    @property
    def is_film(self) -> bool:
        return self.interpolate is not None

    @property
    def is_grid(self) -> bool:
        """Whether one picture is written."""
        return self.out is not None and self.out.endswith(IMAGE)

    @property
    def seed_list(self) -> list[int]:
        """The seeds, in the order in which they were given."""
        if self.seeds is not None:
            return parse_numbers('--seeds', self.seeds, LAST_SEED)
        columns, rows = self._grid_size() if self.grid is not None else (8, 1)
        return list(range(columns * rows))

    @property
    def images_at_a_time(self) -> int:
        """Random noise of a batch is another for every place in it, and it is to depend on the seed alone."""
        return 1 if self.noise == 'random' else self.batch

    @property
    def class_list(self) -> list[int] | None:
        """The classes that take turns, or None."""
        return None if self.class_ is None else parse_numbers('--class', self.class_, 2**31)

    @property
    def noise_mode(self) -> str:
        """The noise inputs of networks that are no exports."""
        return self.noise or 'const'

    @property
    def columns(self) -> int:
        """Of the grid."""
        if self.grid is not None:
            return self._grid_size()[0]
        return len(self.seed_list) if self.compare else max(1, round(len(self.seed_list) ** 0.5))

    def _grid_size(self) -> tuple[int, int]:
        match = re.fullmatch(r'([1-9]\d{0,5})x([1-9]\d{0,5})', self.grid or '')
        if match is None or int(match[1]) * int(match[2]) > MOST_IMAGES:
            raise UserError(f'--grid={self.grid} must be columns and rows, such as 8x4, of {MOST_IMAGES:,} at most.')
        return int(match[1]), int(match[2])

    def check_networks(self, networks: Sequence[str]) -> None:
        """Refuse several networks without --compare, and one with it.

        Raises:
            UserError: the number does not fit.
        """
        if self.compare and len(networks) < 2:
            raise UserError('--compare shows several networks below each other: name at least two.')
        if not self.compare and len(networks) > 1:
            raise UserError(f'{networks[1]} is a second network: add --compare to show both.')
        if self.compare and not (self.is_grid or self.is_film):
            raise UserError(f'--compare writes one picture: end --out={self.out} in {IMAGE}.')


def parse_numbers(option: str, text: str, most: int) -> list[int]:
    """The numbers of `0-63,70`, in their order.

    Raises:
        UserError: the text has another form, or the numbers are too large or too many.
    """
    numbers: list[int] = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d{1,12})(?:-(\d{1,12}))?\s*', part, flags=re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= most:
            raise UserError(f'{option}={text} must be numbers up to {most} and ranges of them, such as 0-63,70.')
        if len(numbers) + last - first >= MOST_IMAGES:
            raise UserError(f'{option}={text} are more than {MOST_IMAGES:,} numbers: give fewer.')
        numbers += range(first, last + 1)
    return numbers


def image_path(directory: str, seed: int) -> str:
    """Where the image of a seed is written, under the name that the host's generate.py has for it."""
    return os.path.join(directory, f'seed{seed:04d}{IMAGE}')
