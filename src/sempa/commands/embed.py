"""Embed the sentences of a file: one float32 row per sentence, in the file's order."""

import argparse

from sempa.commands.common import add_model_arguments, add_readout_arguments, at_least, load_embedder, model_files
from sempa.io.files import check_output, user_path
from sempa.io.rows import many


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = "Any corpus: sempa embed corpus.jsonl.gz vectors --shard-rows 16384; the same command resumes it."
    add_model_arguments(parser)
    add_readout_arguments(parser)
    text = "UTF-8 text, one sentence per line; JSON lines, CSV, TSV, parquet or a datasets folder; - is standard input"
    parser.add_argument("input", type=user_path, help=text)
    text = "file to write: .npy (NumPy array [n, D]), .csv, .safetensors or .parquet; with --shard-rows a folder"
    parser.add_argument("output", type=user_path, help=text)
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="sentences at a time (default %(default)s)")
    parser.add_argument("--normalize", action="store_true", help="scale every embedding to length 1")
    parser.add_argument("--skip-empty", action="store_true", help="leave empty sentences out (default: an error)")
    parser.add_argument("--field", help="the sentences' column or field (default: text, where the input has fields)")
    parser.add_argument("--shard-rows", type=at_least(1), metavar="N", help="stream into a folder of files of N rows")
    formats = ("safetensors", "npy", "parquet")
    parser.add_argument("--shard-format", choices=formats, default=formats[0], help="shard format (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Embed the input's sentences and write the vectors."""
    from sempa.data.sentences import read_sentences
    from sempa.embedding.corpus import check_lengths
    from sempa.embedding.files import check_vectors_name, write_vectors

    if arguments.shard_rows is not None:
        _write_shards(arguments)
        return
    check_vectors_name(arguments.output)
    check_output(arguments.output, arguments.input, *model_files(arguments))
    numbered = list(read_sentences(arguments.input, arguments.field, skip_empty=arguments.skip_empty))
    embedder = load_embedder(arguments)
    sentences = list(check_lengths(embedder, arguments.input, numbered))
    vectors = embedder.encode(sentences, arguments.batch_size, show_progress=True, normalize=arguments.normalize)
    write_vectors(arguments.output, vectors)
    print(f"{many(len(vectors), 'embedding')} of {vectors.shape[1]} dimensions: {arguments.output}")


def _write_shards(arguments: argparse.Namespace) -> None:
    from sempa.embedding.corpus import embed_corpus

    names = ("shard_rows", "shard_format", "batch_size", "normalize", "field", "skip_empty")
    options = {name: getattr(arguments, name) for name in names}
    try:
        manifest = embed_corpus(load_embedder(arguments), arguments.input, arguments.output, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command continues after the last whole shard") from None
    rows, shards = many(manifest["settings"]["input"]["rows"], "embedding"), many(len(manifest["shards"]), "shard")
    print(f"{rows} of {manifest['dimensions']} dimensions in {shards}: {arguments.output}")
