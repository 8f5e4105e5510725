"""GLaMM's tokenizer files give the ids that its checkpoints were trained with."""

from __future__ import annotations

import json

import pytest
import sentencepiece
from golden_files import write_glamm_layout

from litelvlm.errors import ModelError
from litelvlm.models.language import load_tokenizer

TEXT = """It is a picture of a cat.
Please segment the red apple in this image.
The provides an overview of the picture.
A chat between a curious human and an assistant. USER: ASSISTANT:"""
ADDED = ["<im_start>", "<im_end>", "<bbox>", "<point>", "[SEG]", "<p>", "</p>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small tokenizer.model of LLaMA's kind and GLaMM's added tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(TEXT * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    count = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "tokenizer.model")
    ).get_piece_size()
    added = {text: count + number for number, text in enumerate(ADDED)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "It is",
        ".",
        "provides an overview of the picture.\nPlease segment the red apple",
        "a phrase with ümlauts, 日本 and 😀",
    ],
)
def test_pieces_of_a_prompt_get_the_ids_of_sentencepiece(folder, text):
    plain = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ours = load_tokenizer(folder)
    assert ours.encode(text, add_special_tokens=False) == plain.encode(text)


def test_the_added_tokens_keep_their_ids(folder):
    ours = load_tokenizer(folder)
    for text, number in json.loads((folder / "added_tokens.json").read_text()).items():
        assert ours.convert_tokens_to_ids(text) == number


def test_the_first_id_of_a_tokenised_seg_is_not_its_id(folder):
    """The trap that gives blank masks: tokenising "[SEG]" may put a space token first."""
    ours = load_tokenizer(folder)
    written = ours.encode("It is [SEG].", add_special_tokens=False)
    assert ours.convert_tokens_to_ids("[SEG]") in written
    assert "[SEG]" in ours.decode(written)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_numbers_seg_otherwise_than_the_model_is_refused(folder, tmp_path):
    """transformers numbers added tokens anew, without a word, where they do not follow the rest."""
    import litelvlm

    model = write_glamm_layout(tmp_path / "model")
    (model / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    with pytest.raises(ModelError, match=r"\[SEG\] is \d+ in the tokenizer, not 304"):
        litelvlm.load(model, device="cpu")
