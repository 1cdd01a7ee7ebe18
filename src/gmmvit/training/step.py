"""One step of a training: forward, loss, backward, optimiser, average; on one GPU recorded once and then replayed.

Letters: B batch, C channels, H x W pixels, K classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gmmvit.config import Recipe
from gmmvit.distributed import Team
from gmmvit.tasks import ONE_LABEL, Task
from gmmvit.training.optim import Average

# Inputs float32 [B, C, H, W] and soft targets float32 [B, K], once or `accumulate` times.
Parts = Sequence[tuple[Tensor, Tensor]]
EAGER_STEPS = 3  # before a step is recorded: they compile kernels, choose algorithms and make the optimiser's state


class TrainingError(RuntimeError):
    """A training that cannot go on; one sentence."""


def recordable(recipe: Recipe, device: torch.device, team: Team) -> bool:
    """Whether a whole step becomes one CUDA graph: gradients that processes exchange stay outside of graphs."""
    return recipe.cuda_graph and device.type == "cuda" and team.size == 1


class Step:
    """One step of a training, called with its parts and the number of images of the whole team.

    Adds the sum of the losses, the hits and the number of images to `sums`, on the device. Reads nothing back and
    depends on no number of the host that changes between steps (the rates are tensors, see `optim`), so the same code
    runs eagerly and, if `recordable`, as a CUDA graph. The steps before the recording are eager steps of the training
    itself, so recording changes neither weights nor random numbers.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        scaler: torch.amp.GradScaler,
        recipe: Recipe,
        dtype: torch.dtype,
        device: torch.device,
        team: Team,
        task: Task = ONE_LABEL,
    ) -> None:
        self.forward, self.model, self.optimizer, self.average, self.scaler = forward, model, optimizer, average, scaler
        self.recipe, self.dtype, self.device, self.team, self.task = recipe, dtype, device, team, task
        self._exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        self.sums = torch.zeros(3, dtype=self._exact, device=device)  # loss, hits, images
        self._records = recordable(recipe, device, team)
        # Graphs of torch.compile free the memory of gradients when the next one starts.
        self._keeps_gradients = recipe.compile and recipe.accumulate > 1 and not self._records
        self.forget()

    def forget(self) -> None:
        """Starts over as if no step had been taken; call it when other tensors replace the optimiser's."""
        self.taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static: list[Tensor] = []  # what the graph reads: inputs and targets in turn

    def __call__(self, parts: Parts, images: int) -> None:
        if self._records:
            self._replayed(parts, images)
        else:
            self.take(parts, images)
        self.taken += 1

    def take(self, parts: Parts, images: int) -> None:
        """The step, operation by operation."""
        for inputs, targets in parts:
            if self.recipe.compile and not self._records:
                torch.compiler.cudagraph_mark_step_begin()  # the last step's results are no longer needed
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                logits = self.forward(inputs)
                loss = self.task.loss(logits.float(), targets)
            # The team averages its gradients; the gradient of the batch is the sum of all shares.
            self.scaler.scale(loss * (len(inputs) * self.team.size / images)).backward()
            if self._keeps_gradients and self.taken == 0:
                self._own_gradients()
            hits = self.task.hits(logits.detach(), targets)
            count = loss.new_full((), len(inputs), dtype=self._exact)
            self.sums += torch.stack([loss.detach().to(self._exact) * count, hits.to(self._exact), count])
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _own_gradients(self) -> None:
        """Moves gradients into memory of their own, where later ones are added."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:  # None if no loss reaches it: then no decay either
                parameter.grad = parameter.grad.clone()

    def _replayed(self, parts: Parts, images: int) -> None:
        given = [tensor for part in parts for tensor in part]
        if not self._static:
            self._static = [torch.empty_like(tensor) for tensor in given]
            self._stream = torch.cuda.Stream(self.device)
        torch._foreach_copy_(self._static, given)
        static = list(zip(self._static[::2], self._static[1::2], strict=True))
        if self.taken < EAGER_STEPS:  # on the recording's stream: libraries keep a workspace per stream
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                self.take(static, images)
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = self._recorded(static, images)
        self._graph.replay()

    def _recorded(self, static: Parts, images: int) -> torch.cuda.CUDAGraph:
        """The step as a graph; recording it runs nothing on the device."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread: a logger may run others.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self.take(static, images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TrainingError(
                f"a step of {self.recipe.model} cannot be recorded as a CUDA graph ({reason}); train with "
                "--no-cuda-graph"
            ) from error
        return graph
