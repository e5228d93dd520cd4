"""Train a small image classifier on the labels of a dataset zip, on a CPU; its features then measure generators.

    python benchmarks/image_classifier.py --data cifar10.zip --outdir runs/classifier

Every tenth image is held out, and the accuracy is on those. Writes `classifier.pt`, a TorchScript file that takes
images as our embeddings hand them over (`torchscript:classifier.pt@size=32`): `forward` gives 128 features, `classify`
logits, `places` features that say where.
"""

import json
import math
import os
import time
from collections.abc import Iterator

import click
import numpy as np
import torch

from stylegan2_compress import host

FEATURES = 128


class Residual(torch.nn.Module):
    """Halve the side, then add to the maps what one more convolution makes of them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.down = torch.nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.down_norm = torch.nn.BatchNorm2d(outputs)
        self.same = torch.nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.same_norm = torch.nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down_norm(self.down(x)).relu()
        return x + self.same_norm(self.same(x)).relu()


class ImageClassifier(torch.nn.Module):
    """A stem, two residual stages, the mean over positions, one linear layer. Takes normalised RGB of any side."""

    def __init__(self, classes: int):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 32, 4, stride=2, padding=1, bias=False)
        self.stem_norm = torch.nn.BatchNorm2d(32)
        self.stages = torch.nn.Sequential(Residual(32, 64), Residual(64, FEATURES))
        self.head = torch.nn.Linear(FEATURES, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [N, 128] of images [N, 3, H, W]."""
        return self.maps(x).mean(dim=[2, 3])

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """The features before the mean, [N, 128, H / 8, W / 8]."""
        return self.stages(self.stem_norm(self.stem(x)).relu())

    @torch.jit.export
    def places(self, x: torch.Tensor) -> torch.Tensor:
        """A quarter of the features at each of 4×4 places, [N, 512], as in sFID (Nash et al., ICML 2021)."""
        return torch.nn.functional.adaptive_avg_pool2d(self.maps(x)[:, :32], [4, 4]).flatten(1)

    @torch.jit.export
    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        return self.head(self.forward(x))


def train(data: str, outdir: str, epochs: int, seed: int) -> dict:
    """Train and write `classifier.pt` and `classifier.json`; returns what the latter says.

    Args:
        data: labelled dataset zip in the host's format; grey images count as RGB.
        outdir: directory that exists.
        epochs: passes over nine tenths of the images.
        seed: of weights, order and augmentation.
    """
    start = time.time()
    images, labels = load(data)
    test = held_out(len(images))

    for epoch, network in enumerate(fit(images[~test], labels[~test], epochs, seed)):
        accuracy = measure(network, images[test], labels[test])
        print(f'epoch {epoch + 1}: accuracy on held-out images {accuracy:.4f}', flush=True)
    torch.jit.script(network.eval()).save(os.path.join(outdir, 'classifier.pt'))
    facts = dict(
        accuracy=accuracy,
        held_out=int(test.sum()),
        training_images=int((~test).sum()),
        epochs=epochs,
        seed=seed,
        minutes=round((time.time() - start) / 60, 1),
    )
    with open(os.path.join(outdir, 'classifier.json'), 'w') as file:
        json.dump(facts, file, indent=2)
    return facts


def held_out(count: int) -> torch.Tensor:
    """Which of so many images nothing is trained on: every tenth."""
    return torch.arange(count) % 10 == 9


def fit(
    images: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int, batch: int = 128
) -> Iterator[ImageClassifier]:
    """Train a classifier on uint8 images [N, 3, H, W] of classes [N]; the network after each epoch."""
    torch.manual_seed(seed)
    network = ImageClassifier(int(labels.max()) + 1)
    steps = epochs * math.ceil(len(images) / batch)
    opt = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.2, total_steps=steps, pct_start=0.2)
    for _epoch in range(epochs):
        network.train()
        for some in torch.randperm(len(images)).split(batch):
            logits = network.classify(augment(images[some]))
            loss = torch.nn.functional.cross_entropy(logits, labels[some], label_smoothing=0.05)
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
        yield network


def load(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All images [N, 3, H, W] as uint8 and their classes [N]."""
    from stylegan2_compress.host import datasets

    training_set, _kwargs = datasets.open_training_set(data)
    images = np.stack([training_set[index][0] for index in range(len(training_set))])
    labels = np.stack([training_set.get_label(index) for index in range(len(training_set))]).argmax(axis=1)
    return torch.from_numpy(images).expand(-1, 3, -1, -1), torch.from_numpy(labels)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Mirror half the batch and shift it by up to an eighth of its side."""
    flip = torch.rand(len(images)) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    side = images.shape[3]
    margin = side // 8
    dx, dy = torch.randint(2 * margin + 1, [2]).tolist()
    padded = torch.nn.functional.pad(normalise(images), [margin] * 4, mode='reflect')
    return padded[:, :, dy : dy + side, dx : dx + side]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as our embeddings hand them to a TorchScript file."""
    from stylegan2_compress.embeddings.preprocessing import LIKELY

    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (LIKELY.mean, LIKELY.std))
    return (images.float() / 255 - mean) / std


@torch.no_grad()
def measure(network: ImageClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose class is recognised."""
    network.eval()
    correct = [
        (network.classify(normalise(x)).argmax(1) == y).sum()
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return (sum(correct) / len(images)).item()


@click.command()
@click.option('--data', required=True, metavar='ZIP', help='Labelled dataset in the host’s format.')
@click.option('--outdir', required=True, metavar='DIR')
@click.option('--epochs', default=6, show_default=True)
@click.option('--seed', default=0, show_default=True)
def main(data: str, outdir: str, epochs: int, seed: int) -> None:
    host.activate()
    os.makedirs(outdir, exist_ok=True)
    print(json.dumps(train(data, outdir, epochs, seed)))


if __name__ == '__main__':
    main()
