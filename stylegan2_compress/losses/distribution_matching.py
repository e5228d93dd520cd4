"""The term of DiME: distances between the student's features and a reference's, and what they are made of."""

from collections.abc import Callable, Iterable, Sequence

import torch

from stylegan2_compress.distributions.labels import beside_labels
from stylegan2_compress.distributions.memory import FeatureMemory
from stylegan2_compress.distributions.sources import Source
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.balance import INTERVAL, Balance, Floors
from stylegan2_compress.losses.large_batch import LargeBatch
from stylegan2_compress.losses.spread import Spread
from stylegan2_compress.losses.terms import Batch, Summand, Term


class DistributionMatching(Term):
    """Σ_k λ_k d_k(φ_k(x)) over embeddings φ_k of the student's images x (DiME, arXiv 2405.11614).

    Args:
        networks: φ_k.
        distances: d_k, from features [N, dim] to a scalar, as `ESTIMATORS` builds them.
        weights: λ_k.
        source: whose images refresh the banks of the distances.
        refresh: after how many of the generator's steps the oldest chunk of each bank makes way for a new one; 0 is
            never.
        memories: of the student's latest features, one per embedding; none is without.
        spreads: that follow the features within a batch, one per embedding; none is without.
        balance: that makes the weights, instead of λ_k.
        floors: of the distances, for `balance`.
        large_batch: whose images are looked at instead of the batch's.
        by_label: whether distances are those of features `labels.beside_labels`.
    """

    def __init__(
        self,
        networks: Sequence[Embedding],
        distances: Sequence[Callable[..., torch.Tensor]],
        weights: Sequence[float],
        source: Source | None = None,
        refresh: int = 0,
        memories: Sequence[FeatureMemory] = (),
        spreads: Sequence[Spread] = (),
        balance: Balance | None = None,
        floors: Floors | None = None,
        large_batch: LargeBatch | None = None,
        by_label: bool = False,
    ):
        self.parts = list(zip(networks, distances, weights, strict=True))
        self.source = source
        self.refresh = refresh
        self.memories = memories or [None] * len(self.parts)
        self.spreads = spreads or [None] * len(self.parts)
        self.kept = [*memories, *spreads]  # What follows the steps that are taken.
        self.balance = balance
        self.floors = floors
        self.large_batch = large_batch
        self.makes_its_own = large_batch is not None
        self.by_label = by_label
        self.weights: Sequence = [weight for _network, _distance, weight in self.parts]
        self.taken = 0  # Steps of the generator.
        self.nimg = 0
        self.is_first_round = True

    def before_step(self, nimg: int) -> None:
        self.nimg = nimg
        self.is_first_round = True
        for each in self.kept:
            each.begin()

    def generator(self, batch: Batch) -> list[Summand]:
        is_first_round, self.is_first_round = self.is_first_round, False
        if self.large_batch is None:
            features = [batch.features(network) for network, _distance, _weight in self.parts]
            values = self._distances([beside_labels(each, batch.c) for each in features] if self.by_label else features)
        elif is_first_round and self.large_batch.is_due(self.nimg):
            networks, distances, weights = zip(*self.parts, strict=True)
            where = self.nimg, len(batch.z)
            values, features = self.large_batch.backward(*where, networks, distances, weights, batch.z.device)
        else:
            return []
        if self.balance is not None and self.floors is not None and is_first_round:
            self.weights = self._balanced(self.balance, self.floors, batch, values)
        return [*self._summands('', values, self.weights), *self._reports(features)]

    def _distances(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """d_k of the batch, which enters the memories."""
        values = []
        for (_network, distance, _weight), memory, of_one in zip(self.parts, self.memories, features, strict=True):
            past = [] if memory is None else [memory.before(of_one)]
            values.append(distance(of_one, *past))
            if memory is not None:
                memory.note(of_one)
        return values

    def _balanced(
        self,
        balance: Balance,
        floors: Callable[[int], torch.Tensor],
        batch: Batch,
        values: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Weights by the strength of gradients, which the first round of a step measures now and then."""
        if self.taken % INTERVAL == 0:
            balance.follow(batch.images, batch.loss, values)  # pyright: ignore[reportArgumentType]  # G phases have one.
        return list(balance.weights(values, floors(len(batch.images))))

    def _summands(self, kind: str, values: Sequence, weights: Sequence) -> list[Summand]:
        """One per embedding."""
        names = [f'DiME/{kind}{network.spec}' for network, _distance, _weight in self.parts]
        return [Summand(*each) for each in zip(names, values, weights, strict=True)]

    def _reports(self, features: Sequence[torch.Tensor]) -> list[Summand]:
        """What is recorded beside the distances: spreads within the batch, and weights that change."""
        reports, nothing = [], [None] * len(self.parts)
        if self.kept and self.spreads[0] is not None and len(features[0]) > 1:
            pairs = zip(self.spreads, features, strict=True)
            spreads = [spread.of(of_one) for spread, of_one in pairs if spread is not None]
            reports += self._summands('spread/', spreads, nothing)
        return reports if self.balance is None else [*reports, *self._summands('weight/', self.weights, nothing)]

    def averages(self) -> Iterable[torch.Tensor]:
        return () if self.balance is None else self.balance.tensors().values()

    def obstacle(self) -> str:
        if self.balance is not None:
            return 'gradients are balanced now and then'
        if self.large_batch is not None:
            return 'large batches are looked at now and then'
        return 'the memory is not full yet' if any(memory and not memory.is_full for memory in self.memories) else ''

    def notes(self) -> Iterable[list]:
        return (each.pending for each in self.kept)

    def after_step(self) -> None:
        self.taken += 1
        for memory in filter(None, self.memories):
            memory.commit()
        for spread in filter(None, self.spreads):
            spread.commit(self.nimg)
        if self.source is not None and self.refresh and self.taken % self.refresh == 0:
            self._refresh(self.source, self.taken // self.refresh - 1)

    @torch.no_grad()
    def _refresh(self, source: Source, count: int) -> None:
        """Let the next chunk of the source into the banks, where `count` were let in before. The same everywhere."""
        size = len(self.parts[0][1].bank)
        chunk = source.chunk
        images = source.draw(-(-size // chunk) + count)[0][:size]
        rows = (count * chunk + torch.arange(len(images), device=images.device)) % size
        for network, distance, _weight in self.parts:
            new = network(images)
            bank = distance.bank.clone()
            bank[rows] = torch.where(new.isfinite().all(dim=1, keepdim=True), new, bank[rows])
            distance.fill(bank)

    def state_dict(self) -> dict:
        banks = [distance.bank for _, distance, _ in self.parts] if self.refresh else []
        kept = [each.state_dict() for each in self.kept]
        balance = {} if self.balance is None else self.balance.tensors()
        # Floors were measured with the banks of the first step.
        floors = {} if self.floors is None else dict(self.floors.measured)
        return {'taken': self.taken, 'banks': banks, 'kept': kept, 'balance': balance, 'floors': floors}

    def load_state_dict(self, state: dict) -> None:
        for option, has, had in [
            ('refresh', bool(self.refresh), bool(state['banks'])),
            ('memory', len(self.kept), len(state['kept'])),
            ('balance', self.balance is not None, bool(state['balance'])),
        ]:
            if has != had:
                raise UserError(f'The run to go on with had another --loss-arg {option}: give the one it had.')
        self.taken = state['taken']
        if self.refresh:
            for (_network, distance, _weight), bank in zip(self.parts, state['banks'], strict=True):
                distance.fill(bank.to(distance.bank))
        for each, its_state in zip(self.kept, state['kept'], strict=True):
            each.load_state_dict(its_state)
        if self.balance is not None and self.floors is not None:
            for name, tensor in state['balance'].items():
                self.balance.tensors()[name].copy_(tensor)
            for images, floors in state['floors'].items():
                self.floors.measured[images] = floors.to(self.balance.distances)
