"""Numbers as text: what a model of made-up data reads and writes."""

from __future__ import annotations

import pytest

from rwkv_train.data.tokenize.tokenizer import NumbersTokenizer, load_tokenizer
from rwkv_train.errors import DataError


def test_the_name_tells_the_vocabulary():
    tokenizer = load_tokenizer("numbers:128")
    assert isinstance(tokenizer, NumbersTokenizer)
    assert (tokenizer.name, tokenizer.vocab_size) == ("numbers:128", 128)
    for name in ("numbers:", "numbers:0", "numbers:-3", "numbers:1e3"):
        with pytest.raises(DataError, match="neither 'world' nor"):
            load_tokenizer(name)


def test_texts_of_numbers_can_be_joined():
    tokenizer = load_tokenizer("numbers:128")
    assert tokenizer.encode("3 0\n127") == [3, 0, 127]
    assert tokenizer.decode([3, 0, 127]) == " 3 0 127"
    assert tokenizer.encode("3" + tokenizer.decode([0, 127])) == [3, 0, 127]


@pytest.mark.parametrize("word", ["128", "-1", "x", "1.0", "²", "9" * 30])
def test_a_word_that_is_no_token_is_named(word):
    with pytest.raises(DataError, match="expected numbers from 0 to 127"):
        load_tokenizer("numbers:128").encode(f"1 {word}")
