"""Networks F(x, c_noise, labels) behind the consistency function and the EDM denoiser.

Every network takes an image batch already scaled by c_in, the noise level as
c_noise = ln(t) / 4 (Karras et al. 2022, Table 1) and optional class labels, and returns an image
batch of the same shape. A checkpoint names the entry of `presets.PRESETS` that builds its network.
"""
