"""Networks F(x, c_noise, labels) behind the consistency function and the EDM denoiser.

x is an image batch (B, C, H, W) scaled by c_in, c_noise (B,) is ln(t) / 4 (Karras et al. 2022,
Table 1), labels are (B,) int64 exactly when the network has classes; F has the shape of x. A
checkpoint names the entry of `presets.PRESETS` that builds its network.
"""
