"""CLIP's tokenizer in the files that transformers reads, made from the vocabulary that open_clip ships."""

import json
from pathlib import Path

from sb.config import write_whole

START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, context_length: int, pad: str) -> None:
    """``vocab.json``, ``merges.txt``, settings. pad: ``eos`` repeats the end token (SD1), ``zero`` puts id 0 (SD2)."""
    from open_clip.tokenizer import SimpleTokenizer

    words = SimpleTokenizer().encoder
    merges = [" ".join(pair) for pair in SimpleTokenizer().bpe_ranks]
    vocabulary = {word.replace("<start_of_text>", START).replace("<end_of_text>", END): i for word, i in words.items()}
    filler = END if pad == "eos" else next(word for word, i in words.items() if i == 0)
    special = {"bos_token": START, "eos_token": END, "pad_token": filler, "unk_token": END}
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, "do_lower_case": True,
        "errors": "replace", "add_prefix_space": False, **special,
    }
    for name, content in (
        ("vocab.json", json.dumps(vocabulary, ensure_ascii=False)),
        ("merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n"),
        ("tokenizer_config.json", json.dumps(settings, indent=2)),
        ("special_tokens_map.json", json.dumps(special, indent=2)),
    ):
        write_whole(folder / name, content.encode())
