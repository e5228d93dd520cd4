"""The best and the last ticket of a finished search."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import dnnlib
import torch

from stylegan2_compress import embeddings, files, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import distances, samples
from stylegan2_compress.evaluation.features import embed
from stylegan2_compress.host import devices
from stylegan2_compress.host.progress_bars import progress_bar
from stylegan2_compress.networks import masked as masks
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.tickets.ticket_file import Ticket


@torch.no_grad()
def keep_tickets(run_dir: str, embedding: str, count: int, device: torch.device) -> None:
    """Compare the snapshots of a run, G_ema of each, with its data; keep the best and the last as tickets.

    The measure is the Fréchet distance in the features of an embedding; the numbers go to `tickets.jsonl`. Of a rule
    that keeps fewer and fewer weights, the best is of the snapshots that keep no more than asked for.

    Args:
        run_dir: of the search.
        embedding: spec of the network in whose features snapshots are compared.
        count: images of each.
        device: where.

    Raises:
        UserError: the run has no snapshots, or no options.
    """
    run = RunDirectory(run_dir)
    paths, options = run.snapshots(), run.read_options()
    if not paths or options is None:
        raise UserError(f'{run_dir} has no {"snapshots" if options else "options"} any more to make tickets of.')
    training_set_kwargs = options['training_set_kwargs']
    devices.set_backends()
    network = embeddings.load(embedding, device)
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    reals = embed(network, samples.reals(training_set), device, len(training_set), 'data features')
    records: list[dict[str, Any]] = []
    first = pickles.load(paths[0])['G_ema']
    z, c = samples.latents(first, count, seed=0), samples.draw_labels(training_set_kwargs, first.c_dim, count, seed=0)
    for path in progress_bar(paths, desc='Comparing snapshots'):
        G = pickles.load(path, device=device)['G_ema'].eval()
        fakes = embed(network, samples.fakes(G, z, c), device, count, path.name)
        facts = {
            'snapshot': path.name,
            'network': 'G_ema',
            'frechet_distance': distances.frechet_distance(fakes, reals),
            'embedding': network.spec,
            'samples': count,
            'kept': int(sum(mask.sum() for part in G.parts for mask in part.masks().values())),
        }
        records.append(facts)
    with files.atomic_write(run.tickets_path) as file:
        file.write(''.join(json.dumps(facts) + '\n' for facts in records).encode())
    rule = masks.rule_of(G.mapping.rule)
    candidates = records if not rule.scheduled else [facts for facts in records if facts['kept'] <= allowed(G, records)]
    best = min(candidates, key=lambda facts: facts['frechet_distance'])
    for name, facts in [('best', best), ('last', records[-1])]:
        path = run.ticket_path(name)
        where = f'{facts["network"]} of {facts["snapshot"]}, Fréchet distance {facts["frechet_distance"]:.4g}'
        if not rule.scored:
            print(f'{name}: {where}; no ticket, because the rule trains weights')
            continue
        G = pickles.load(run.path / facts['snapshot'])['G_ema']
        size = Ticket.from_generator(G, facts).write(path)
        print(f'{path}: {size:,} bytes, {where} in {network.spec}')


def allowed(G: masks.ScoreMaskedGenerator, records: Sequence[Mapping[str, Any]]) -> int:
    """How many weights the best ticket of a scheduled rule may keep: what was asked for, or what was reached."""
    total = sum(part.tensor(name).numel() for part in G.parts for name in part.names)
    return max(round(G.mapping.keep * total), min(facts['kept'] for facts in records))
