"""A row for a model of one's own: from an nn.Module to a report in the current folder.

python own_model.py [NUM_IMAGES]
"""

import sys

from torch import Tensor, nn

import cmrepro


class MyModel(nn.Module):
    """The consistency function of independent normal pixels; put your network in its place."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Clean images in [-1, 1] of noisy images x_t = x + t z, (B, 3, 32, 32), and t (B,)."""
        mean, std, sigma_min = -0.05, 0.5, 0.002  # of CIFAR-10's pixels
        scale = ((std**2 + sigma_min**2) / (std**2 + t**2)).sqrt()
        return mean + scale[:, None, None, None] * (x_t - mean)


num_images = int(sys.argv[1]) if sys.argv[1:] else 2000  # as many as the protocol needs
model = cmrepro.wrap(
    MyModel(),
    image_size=32,
    two_step_time=0.8,  # or give all times: cmrepro.sample(model, steps=[80, 2, 0.8])
    model="my-model",  # its name in the report
    dataset="cifar10-jpeg-train",  # what it was trained on, for the comparison with the paper
    images_seen=50_000,
)
for seed in range(3):
    for steps in (1, 2):
        images = cmrepro.sample(model, steps, num_images, seed)  # uint8 (N, 32, 32, 3)
        record = cmrepro.evaluate(images, protocol="embedded", num_images=num_images)
        cmrepro.save(record, images)
print(cmrepro.results()[["model", "nfe", "seeds", "fid", "fid_low", "fid_high"]])
print(f"wrote {cmrepro.report()} and results/site/index.html")
