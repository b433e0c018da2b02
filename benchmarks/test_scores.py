"""Images and scores of fixed seeds against the stored ones.

The whole way of the demo: bundled checkpoint, two-step sampling, extractor, stored statistics.
Few images: these scores only stand for themselves. KID, precision and recall are in
test_metrics_speed, on features that do not depend on the platform: a share of 200 images
moves by half a percent when one image changes sides.
"""

import hashlib

import cmrepro

NUM_IMAGES = 200


def test_two_step_images_and_scores(benchmark, gate):
    model = cmrepro.load("demo-cifar10-cd")

    def run():
        images = cmrepro.sample(model, steps=2, num_images=NUM_IMAGES, seed=0)
        return images, cmrepro.evaluate(images, "embedded", NUM_IMAGES)

    images, record = benchmark.pedantic(run, rounds=1)
    gate.images("two-step images of demo-cifar10-cd", hashlib.sha256(images.tobytes()).hexdigest())
    for metric in ("fid", "is"):
        gate.score(f"{metric} of two-step images of demo-cifar10-cd", record.scores[metric])
