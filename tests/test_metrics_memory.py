"""Scoring needs no more memory for more images, beyond the features that metrics need."""

import subprocess
import sys

import numpy as np
import pytest

DIM = 64

# A sample set is read from its file and scored with an extractor that costs nothing.
SCRIPT = f"""
import resource, sys
import numpy as np
from cmrepro.data import open_images
from cmrepro.metrics import accumulate, evaluate
from cmrepro.metrics.extractors import Features
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_files import ReferenceStatistics

def extract(batch, extractor):
    features = batch.reshape(len(batch), -1)[:, :{DIM}].astype(np.float32)
    return Features(features, features)

accumulate.load_extractor = lambda settings, device: settings
accumulate.extract = extract
embedded = load_protocol("embedded")
extractor = embedded.extractor.replace(feature_dim={DIM}, num_logits={DIM})
count = int(sys.argv[2])
metrics = tuple(sys.argv[3].split(","))
protocol = embedded.replace(
    extractor=extractor, num_images=count, metrics=metrics,
    stored_features={{"num_images": 500, "seed": 0}}
)
real = np.random.default_rng(1).normal(128, 74, (500, {DIM})).astype(np.float32)
statistics = ReferenceStatistics(
    real.mean(0, np.float64), np.cov(real, rowvar=False), real
)
images = open_images(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
[scores] = evaluate.score(images, [evaluate.Task(protocol, statistics)])
assert scores.num_images == count
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metrics", "kept_bytes"),
    [("fid", 0), ("fid,is", 4 * DIM), ("fid,is,precision,recall", 2 * 4 * DIM)],
)
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, metrics, kept_bytes):
    """5,000 and 50,000 images of 12 kB, 60 and 600 MB in their files."""
    growth = {}
    for count in (5_000, 50_000):
        path = tmp_path / f"{count}.npz"
        np.savez(path, np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8))
        output = subprocess.run(
            [sys.executable, "-c", SCRIPT, path, str(count), metrics],
            capture_output=True,
            text=True,
            check=True,
        )
        growth[count] = int(output.stdout)
        path.unlink()
    kept = (50_000 - 5_000) * kept_bytes
    # 16 MB: the allocator's slack. The images themselves are 540 MB more. Twice what is kept: IS
    # and the manifolds work on copies of logits and features.
    assert growth[50_000] - growth[5_000] < 2 * kept + 16e6
