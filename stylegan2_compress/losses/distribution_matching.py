"""The term of DiME: distances between the student's features and a reference's, and what they are made of."""

from collections.abc import Callable, Iterable, Sequence

import torch

from stylegan2_compress.distributions.labels import beside_labels
from stylegan2_compress.distributions.sources import Source
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.balance import INTERVAL, Balance, Floors
from stylegan2_compress.losses.fading import Fading
from stylegan2_compress.losses.large_batch import LargeBatch
from stylegan2_compress.losses.space import Space
from stylegan2_compress.losses.terms import Batch, Summand, Term


class DistributionMatching(Term):
    """Σ_k λ_k d_k(φ_k(x)) over embedding spaces of the student's images x (DiME, arXiv 2405.11614).

    Args:
        spaces: in which images are compared.
        source: whose images refresh the banks of the distances.
        refresh: after how many of the generator's steps the oldest chunk of each bank makes way for a new one; 0 is
            never.
        balance: that makes the weights, instead of λ_k.
        floors: of the distances, for `balance`.
        large_batch: whose images are looked at instead of the batch's.
        by_label: whether distances are those of features `labels.beside_labels`.
        fading: of λ_k; None is without.
    """

    def __init__(
        self,
        spaces: Sequence[Space],
        source: Source | None = None,
        refresh: int = 0,
        balance: Balance | None = None,
        floors: Floors | None = None,
        large_batch: LargeBatch | None = None,
        by_label: bool = False,
        fading: Fading | None = None,
    ):
        self.spaces = spaces
        self.source = source
        self.refresh = refresh
        self.memories = [space.memory for space in spaces if space.memory is not None]
        self.spreads = [space.spread for space in spaces if space.spread is not None]
        self.kept = [*self.memories, *self.spreads]  # What follows the steps that are taken.
        self.balance = balance
        self.floors = floors
        self.large_batch = large_batch
        self.looks_at_images = large_batch is None
        self.by_label = by_label
        self.fading = fading or Fading()
        self.weights: Sequence = [space.weight for space in spaces]
        self.taken = 0  # Steps of the generator.
        self.nimg = 0
        self.is_first_round = True

    def before_step(self, nimg: int) -> None:
        self.nimg = nimg
        self.fading.follow(nimg)
        self.is_first_round = True
        for each in self.kept:
            each.begin()

    def generator(self, batch: Batch) -> list[Summand]:
        share = self.fading.share
        if share == 0:
            return []
        is_first_round, self.is_first_round = self.is_first_round, False
        if self.large_batch is None:
            features = [batch.features(space.network) for space in self.spaces]
            compared = [beside_labels(each, batch.c) for each in features] if self.by_label else features
            values = [space.measure(of_one) for space, of_one in zip(self.spaces, compared, strict=True)]
        elif is_first_round and self.large_batch.is_due(self.nimg):
            values, features = self.large_batch.backward(self.nimg, len(batch.z), self.spaces, share, batch.z.device)
        else:
            return []
        if self.balance is not None and self.floors is not None and is_first_round:
            self.weights = self._balanced(self.balance, self.floors, batch, values)
        weights = [share * weight for weight in self.weights]
        return [*self._summands('', values, weights), *self._reports(features, weights)]

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
        names = [f'DiME/{kind}{space.network.spec}' for space in self.spaces]
        return [Summand(*each) for each in zip(names, values, weights, strict=True)]

    def _reports(self, features: Sequence[torch.Tensor], weights: Sequence) -> list[Summand]:
        """What is recorded beside the distances: spreads within the batch, and weights that change."""
        reports, nothing = [], [None] * len(self.spaces)
        if self.spreads and len(features[0]) > 1:
            spreads = [spread.of(of_one) for spread, of_one in zip(self.spreads, features, strict=True)]
            reports += self._summands('spread/', spreads, nothing)
        return reports if self.balance is None else [*reports, *self._summands('weight/', weights, nothing)]

    def averages(self) -> Iterable[torch.Tensor]:
        return () if self.balance is None else self.balance.tensors().values()

    def obstacle(self) -> str:
        if self.fading.share == 0:
            return ''
        if self.balance is not None:
            return 'gradients are balanced now and then'
        if self.large_batch is not None:
            return 'large batches are looked at now and then'
        if any(not memory.is_full for memory in self.memories):
            return 'the memory is not full yet'
        return self.fading.obstacle('DiME')

    def notes(self) -> Iterable[list]:
        return (each.pending for each in self.kept)

    def after_step(self) -> None:
        if self.fading.share == 0:
            return
        self.taken += 1
        for memory in self.memories:
            memory.commit()
        for spread in self.spreads:
            spread.commit(self.nimg)
        if self.source is not None and self.refresh and self.taken % self.refresh == 0:
            self._refresh(self.source, self.taken // self.refresh - 1)

    @torch.no_grad()
    def _refresh(self, source: Source, count: int) -> None:
        """Let the next chunk of the source into the banks, where `count` were let in before. The same everywhere."""
        size = len(self.spaces[0].distance.bank)
        chunk = source.chunk
        images = source.draw(-(-size // chunk) + count)[0][:size]
        rows = (count * chunk + torch.arange(len(images), device=images.device)) % size
        for space in self.spaces:
            bank = space.distance.bank.clone()
            new = space.network(images).to(bank)
            bank[rows] = torch.where(new.isfinite().all(dim=1, keepdim=True), new, bank[rows])
            space.distance.fill(bank)

    def state_dict(self) -> dict:
        banks = [space.distance.bank for space in self.spaces] if self.refresh else []
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
            for space, bank in zip(self.spaces, state['banks'], strict=True):
                space.distance.fill(bank.to(space.distance.bank))
        for each, its_state in zip(self.kept, state['kept'], strict=True):
            each.load_state_dict(its_state)
        if self.balance is not None and self.floors is not None:
            for name, tensor in state['balance'].items():
                self.balance.tensors()[name].copy_(tensor)
            for images, floors in state['floors'].items():
                self.floors.measured[images] = floors.to(self.balance.distances)
