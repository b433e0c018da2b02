"""Scores of image sets: features, Fréchet distance, IS, KID, precision and recall.

Notation, used by every module of this package:

- images: uint8 (N, H, W, 3), RGB, 0-255; N is `num_images`.
- features: float32 (N, D), the pooled output of a frozen extractor; logits: float32 (N, K).
- mu (D,), sigma (D, D): mean and covariance (ddof = 1) of features, float64.
- generated, real: the set under test and the data it is compared with, always in this order.
- M: the number of real images whose features a reference file stores (for KID, precision, recall).
"""
