"""`sempa embed`: the lines of a file as vectors."""

import argparse
from pathlib import Path

from sempa.commands.common import add_model_arguments, add_readout_arguments, load_embedder
from sempa.errors import SempaError


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "embed",
        help="embed sentences into a .npy, .csv, .safetensors or .parquet file, or a corpus into a folder of shards",
        description="Embed the sentences of a file: one float32 row per sentence, in the file's order.",
        epilog="A corpus of any size: sempa embed corpus.jsonl.gz vectors --shard-rows 16384; after an interruption "
        "the same command goes on where it stopped.",
    )
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument(
        "input",
        help="UTF-8 text file with one sentence per line, or a .jsonl, .csv, .tsv or parquet file or datasets folder "
        "with a column of sentences, or - for standard input",
    )
    parser.add_argument(
        "output",
        type=Path,
        help="file to write: .npy (NumPy array [n, D]), .csv, .safetensors or .parquet; with --shard-rows a folder; "
        "with --sparse .npz (SciPy CSR matrix [n, vocabulary])",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="sentences at a time (default %(default)s)")
    parser.add_argument("--normalize", action="store_true", help="scale every embedding to length 1")
    parser.add_argument("--field", default="text", help="column or field that holds the sentence (default text)")
    parser.add_argument(
        "--shard-rows", type=int, metavar="N", help="stream into a folder of files with N rows each and a manifest.json"
    )
    parser.add_argument(
        "--shard-format",
        choices=("safetensors", "npy", "parquet"),
        default="safetensors",
        help="file format of the shards (default %(default)s)",
    )
    parser.add_argument(
        "--sparse",
        type=int,
        metavar="K",
        help="K tokens of the vocabulary with weights in place of a dense vector: .npz",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Embed the input's lines and write the vectors."""
    from sempa.embedding.corpus import read_sentences
    from sempa.embedding.files import check_vectors_name, write_vectors

    if arguments.sparse is not None:
        _run_sparse(arguments)
        return
    if arguments.shard_rows is not None:
        _run_sharded(arguments)
        return
    check_vectors_name(arguments.output)
    sentences = list(read_sentences(Path(arguments.input), arguments.field))
    vectors = load_embedder(arguments).encode(sentences, arguments.batch_size, True, arguments.normalize)
    write_vectors(arguments.output, vectors)
    print(f"{len(vectors):,} embeddings of {vectors.shape[1]} dimensions: {arguments.output}")


def _run_sparse(arguments: argparse.Namespace) -> None:
    from sempa.embedding.corpus import read_sentences
    from sempa.sparse import encode_sparse, write_codes

    given = (arguments.readout, arguments.layer, arguments.shard_rows, arguments.normalize)
    if given != ("prompteol", -1, None, False):
        raise SempaError("--sparse: goes with PromptEOL at the last layer and one file, without --normalize")
    if arguments.output.suffix != ".npz":
        raise SempaError(f"output {arguments.output}: expected a name that ends in .npz for sparse embeddings")
    sentences = list(read_sentences(Path(arguments.input), arguments.field))
    base = load_embedder(arguments).base
    codes = encode_sparse(base, sentences, arguments.sparse, arguments.batch_size, show_progress=True)
    write_codes(arguments.output, codes)
    print(f"{codes.shape[0]:,} embeddings of {arguments.sparse:,} tokens: {arguments.output}")


def _run_sharded(arguments: argparse.Namespace) -> None:
    from sempa.embedding.corpus import embed_corpus

    if arguments.input == "-":
        raise SempaError("input -: shards are made from a file, which can be read again after an interruption")
    try:
        manifest = embed_corpus(
            load_embedder(arguments),
            Path(arguments.input),
            arguments.output,
            shard_rows=arguments.shard_rows,
            shard_format=arguments.shard_format,
            batch_size=arguments.batch_size,
            normalize=arguments.normalize,
            field=arguments.field,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on behind the last whole shard") from None
    rows, shards = manifest["settings"]["input"]["rows"], len(manifest["shards"])
    print(f"{rows:,} embeddings of {manifest['dimensions']} dimensions in {shards:,} shards: {arguments.output}")
