"""What options may be."""

import math

import pytest

from stylegan2_compress.arguments import require_choice, require_number, require_whole_number
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


@pytest.mark.parametrize('value', [1, 2.0, '3', None])
def test_a_whole_number(value):
    require_whole_number('--x', 2, least=2)
    with pytest.raises(UserError, match=r'must be a whole number of images, at least 2\.$'):
        require_whole_number('--x', value, least=2, of='images')


def test_a_choice():
    require_choice('--x', 'a', 'ab')
    with pytest.raises(UserError, match=r'^--x=c does not exist; there are a, b\.$'):
        require_choice('--x', 'c', 'ab')
