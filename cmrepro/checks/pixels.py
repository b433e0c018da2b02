"""Faults that pixels alone show: value range, JPEG, resampling, rounding."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmrepro.checks.findings import Finding, beyond, likelihood

Images = NDArray[np.uint8]

JPEG_QUALITIES = range(50, 99)
JPEG_STEP = 4  # qualities that far apart have other tables of quantisation
JPEG_IMAGES = 24
JPEG_LIMIT = 1.5

PERIOD_LIMIT = 0.25
SPECTRUM_BAND = (0.3, 0.5)  # cycles per pixel
SPECTRUM_LIMIT = 1.3


def value_range(images: Images) -> Finding | None:
    """Whether floats of another range were made uint8 (N, H, W, 3).

    Floats in [0, 1] or [-1, 1] that are cast take the values 0, 1 and 255 alone. Floats in [0, 1]
    taken for [-1, 1] leave the levels below 127 empty, and floats in [-1, 1] taken for [0, 1] put
    all of the dark half to 0. Of the values of CIFAR-10 images 0.5 % are 0 or 1, 1 % are 255 and
    half are below 127; the limits leave room for dark or bright data.
    """
    shares = np.bincount(images.ravel(), minlength=256) / images.size
    ends, dark, zero = shares[[0, 1, 255]].sum(), shares[:127].sum(), shares[0]
    if ends > 0.9:
        return Finding(
            "value-range", f"{ends:.1%} of the values are 0, 1 or 255", "below 90 %", 1.0
        )
    if dark < 0.001:
        return Finding(
            "value-range", f"{dark:.2%} of the values are below 127", "above 0.1 %", 1.0
        )
    return beyond("value-range", zero, 0.25, f"{zero:.1%} of the values are 0", "below 25 %")


def compressed(images: Images, quality: int, subsampling: int) -> Images:
    """The images after JPEG; subsampling of colours 0 (none) or 2 (halved both ways)."""
    result = np.empty_like(images)
    for image, out in zip(images, result, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        out[...] = np.asarray(Image.open(buffer))
    return result


class JpegTrace(NamedTuple):
    """A trace of JPEG.

    Attributes:
        strength: How many times less images change by JPEG of this quality than of others.
        quality: Of Pillow's encoder.
        subsampling: Of colours: 0 (none) or 2 (halved both ways).
    """

    strength: float
    quality: int
    subsampling: int


def jpeg_trace(images: Images) -> JpegTrace:
    """How much less the images change by JPEG of one quality than of its neighbours.

    Images that were compressed once hardly change when they are compressed the same way again
    (Farid 2009, "Exposing digital forgeries from JPEG ghosts").

    Args:
        images: uint8 (N, H, W, 3); the first `JPEG_IMAGES` are taken.

    Returns:
        The quality where the geometric mean of the squared changes at qualities 4 lower and
        higher, over that at the quality itself, is greatest; about 1 without a trace.
    """
    sample = images[:JPEG_IMAGES]
    best = JpegTrace(0.0, 0, 0)
    for subsampling in (0, 2):
        change = {
            quality: float(
                np.square(compressed(sample, quality, subsampling) - sample.astype(float)).mean()
            )
            for quality in JPEG_QUALITIES
        }
        for quality in JPEG_QUALITIES[JPEG_STEP:-JPEG_STEP]:
            around = (change[quality - JPEG_STEP] * change[quality + JPEG_STEP]) ** 0.5
            strength = around / max(change[quality], 1e-9)
            best = max(best, JpegTrace(strength, quality, subsampling))
    return best


def jpeg(trace: JpegTrace, real: Images) -> Finding | None:
    """Whether images were JPEG and the real ones (N, H, W, 3) were not, by the traces of both.

    The limit is 1.5 times the trace of the real images: CIFAR-10 images never compressed have
    1.00, compressed with quality 62, 75 and 90 they have 38, 19 and 216.
    """
    if trace.strength < JPEG_LIMIT:
        return None
    limit = JPEG_LIMIT * max(1.0, jpeg_trace(real).strength)
    colours = "4:2:0" if trace.subsampling else "4:4:4"
    measured = (
        f"images change {trace.strength:.1f} times less by JPEG of quality {trace.quality}, "
        f"{colours}, than of neighbouring ones"
    )
    return beyond("jpeg", trace.strength, limit, measured, f"below {limit:.1f} times")


def period(images: Images) -> float:
    """How much the strength of edges changes from one column or row to the next.

    The mean squared difference of neighbouring pixels, by its place, is smooth in real images.
    Interpolation weights pixels by place and makes it periodic (Gallagher 2005, "Detection of
    linear and cubic interpolation in JPEG compressed images"). Places at the borders of JPEG's
    blocks are left out.

    Returns:
        Median over places of the deviation of its logarithm from the mean of both neighbours.
    """
    grey = images.astype(np.float32).mean(axis=-1)
    deviations = []
    for axis in (1, 2):
        edges = np.square(np.diff(grey, axis=axis)).mean(axis=(0, 3 - axis))
        logarithm = np.log(edges + 1e-3)  # a thousandth of a squared grey level: exact copies
        bend = logarithm[1:-1] - (logarithm[:-2] + logarithm[2:]) / 2
        places = np.arange(1, len(bend) + 1) % 8
        deviations.append(np.abs(bend[(places != 0) & (places < 6)]))
    return float(np.median(np.concatenate(deviations)))


def high_frequencies(images: Images) -> float:
    """Mean power of the images between 0.3 and 0.5 cycles per pixel over that at 0.1 to 0.3."""
    grey = images.astype(np.float32).mean(axis=-1)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    height, width = grey.shape[1:]
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.square(np.abs(np.fft.fft2(grey * window))).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    low, high = SPECTRUM_BAND
    band = power[(frequency >= low) & (frequency < high)].mean()
    return float(band / power[(frequency >= 0.1) & (frequency < low)].mean())


def resize(images: Images, real: Images | None) -> Finding | None:
    """Whether images (N, H, W, 3) were enlarged, or resized by another filter than real ones.

    `period` of CIFAR-10 images, also of JPEG, is below 0.06, and 0.32 or more when they were
    enlarged from 16 px by any filter, or from 24 px by an unsmooth one. Smooth filters from 24 px
    have 0.16 to 0.19, but so have images of networks that work on patches of 2 px: up to 0.20.
    There the power of high frequencies beside that of real images tells: 500 test and training
    images differ by 1 %, JPEG moves it by 1 %, and halving their size takes it to 0.91 (box), 0.76
    (bicubic), 0.50 (bilinear) or 1.38 (nearest pixel) times that of the box filter. A generator
    may be sharper or softer by itself, so that the latter is never called more than possible.
    """
    periodic, limit = period(images), PERIOD_LIMIT
    measured = f"edges change by {periodic:.2f} (logarithm) from one column to the next"
    finding = beyond("resize", periodic, limit, measured, f"below {limit}")
    if finding is not None or real is None or real.shape[1:] != images.shape[1:]:
        return finding
    ratio, limit = high_frequencies(images) / high_frequencies(real), SPECTRUM_LIMIT
    measured = f"{ratio:.2f} times the real images' power at high frequencies"
    clean = f"{1 / limit:.2f} to {limit}"
    return beyond("resize", max(ratio, 1 / ratio), limit, measured, clean, most=0.74)


def rounding(stored: Images, resampled: Mapping[str, Images], asked: str) -> Finding | None:
    """Whether images were made uint8 by another rule than asked for.

    Args:
        stored: The images given, (N, H, W, 3).
        resampled: The same ones sampled again, by rule ("round", "truncate").
        asked: The protocol's rule. Images that no rule gives again tell nothing: from uint8
            alone the two rules cannot be told apart, half a level of brightness is within what
            generators differ by.
    """
    equal = {rule: float((stored == images).mean()) for rule, images in resampled.items()}
    rule = max(equal, key=lambda name: equal[name])
    if rule == asked or equal[rule] < 0.9:  # rounding of sums on another machine costs 1 %
        return None
    return Finding(
        "rounding",
        f"{equal[rule]:.1%} of the values are those of rule '{rule}', {equal[asked]:.1%} those of "
        f"'{asked}'",
        f"nearly all those of '{asked}'",
        likelihood(equal[rule], equal[asked]),
    )
