"""Arguments that are declared once: checks, parsing, command lines, tables."""

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass

import click
import pytest
from click.testing import CliRunner

from stylegan2_compress import arguments
from stylegan2_compress.arguments import again, argument, require_choice, require_number, require_whole_number
from stylegan2_compress.errors import UserError


@pytest.mark.parametrize(
    ('value', 'allowed', 'wanted'),
    [
        (math.nan, {}, 'a number'),
        (math.inf, {}, 'a number'),
        ('1', {}, 'a number'),
        (None, {}, 'a number'),
        (-1, dict(least=0), 'a number from 0 on'),
        (1.5, dict(least=0, most=1), 'a number from 0 to 1'),
        (0, dict(least=0, above=True), 'a number above 0'),
    ],
)
def test_a_number_is_finite_and_in_its_range(value, allowed, wanted):
    with pytest.raises(UserError, match=rf'^--x={value} must be {wanted}\.$'):
        require_number('--x', value, **allowed)


@pytest.mark.parametrize(('value', 'allowed'), [(-1e9, {}), (0, dict(least=0)), (1, dict(least=0, most=1))])
def test_a_range_includes_its_ends(value, allowed):
    require_number('--x', value, **allowed)


@pytest.mark.parametrize('value', [1, 2.0, '3', None, True])
def test_a_whole_number(value):
    require_whole_number('--x', 2, least=2)
    with pytest.raises(UserError, match=r'must be a whole number of images, at least 2\.$'):
        require_whole_number('--x', value, least=2, unit='images')


def test_a_choice():
    require_choice('--x', 'a', 'ab')
    with pytest.raises(UserError, match=r'^--x=c does not exist; there are a, b\.$'):
        require_choice('--x', 'c', 'ab')


# --- Declarations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    size: int = argument('Side of an image.', least=4, unit='pixels')
    verbose: bool = argument('Say more.', False, flag=True, short='-v')


@dataclass(frozen=True)
class Options(Base):
    path: str | None = argument('A file.', None, metavar='FILE', default_text='none at all')
    rate: float = argument('How fast.', 0.5, above=0, most=1, paper=0.1)
    names: tuple[str, ...] = argument('Names; may be repeated.', ('a', 'b'), metavar='NAME')
    weights: float | Sequence[float] | None = argument('λ.', None, least=0)
    kind: str = argument('Which.', 'plain', choices=('plain', 'fancy'))
    mirror: bool | None = argument('Flip.', None)
    total: float = argument('Filled in.', 7.0, internal=True)


def options(**given):
    return Options(**{'size': 8, **given})


def test_own_arguments_come_before_inherited_ones():
    own = ['path', 'rate', 'names', 'weights', 'kind', 'mirror', 'total']
    assert list(arguments.fields_of(Options)) == [*own, 'size', 'verbose']
    assert 'total' not in arguments.users_fields(Options)


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (dict(size=3), '--size=3 must be a whole number of pixels, at least 4.'),
        (dict(size=4.0), '--size=4 must be a whole number of pixels, at least 4.'),
        (dict(rate=0), '--rate=0 must be a number above 0 and at most 1.'),
        (dict(rate='fast'), '--rate=fast must be a number above 0 and at most 1.'),
        (dict(rate=math.nan), '--rate=nan must be a number above 0 and at most 1.'),
        (dict(weights=[1, -1]), '--weights=-1 must be a number from 0 on.'),
        (dict(weights=True), '--weights=True must be a number from 0 on.'),
        (dict(kind='odd'), '--kind=odd does not exist; there are plain, fancy.'),
        (dict(mirror='maybe'), '--mirror=maybe must be true or false.'),
        (dict(path=3), '--path=3 must be text.'),
        (dict(names=('a', 3)), '--names=3 must be text.'),
    ],
)
def test_a_value_that_its_declaration_does_not_allow_is_refused(given, sentence):
    with pytest.raises(UserError) as refusal:
        arguments.check(options(**given))
    assert refusal.value.message == sentence


def test_allowed_values_pass():
    for given in [{}, dict(weights=3), dict(weights=(1, 2.5)), dict(kind='fancy'), dict(path='x'), dict(mirror=True)]:
        arguments.check(options(**given))


