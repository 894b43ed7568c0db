"""Log-probabilities under the frozen reference: computed once per packed row, kept on disk, found again by content."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sempa.batching.packing import PreferenceRow
from sempa.errors import SempaError
from sempa.io.files import cache_folder, fingerprint
from sempa.io.tensors import read_tensors, write_tensors
from sempa.model.base import BaseModel, evaluating, weights_fingerprint
from sempa.model.lanes import lane_threads
from sempa.model.logprobs import sentence_logprobs
from sempa.model.lora import adapter_disabled
from sempa.training.processes import ALONE, World, any_sharing, merge_known


class Reference:
    """log π_ref(y|x) of the preferences in `rows`, `[count, responses]` float32 nats, each row computed on first use.

    The rows are looked at once, for the place on disk where an equal run would find them again, and not kept.
    `weights` is the base's `weights_fingerprint`; `lanes` is how many of them run at the same time.

    The reference sees the very rows that the policy sees, on as many threads, so that at step 0 both agree to the last
    bit even in bfloat16, which would round another packing differently. Where the policy's rows share a pass with
    others in bfloat16, the objective asks the base there and then instead.
    """

    def __init__(
        self, base: BaseModel, rows: Iterable[PreferenceRow], count: int, world: World = ALONE, lanes: int = 1
    ) -> None:
        self.model, self.world = base.model, world
        self.weights = weights_fingerprint(base)
        # Without rows nothing will be asked for: an objective that ranks none, or that samples its own.
        responses, layout = 0, []
        for row in rows:
            responses = row.lengths.shape[1]
            layout.append(fingerprint(row.examples, row.row.tokens, row.row.parents))
        threads = lane_threads(lanes) if lanes > 1 else None
        key = fingerprint(self.weights, base.model.dtype, base.model.device.type, torch.__version__, threads, layout)
        self.path = cache_folder() / "reference" / f"{key}.safetensors"
        self.logprobs = self._read((count, responses))
        self.unsaved = False

    def __call__(self, packed: PreferenceRow) -> Tensor:
        """`[examples, responses]` of one row, on the model's device."""
        examples = list(packed.examples)
        unknown = bool(self.logprobs[examples].isnan().any())
        if any_sharing(unknown, self.world, self.model.device):
            self.logprobs[examples] = self.compute(packed).cpu()
            self.unsaved = True
        return self.logprobs[examples].to(self.model.device)

    @torch.no_grad()
    def compute(self, packed: PreferenceRow) -> Tensor:
        """The same of a row that is not among those kept: sampled responses are met but once."""
        with evaluating(self.model), adapter_disabled(self.model):
            return sentence_logprobs(self.model, packed).float()

    def save(self) -> None:
        """Keep what has been computed so far, by all processes, for the next run on the same data and model."""
        self.logprobs = merge_known(self.logprobs, self.world)
        if self.unsaved and self.world.leads:
            write_tensors(self.path, {"logprobs": self.logprobs})
            self.unsaved = False

    def _read(self, shape: tuple[int, int]) -> Tensor:
        try:
            kept = read_tensors(self.path)["logprobs"]
        except (SempaError, KeyError):
            kept = torch.empty(0)
        # A damaged or missing file only costs its computation again.
        return kept if kept.shape == shape else torch.full(shape, torch.nan)
