"""Distance between the images of teacher and student for the same z: `agreement`, `agreement:SPEC`."""

import torch
from training.networks import Generator

from stylegan2_compress import embeddings
from stylegan2_compress.embeddings.perceptual import perceptual_distance
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import samples
from stylegan2_compress.evaluation.base import Metric, Setting
from stylegan2_compress.evaluation.names import count_text, slug
from stylegan2_compress.host.progress_bars import progress_bar

SAMPLES = 1000


class Agreement(Metric):
    """Mean distance between the images of teacher and student for the same z, c and constant noise.

    In pixels, the mean absolute difference of values in [-1, 1]; in features, `perceptual_distance`.

    Args:
        spec: of an embedding with layers; None for pixels only.
        samples: number of images; None for 1,000.
    """

    of_teacher = False
    samples: int

    def __init__(self, spec: str | None, samples: int | None):
        super().__init__(samples or SAMPLES)
        self.spec = None if spec is None else str(embeddings.parse(spec))
        self.name = f'agreement{count_text(self.samples)}' + (f'_{slug(self.spec)}' if self.spec else '')

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        self.embedding = None
        if self.spec is not None:
            self.embedding = embeddings.load(self.spec, setting.device, setting.training_set_kwargs['resolution'])
            if not self.embedding.has_layers:
                raise UserError(
                    f'--metrics=agreement:{self.spec} needs an embedding that exposes its layers: use another one, '
                    'such as efficientnet_lite0.'
                )

    def facts(self) -> dict[str, object]:
        facts: dict[str, object] = dict(teacher=self.setting.teacher_sha256)
        if self.embedding is not None:
            facts.update(embedding=self.embedding.spec, fingerprint=self.embedding.fingerprint)
        return facts

    @torch.no_grad()
    def measure(self, G: Generator, seed: int) -> dict[str, float]:
        teacher = self.setting.teacher.to(self.setting.device)
        z = samples.latents(teacher, self.samples, seed)
        c = samples.draw_labels(self.setting.training_set_kwargs, teacher.c_dim, self.samples, seed)
        totals = {'pixels': 0.0, 'features': 0.0}
        pairs = zip(samples.fakes(teacher, z, c), samples.fakes(G, z, c), strict=True)
        with progress_bar(total=self.samples, desc=self.name, unit='img') as bar:
            for x, y in pairs:
                totals['pixels'] += (x - y).abs().mean(dim=(1, 2, 3)).sum().item()
                if self.embedding is not None:
                    totals['features'] += perceptual_distance(self.embedding, x, y).sum().item()
                bar.update(len(x))
        if self.embedding is None:
            del totals['features']
        return {f'{self.name}_{space}': total / self.samples for space, total in totals.items()}
