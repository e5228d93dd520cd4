"""The options of `evaluate` and `profile`. Nothing here imports torch."""

from dataclasses import dataclass

from stylegan2_compress import arguments
from stylegan2_compress.arguments import LAST_SEED, argument, device_argument
from stylegan2_compress.errors import UserError
from stylegan2_compress.export.options import FORMATS
from stylegan2_compress.files import check_ending

TIMED = [name for name in FORMATS if name not in ('web', 'coreml')]  # Not those for browsers and Apple's machines.
BATCH = 16


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `evaluate`.

    Raises:
        UserError: a value is not allowed, or does not go with another one.
    """

    data: str = argument("Images to compare with: directory or zip in the host's format.", metavar='PATH')
    metrics: str = argument('What to measure, see above.', 'fid50k_full', metavar='NAME,…')
    samples: int | None = argument(
        'Images per number.', None, least=10, most=10**6, unit='images', default_text='as named, 50k'
    )
    repeats: int = argument('Seeds per number.', 1, least=1, metavar='R')
    seed: int = argument('The first seed.', 0, least=0, most=LAST_SEED)
    mirror: bool = argument('Data for fid50k, kid50k and pr50k3 includes flipped images.', False, flag=True)
    out: str | None = argument(
        'Append the results to FILE.', None, default_text='beside each network', metavar='FILE.jsonl'
    )
    gpus: int | None = argument(
        'Processes, each with a GPU or a share of the CPU; numbers do not depend on it.', None, default_text='1'
    )
    device: str | None = device_argument()

    def __post_init__(self):
        arguments.check(self)
        if self.seed + self.repeats - 1 > LAST_SEED:
            raise UserError(
                f'--repeats={self.repeats} from --seed={self.seed} on leads beyond {LAST_SEED}, the last seed there is.'
            )
        if self.out is not None:
            check_ending(self.out, ['.jsonl'])

    @property
    def seeds(self) -> range:
        """One for each repeat."""
        return range(self.seed, self.seed + self.repeats)


@dataclass(frozen=True)
class ProfileOptions:
    """The options of `profile`.

    Raises:
        UserError: a value is not allowed, or does not go with another one.
    """

    batch: int | None = argument(
        'Measure at 1 and this size.', None, least=1, most=10**6, unit='images', default_text=str(BATCH)
    )
    layers: bool = argument('Show every layer.', False, flag=True)
    runtimes: tuple[str, ...] = argument(
        'Time an export, too, in this runtime; all is measured on the CPU then. May be repeated.',
        (),
        choices=TIMED,
        metavar='|'.join(TIMED),
    )
    no_measure: bool = argument('Only count: nothing is run.', False, flag=True)
    json: bool = argument('Write JSON instead of a table.', False, flag=True)
    device: str | None = device_argument('Where to measure:')

    def __post_init__(self):
        arguments.check(self)
        if self.no_measure and self.runtimes:
            raise UserError(f'--runtime={self.runtimes[0]} and --no-measure exclude each other: leave one out.')
        if self.no_measure and self.batch is not None:
            raise UserError(f'--batch={self.batch} and --no-measure exclude each other: leave one out.')

    @property
    def batches(self) -> list[int]:
        """The sizes to measure at."""
        return [] if self.no_measure else sorted({1, BATCH if self.batch is None else self.batch})
