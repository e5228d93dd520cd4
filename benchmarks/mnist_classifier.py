"""Train the classifier that measures the quickstart's generators, on 4,000 of the 5,000 MNIST digits, on a CPU.

    python benchmarks/mnist_classifier.py --outdir stylegan2_compress/assets

Writes the weights and a JSON with the accuracy on the other 1,000 digits.
"""

import json
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

from stylegan2_compress.quickstart import digits, mnist


@click.command()
@click.option('--outdir', required=True, metavar='DIR')
@click.option('--epochs', default=20, show_default=True)
@click.option('--seed', default=0, show_default=True)
def main(outdir: str, epochs: int, seed: int) -> None:
    torch.manual_seed(seed)
    images, labels = digits.split(*mnist.load(), digits.TRAIN)
    network = digits.DigitClassifier()
    opt = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    batches = len(images) // 100
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=3e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        for batch in torch.randperm(len(images)).split(100):
            dx, dy = torch.randint(-2, 3, [2]).tolist()  # Digits are padded with black: rolling only moves them.
            logits = network(images[batch].roll((dy, dx), dims=(2, 3)))
            opt.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels[batch]).backward()
            opt.step()
            schedule.step()
        print(f'epoch {epoch + 1}: test accuracy {accuracy(network):.4f}', flush=True)
    outdir = Path(outdir)
    save_file(network.state_dict(), outdir / digits.ASSET)
    facts = dict(test_accuracy=accuracy(network), test_images=1000, training_images=4000, epochs=epochs, seed=seed)
    (outdir / digits.ASSET.replace('.safetensors', '.json')).write_text(json.dumps(facts, indent=2) + '\n')


@torch.no_grad()
def accuracy(network: digits.DigitClassifier) -> float:
    images, labels = digits.split(*mnist.load(), digits.TEST)
    correct = (network.eval()(images).argmax(1) == labels).float().mean().item()
    network.train()
    return correct


if __name__ == '__main__':
    main()
