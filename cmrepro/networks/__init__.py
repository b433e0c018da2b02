"""Networks F(x, c_noise, labels) behind the consistency function and the EDM denoiser.

Every network takes x, an image batch (B, C, H, W) scaled by c_in, the noise level c_noise (B,),
which is ln(t) / 4 (Karras et al. 2022, Table 1), and labels, (B,) int64 exactly when it has
classes. It returns an image batch of the same shape. Height and width divide by the down-sampling
factor of the last level. A checkpoint names the entry of `presets.PRESETS` that builds its
network.
"""
