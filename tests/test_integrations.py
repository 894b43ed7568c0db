"""Other people's tools get the embedder's vectors, and mteb its result files."""

import asyncio
import json

import numpy as np
import pytest
import torch
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from sempa import Embedder, SempaError
from sempa.data.sts import StsTask, caption_pairs
from sempa.evaluation.sts import evaluate_sts
from sempa.integrations.documents import DocumentEmbeddings
from sempa.model.lora import add_lora, lora_parameters

SENTENCES = ["A man runs.", "Two small dogs are chasing a red ball", "Hi"]


@pytest.fixture(scope="module")
def embedder(tiny_folder):
    return Embedder(str(tiny_folder), dtype="float32", device="cpu")


def test_documents_and_queries_are_the_embedders_unit_vectors_as_lists(embedder):
    embeddings = DocumentEmbeddings(embedder, batch_size=2)
    expected = embedder.encode(SENTENCES, normalize=True)
    documents = embeddings.embed_documents(SENTENCES)
    np.testing.assert_allclose(documents, expected, rtol=1e-5, atol=1e-6)
    assert isinstance(documents, list) and isinstance(documents[0], list) and isinstance(documents[0][0], float)
    np.testing.assert_allclose(embeddings.embed_query(SENTENCES[1]), expected[1], rtol=1e-5, atol=1e-6)
    assert embeddings.embed_documents([]) == []
    with pytest.raises(SempaError, match="is empty"):
        embeddings.embed_query(" ")


def test_options_of_encode_reach_the_vectors_of_a_store(embedder):
    embeddings = DocumentEmbeddings(embedder, on_empty="zero", dim=8)
    found = np.array(embeddings.embed_documents([*SENTENCES, " "]))
    np.testing.assert_allclose(found[:-1], embedder.encode(SENTENCES, normalize=True, dim=8), rtol=1e-5, atol=1e-6)
    assert not found[-1].any()
    found = DocumentEmbeddings(embedder, normalize=False).embed_query(SENTENCES[0])
    np.testing.assert_allclose(found, embedder.encode(SENTENCES[0]), rtol=1e-5, atol=1e-6)