def test_refusals_of_losses_name_the_argument_as_it_is_given():
    with pytest.raises(UserError, match=r'^--loss-arg size=3 must be'):
        arguments.check(options(size=3), '--loss-arg ')


@pytest.mark.parametrize(
    ('name', 'text', 'value'),
    [
        ('path', '2024', '2024'), ('path', 'true', 'true'), ('path', '[1]', '[1]'), ('path', '"2024"', '2024'),
        ('path', 'null', None), ('path', '', ''), ('path', 'a=b', 'a=b'),
        ('size', '16', 16), ('size', 'big', 'big'), ('rate', '1e-3', 1e-3), ('mirror', 'true', True),
        ('weights', '[20, 15]', [20, 15]), ('weights', '3', 3), ('names', '["x", "y"]', ['x', 'y']),
        ('names', 'x,y', 'x,y'),
        ('rate', '.5', 0.5), ('rate', '1.', 1.0), ('mirror', 'True', True), ('weights', '[.5, 1]', [0.5, 1]),
        ('weights', '(1, 2)', [1, 2]), ('size', '{1, 2}', '{1, 2}'), ('size', '1+', '1+'), ('path', 'None', 'None'),
    ],
)  # fmt: skip
def test_text_stays_text_where_text_is_wanted_and_all_else_is_json(name, text, value):
    assert arguments.parse(Options, name, text) == value


def test_key_and_value():
    assert arguments.split_text('--loss-arg', 'a=b=c') == ('a', 'b=c')
    for text in ('a', '=b', 'a b=c'):
        with pytest.raises(UserError, match=f'--loss-arg {text} must have the form KEY=VALUE'):
            arguments.split_text('--loss-arg', text)


def test_the_same_declarations_make_a_command_line():
    @click.command()
    @arguments.command_options(Options)
    def command(**given):
        click.echo(repr(options(**given)))

    def run(*args):
        return CliRunner().invoke(command, args)

    assert run('--size', '8').output.strip() == repr(options())
    given = run('--size', '8', '-v', '--path', '7', '--name', 'x', '--name', 'y', '--mirror', '1', '--rate', '.25')
    assert given.output.strip() == repr(options(verbose=True, path='7', names=('x', 'y'), mirror=True, rate=0.25))
    assert "Missing option '--size'" in run().output
    help = run('--help').output
    assert 'FILE' in help
    assert '[default: none at all]' in help
    assert '[default: 0.5]' in help
    assert 'Filled in' not in help
    names = {name for option in arguments.click_options(Options) for name in option.opts}
    assert {'--size', '-v', '--name', '--weight'} <= names


def test_what_was_given_as_options():
    """Defaults are left out, and what the caller leaves out."""
    given = options(verbose=True, names=('x', 'y'), mirror=True, rate=0.25, size=8)
    assert arguments.given_options(given, without=['verbose']) == {
        '--size': '8', '--name': 'x,y', '--mirror': 'true', '--rate': '0.25',
    }  # fmt: skip
    assert arguments.value_as_text({'weights': [0.5, 1.0], 'embeddings': 'a'}) == 'weights=0.5,1,embeddings=a'


def test_the_same_declarations_make_a_table():
    lines = arguments.table(Options).splitlines()
    assert lines[0] == '| argument | meaning | default |'
    assert '| `rate` | How fast. | `0.5` (paper: 0.1) |' in lines
    assert '| `kind` | Which. (`plain`, `fancy`) | `plain` |' in lines
    assert '| `size` | Side of an image. | required |' in lines
    assert '| `path` | A file. | none at all |' in lines
    assert '| `verbose` | Say more. | `false` |' in lines
    assert not any('total' in line for line in lines)


def test_an_argument_once_more_in_another_dataclass():
    @dataclass(frozen=True)
    class Other:
        size: int = again(Options, 'size', default=64, help='Another side.')
        rate: float = again(Options, 'rate', default=MISSING)

    with pytest.raises(UserError, match='--size=2 must be a whole number of pixels, at least 4'):
        arguments.check(Other(size=2, rate=0.5))
    assert Other(rate=1).size == 64
    assert 'Another side. | `64` |' in arguments.table(Other)


def test_a_default_that_could_be_changed_is_refused():
    with pytest.raises(TypeError, match='give a tuple'):
        argument('Names.', ['a'])
