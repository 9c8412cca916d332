"""The 70×70 patch discriminator (docs/method.md section 1)."""

from torch import Tensor, nn

from fastsketch.nn.blur import BlurDownsample
from fastsketch.nn.convolution import WinogradConv2d
from fastsketch.nn.init import init_weights
from fastsketch.nn.instance_norm import InstanceNorm


class PatchDiscriminator(nn.Module):
    """Antialiased PatchGAN discriminator with CUT's layer names [L: pix2pix, CVPR 2017; CUT, ECCV 2020].

    Args:
        in_channels: of the picture judged.
        width: channels after the first layer.
        layers: downsampling layers; 3 sees 70×70 pixels.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        model: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, padding=1), nn.LeakyReLU(0.2), BlurDownsample(width)]
        channels = width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, 8)
            model += [WinogradConv2d(channels, wider, 4, padding=1), InstanceNorm(wider, 0.2), nn.Identity()]
            if layer < layers:
                model.append(BlurDownsample(wider))
            channels = wider
        model.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.model = nn.Sequential(*model)
        init_weights(self)

    def forward(self, image: Tensor) -> Tensor:
        """Judge [B, C, H, W] in [-1, 1]: one unbounded score a patch, [B, 1, h, w]."""
        return self.model(image)
