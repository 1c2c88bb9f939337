"""The pocket tokenizer: bytes, the words of Pocket World as single tokens, and clock times as two tokens."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from onlooker.world.lexicon import corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, START, PAD, IMAGE, VIDEO = "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<image>", "<video>"
SPECIAL = (PAD, START, END, IMAGE, VIDEO)
PREFIX = f"{START}system\nYou watch a video.{END}\n{START}user\n"
"""What comes before the first frame."""
MAX_VOCABULARY = 640
_FRAME_WORDS = ("system", "user", "assistant", "You", " watch", " a", " video")
CHAT_TEMPLATE = (
    "{{ '<|im_start|>system\nYou watch a video.<|im_end|>\n' }}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] in ('image', 'video') %}{{ '<' + part['type'] + '>\n' }}"
    "{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def question_text(question: str) -> str:
    """What comes after the frames and the closing newline embedding: the question and the opening of the answer."""
    return f"\n{question}{END}\n{START}assistant\n"


def time_text(time_s: float) -> str:
    """A clock time as the model writes it: `[mm:ss]`, cut to whole seconds, minutes modulo 100."""
    seconds = int(time_s + 1e-6)
    return f"[{seconds // 60 % 100:02d}:{seconds % 60:02d}]"


def build_core(lines: Iterable[str] | None = None) -> Tokenizer:
    """The tokenizer whose words are those of `lines` (Pocket World's corpus when None).

    Byte-level, so that any text round-trips. Words are entries of the vocabulary that are taken whole
    (`ignore_merges`): merges would spend half of the vocabulary on pieces of words. A word gets an entry with a space
    before it, and one without where a line starts with it (answers do).
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare: dict[str, None] = dict.fromkeys(_FRAME_WORDS)
    spaced: dict[str, None] = {}
    for line in corpus() if lines is None else lines:
        # A whole line of words may be a list, whose members are answers one by one.
        for place, word in enumerate(line.replace("[", " ").split()):
            word = word.strip("?.,:]0123456789")
            if not word.isalpha():
                continue
            spaced.setdefault(" " + word)
            if place == 0 and len(word) > 1:
                bare.setdefault(word)
    vocabulary: dict[str, int] = {}
    for token in (*SPECIAL, *alphabet):
        vocabulary.setdefault(token, len(vocabulary))
    for word in (*bare, *sorted(spaced)):
        (piece,) = (piece for piece, _ in split.pre_tokenize_str(word))
        vocabulary.setdefault(piece, len(vocabulary))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer, core.decoder = split, decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    clock = [f"[{minute:02d}:" for minute in range(100)] + [f"{second:02d}]" for second in range(60)]
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in clock])
    size = core.get_vocab_size()
    assert size <= MAX_VOCABULARY, f"{size} tokens are more than {MAX_VOCABULARY}"
    return core


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer as Transformers loads it, with the chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_core(),
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, IMAGE, VIDEO],
        padding_side="left",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


class Encoder:
    """Text to token ids, fast: what the data workers use, who do without Transformers."""

    def __init__(self, core: Tokenizer | None = None) -> None:
        self._core = core or build_core()
        ids = self._core.get_vocab()
        self.minutes = [ids[f"[{minute:02d}:"] for minute in range(100)]
        self.seconds = [ids[f"{second:02d}]"] for second in range(60)]
        self.end, self.pad, self.video = ids[END], ids[PAD], ids[VIDEO]
        self.prefix = self.encode(PREFIX)
        self.opening = self.encode(question_text(""))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it count as such."""
        return self._core.encode(text, add_special_tokens=False).ids

    def question(self, question: str) -> list[int]:
        """Token ids of what comes between the closing newline embedding and the answer."""
        return self.encode(question_text(question))

    def answer(self, answer: str) -> list[int]:
        """Token ids of an answer and its end."""
        return [*self.encode(answer), self.end]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids up to the end token, special tokens left out."""
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        return self._core.decode(ids, skip_special_tokens=True)
