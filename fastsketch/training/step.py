"""One training step: all of it on the device, so that it can run ahead of the host and be captured in a CUDA graph.

Nothing here asks the device for a value where that would wait for it, and no random number comes from the host. A loss
or gradient that is not finite raises a flag on the device, which stays up and lets no further update through, so the
weights are those before the bad batch whenever the host comes to look.
"""

import contextlib
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.optim import Adam

from fastsketch.training.config import TrainConfig
from fastsketch.training.distributed import World
from fastsketch.training.speed import Speed
from fastsketch.training.translator import Translator


class TrainingStep:
    """Networks with their optimisers, and one update of all of them.

    Args:
        translator: on its device.
        config: the run's settings.
        speed: its switches, resolved.
        world: the processes of the run.

    Attributes:
        optimizers: "generator" (with the projection) and "discriminator".
        rng: source of all random numbers of a step; seed it before.
        broken: float32 scalar on the device, 1 once something was not finite.
    """

    def __init__(self, translator: Translator, config: TrainConfig, speed: Speed, world: World) -> None:
        self.translator, self.speed, self.world = translator, speed, world
        self.device = next(translator.parameters()).device
        self.rng = torch.Generator(self.device)
        self.broken = torch.zeros((), device=self.device)
        if speed.channels_last:
            translator.to(memory_format=torch.channels_last)
        translator.use_winograd(speed.winograd)

        trained = [translator.generator, *([translator.projection] if config.lambda_nce else [])]
        self._draw = self._shared(_compiled(translator.translate, speed), trained)
        self._judge = self._shared(_compiled(translator.discriminator_loss, speed), [translator.discriminator])
        self._compare = _compiled(translator.generator_losses, speed)
        self.optimizers = {
            "generator": self._adam([translator.generator, translator.projection], config),
            "discriminator": self._adam([translator.discriminator], config),
        }

    def _adam(self, modules: list[nn.Module], config: TrainConfig) -> Adam:
        # A captured step reads its learning rate from memory, where the host can change it.
        lr = torch.tensor(config.lr, device=self.device) if self.speed.cuda_graph else config.lr
        parameters = [p for module in modules for p in module.parameters()]
        fused = self.speed.fused_adam
        return Adam(parameters, lr, config.betas, fused=fused or None, capturable=self.speed.cuda_graph)

    def _shared(self, function: Callable, modules: list[nn.Module]) -> Callable:
        """The function of these modules, their gradients averaged over the processes where there are several."""
        if self.world.size == 1:
            return function
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch has another name for it
            # Buffers (the blurs) never change.
            return DistributedDataParallel(_Call(function, modules), broadcast_buffers=False)

    def set_learning_rate(self, rate: float) -> None:
        """For both optimisers."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def __call__(self, batch: dict[str, Tensor], flipped: bool) -> dict[str, Tensor]:
        """Update the discriminator, then generator and projection.

        Args:
            batch: as `Translator.translate`, on the device.
            flipped: FastCUT's mirrored turn.

        Returns:
            float32 scalars on the device by name, means over all processes: discriminator, then
            `Translator.generator_losses`.
        """
        translator = self.translator
        if self.speed.channels_last:
            batch = {
                n: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for n, x in batch.items()
            }
        drawn = batch["photo"].shape[0]
        with self._autocast():
            drawings, mask, features, flipped = self._draw(batch, self.rng, flipped)
            judged = self._judge(drawings[:drawn], batch["sketch"])
        self._update("discriminator", judged)

        with _frozen(translator.discriminator):
            with self._autocast():
                losses = self._compare(batch, drawings, mask, features, flipped, self.rng)
            self._update("generator", torch.stack([loss.float() for loss in losses.values()]).sum())
        names = ["discriminator", *losses]
        values = torch.stack([loss.detach().float() for loss in (judged, *losses.values())])
        return dict(zip(names, self.world.mean_(values).unbind(), strict=True))

    def _autocast(self) -> torch.autocast:
        half = self.speed.precision == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _update(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        size = get_total_norm([p.grad for p in parameters if p.grad is not None])
        # Another process's loss that is not finite shows in the gradient, which is the mean over all.
        finite = torch.isfinite(loss.detach()) & torch.isfinite(size)
        self.broken.copy_(torch.where(finite, self.broken, 1.0))
        if self.speed.fused_adam:
            optimizer.found_inf = self.broken
            optimizer.step()
        elif not self.broken:  # the plain optimiser cannot be told on the device: this waits for it
            optimizer.step()

    def load_optimizers(self, states: dict[str, dict]) -> None:
        """Put their state back; the switches stay as they are here, whatever they were when it was saved."""
        for name, optimizer in self.optimizers.items():
            kept = [{k: group[k] for k in ("lr", "fused", "capturable", "foreach")} for group in optimizer.param_groups]
            groups = [{**g, **k} for g, k in zip(states[name]["param_groups"], kept, strict=True)]
            optimizer.load_state_dict({**states[name], "param_groups": groups})
            for parameter, state in optimizer.state.items():  # fused Adam goes by memory: in the parameter's layout
                for moment in ("exp_avg", "exp_avg_sq"):
                    state[moment] = torch.empty_like(parameter).copy_(state[moment])


class _Call(nn.Module):
    """A function of modules as a module, which DistributedDataParallel wants.

    The encoder runs a second time outside of it (`encode_patches`), which is well: gradients are averaged once they
    are complete, after all uses.
    """

    def __init__(self, function: Callable, modules: list[nn.Module]) -> None:
        super().__init__()
        self.function = function
        self.modules_used = nn.ModuleList(modules)

    def forward(self, *arguments):
        return self.function(*arguments)


@contextlib.contextmanager
def _frozen(module: nn.Module):
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _compiled(function: Callable, speed: Speed) -> Callable:
    return torch.compile(function) if speed.compile else function
