"""Which results on record can be averaged, or be on one curve: those of one setting. Nothing here imports torch."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

DATA, MIRROR = 'data', 'mirror'  # Entries of records; none of a metric that mirrors no images.
BY_SEED = dict[str, float]


def setting_of(record: Mapping[str, Any]) -> str:
    """What a result depends on beside the network and the seed: the data, whether mirrored, embedding and teacher."""
    return json.dumps([record.get(name) for name in (DATA, MIRROR, 'fingerprint', 'teacher')])


def seed_of(record: Mapping[str, Any]) -> str:
    """The seed, as a key; 'null' of the host's results in training, which record none."""
    return json.dumps(record.get('seed'))


def newest(records: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Results by name, one for each seed: of the setting that was measured last, the newest of each seed.

    Args:
        records: of one network, in the order in which they were measured.
    """
    found: dict[str, dict[str, BY_SEED]] = {}
    for record in records:
        for name, value in record['results'].items():
            by_seed = touched(found.setdefault(name, {}), setting_of(record))
            by_seed[seed_of(record)] = value
    return {name: values(list(by_setting.values())[-1]) for name, by_setting in found.items()}


def touched(by_setting: dict[str, dict], setting: str) -> dict:
    """The entry of a setting, new where there is none, and now the last of all."""
    by_setting[setting] = by_setting.pop(setting, {})
    return by_setting[setting]


def values(by_seed: BY_SEED) -> list[float]:
    """Results of all seeds. Those without one count where there are no others."""
    return [value for seed, value in by_seed.items() if seed != 'null'] or list(by_seed.values())