def test_the_same_from_an_event_loop(embedder):
    embeddings = DocumentEmbeddings(embedder)

    async def both():
        return await asyncio.gather(embeddings.aembed_documents(SENTENCES), embeddings.aembed_query(SENTENCES[0]))

    documents, query = asyncio.run(both())
    np.testing.assert_allclose(documents, embedder.encode(SENTENCES, normalize=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(query, documents[0], rtol=1e-5, atol=1e-6)


def test_a_single_string_is_no_list_of_documents(embedder):
    with pytest.raises(SempaError, match="found one string, expected a list of them; embed_query takes one"):
        DocumentEmbeddings(embedder).embed_documents("Hello")


def test_a_store_of_langchain_finds_by_it(embedder):
    embeddings = DocumentEmbeddings(embedder)
    assert isinstance(embeddings, Embeddings)
    store = InMemoryVectorStore(embeddings)
    store.add_texts(SENTENCES)
    (found,) = store.similarity_search(SENTENCES[1], k=1)
    assert found.page_content == SENTENCES[1]
    (found,) = asyncio.run(store.asimilarity_search(SENTENCES[2], k=1))
    assert found.page_content == SENTENCES[2]


def test_llama_index_gets_the_same_vectors(embedder):
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from sempa.integrations.llama_index import LlamaIndexEmbedding

    assert LlamaIndexEmbedding(embedder).model_name == LlamaIndexEmbedding(embedder).model_name
    assert LlamaIndexEmbedding(embedder).model_name != LlamaIndexEmbedding(embedder, dim=8).model_name

    theirs = LlamaIndexEmbedding(embedder, batch_size=2)
    assert isinstance(theirs, BaseEmbedding)
    expected = embedder.encode(SENTENCES, normalize=True)
    for found in (
        theirs.get_text_embedding_batch(SENTENCES),
        asyncio.run(theirs.aget_text_embedding_batch(SENTENCES)),
        [theirs.get_query_embedding(sentence) for sentence in SENTENCES],
        [asyncio.run(theirs.aget_query_embedding(sentence)) for sentence in SENTENCES],
        [asyncio.run(theirs.aget_text_embedding(sentence)) for sentence in SENTENCES],
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not any(LlamaIndexEmbedding(embedder, on_empty="zero").get_text_embedding(" "))


@pytest.fixture(scope="module")
def wrapper():
    pytest.importorskip("mteb", reason="mteb is not installed")
    from sempa.integrations import mteb

    return mteb


def test_mteb_runs_a_local_task_to_the_score_of_our_own_protocol_and_writes_its_files(embedder, wrapper, tmp_path):
    tasks = [StsTask("my pairs", caption_pairs("test", 30)), StsTask("others", caption_pairs("dev", 20))]
    scores = wrapper.evaluate_mteb(embedder, tasks, tmp_path, "me/tiny", batch_size=7)
    ours = evaluate_sts(embedder.encode, tasks)
    assert list(scores) == ["local-my-pairs", "local-others"]
    for result, score in zip(ours, scores.values(), strict=True):
        assert 100 * score == pytest.approx(result.score, abs=0.05)
    revision = wrapper.MtebEncoder(embedder, "me/tiny").mteb_model_meta.revision
    folder = tmp_path / "results" / "me__tiny" / revision
    written = json.loads((folder / "local-my-pairs.json").read_text())
    assert written["task_name"] == "local-my-pairs"
    # The file holds six digits.
    assert written["scores"]["test"][0]["main_score"] == pytest.approx(scores["local-my-pairs"], abs=1e-6)
    assert json.loads((folder / "model_meta.json").read_text())["embed_dim"] == 32


def test_a_local_file_is_not_filed_as_mtebs_own(embedder, wrapper, tmp_path):
    task = StsTask("STS12", caption_pairs("test", 20))
    assert list(wrapper.evaluate_mteb(embedder, [task], tmp_path)) == ["local-STS12"]
    assert not list(tmp_path.rglob("STS12.json"))


def test_mteb_tasks_of_one_name_are_refused(embedder, wrapper, tmp_path):
    twins = [StsTask(name, caption_pairs("test", 20)) for name in ("my pairs", "my-pairs")]
    with pytest.raises(SempaError, match="tasks: local-my-pairs is given twice"):
        wrapper.evaluate_mteb(embedder, twins, tmp_path)
    assert not list(tmp_path.iterdir())


def test_mteb_does_not_run_again_what_has_a_result(embedder, wrapper, tmp_path, monkeypatch):
    tasks = [StsTask("pairs", caption_pairs("test", 20))]
    first = wrapper.evaluate_mteb(embedder, tasks, tmp_path)
    monkeypatch.setattr(wrapper.MtebEncoder, "encode", lambda *a, **k: pytest.fail("was run again"))
    # The file holds six digits.
    assert wrapper.evaluate_mteb(embedder, tasks, tmp_path) == pytest.approx(first, abs=1e-6)


def test_mteb_runs_again_when_the_file_of_that_name_holds_other_pairs(embedder, wrapper, tmp_path):
    before, after = (StsTask("pairs", caption_pairs(split, 20)) for split in ("test", "dev"))
    wrapper.evaluate_mteb(embedder, [before], tmp_path)
    (fresh,) = wrapper.evaluate_mteb(embedder, [after], tmp_path / "other").values()
    (again,) = wrapper.evaluate_mteb(embedder, [after], tmp_path).values()
    assert again == fresh != wrapper.evaluate_mteb(embedder, [before], tmp_path)["local-pairs"]


def test_mtebs_old_result_stays_until_the_new_one_is_there(embedder, wrapper, tmp_path, monkeypatch):
    before, after = (StsTask("pairs", caption_pairs(split, 20)) for split in ("test", "dev"))
    wrapper.evaluate_mteb(embedder, [before], tmp_path)
    (kept,) = tmp_path.rglob("local-pairs.json")
    old = kept.read_bytes()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(wrapper.MtebEncoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wrapper.evaluate_mteb(embedder, [after], tmp_path)
    assert kept.read_bytes() == old


def test_the_revision_changes_with_adapter_readout_and_dtype(tiny_folder, embedder, wrapper):
    def revision(**options):
        made = Embedder(str(tiny_folder), device="cpu", **{"dtype": "float32", **options})
        return wrapper.MtebEncoder(made).mteb_model_meta.revision

    adapted = Embedder(str(tiny_folder), dtype="float32", device="cpu")
    add_lora(adapted.base.model, 2, 4)
    with torch.no_grad():
        list(lora_parameters(adapted.base.model).values())[1].fill_(0.1)
    revisions = [
        revision(),
        revision(readout="mean"),
        revision(layer=1),
        revision(dtype="bfloat16"),
        wrapper.MtebEncoder(adapted).mteb_model_meta.revision,
    ]
    assert len(set(revisions)) == 5
    assert revision() == revisions[0]


def test_the_revision_is_that_of_any_machine(embedder, wrapper, monkeypatch):
    here, real = wrapper.MtebEncoder(embedder).mteb_model_meta.revision, wrapper.describe

    def elsewhere(embedder):
        found = real(embedder)
        return found | {"settings": found["settings"] | {"device": "cuda"}}

    monkeypatch.setattr(wrapper, "describe", elsewhere)
    assert wrapper.MtebEncoder(embedder).mteb_model_meta.revision == here


def test_the_encoder_is_what_mteb_asks_for_and_takes_empty_texts(embedder, wrapper):
    from mteb.models import EncoderProtocol

    encoder = wrapper.MtebEncoder(embedder)
    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta.n_parameters == embedder.base.model.num_parameters()
    vectors = encoder.encode([{"text": SENTENCES[:2]}, {"text": ["", SENTENCES[2]]}], batch_size=2)
    np.testing.assert_allclose(vectors, embedder.encode([*SENTENCES[:2], ".", SENTENCES[2]]), rtol=1e-5, atol=1e-6)
    cosines = encoder.similarity(vectors, vectors[:2])
    assert cosines.shape == (4, 2)
    first, second = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[:2]
    assert cosines[0, 1].item() == pytest.approx(first @ second, abs=1e-5)
    pairwise = encoder.similarity_pairwise(vectors[:2], vectors[2:])
    torch.testing.assert_close(pairwise, encoder.similarity(vectors, vectors)[[0, 1], [2, 3]])
