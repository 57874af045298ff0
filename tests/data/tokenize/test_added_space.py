"""Tokenizers that put a space in front: their texts and conversations become what they say."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.inspect.examine import verify
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.tokenize.bulk_encoder import decodes_exactly
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import DataError

TEXTS = ["Hello world", " Hello", "  Hello", "Hello\n world", "\nHello", " ", "é", ""]
STRIPPED = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)]
)


def sentencepiece(change):
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for word in ("▁", *"Helowrd:", "▁H", "▁w", "lo"):
        vocab[word] = len(vocab)
    merges = [("▁", "H"), ("▁", "w"), ("l", "o")]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    change(made)
    made.add_special_tokens([AddedToken("<unk>", special=True)])
    return made


def prepends(made):
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = STRIPPED


def metaspace(scheme):
    def change(made):
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
        made.decoder = STRIPPED
        if scheme == "always":
            made.decoder = decoders.Sequence(
                [decoders.ByteFallback(), decoders.Metaspace("▁", scheme)]
            )

    return change


def byte_level():
    vocab = {"<|endoftext|>": 0}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[letter] = len(vocab)
    made = Tokenizer(models.BPE(vocab, []))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=True)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return made


@pytest.fixture(params=["prepends", "always", "first", "byte_level"])
def path(request, tmp_path):
    made = {
        "prepends": lambda: sentencepiece(prepends),
        "always": lambda: sentencepiece(metaspace("always")),
        "first": lambda: sentencepiece(metaspace("first")),
        "byte_level": byte_level,
    }[request.param]()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_its_ids_are_the_library_s_and_every_text_is_taken(path):
    library, ours = Tokenizer.from_file(str(path)), load_tokenizer(str(path))
    assert ours.adds_space
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids
        decodes_exactly(ids, text, ours)
    with pytest.raises(DataError, match="cannot represent it"):
        decodes_exactly(ours.encode("Hello"), "Help", ours)


def test_in_the_midst_of_a_document_nothing_is_added(path):
    inside = load_tokenizer(str(path)).continuation()
    for text in TEXTS:
        assert inside.decode(inside.encode(text)) == text


def test_texts_and_conversations_are_made_and_verified(path, tmp_path):
    rows = [{"text": text} for text in TEXTS if text.strip()]
    rows.append({"prompt": "Hello", "response": "lo world"})
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for template in (None, "world"):
        inputs = [str(tmp_path / "in.jsonl")]
        options = ConvertOptions(
            inputs, str(tmp_path / f"out{template}"), Arrangement(shuffle=False), str(path),
            chat_template=template, on_error="skip", verify="all",
        )  # fmt: skip
        made = convert(options)
        assert made.skipped == (template is None)
        assert verify(options.prefix, "all")
    source = open_source(options.prefix, "binidx")
    last = source.item(source.item_count - 1).tolist()
    text = load_tokenizer(str(path)).decode(last)
    # No second space in front of the answer, and none in front of its end.
    assert text.removeprefix(" ") == "User: Hello\n\nAssistant: lo world\n\n"


def test_others_are_left_alone(tmp_path):
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(tmp_path / "a.json"))
    ours = load_tokenizer(str(tmp_path / "a.json"))
    assert not ours.adds_space and ours.continuation() is ours
    assert load_tokenizer("bytes").continuation().name == "bytes"
