"""What golden.py asks llama.cpp about: texts to tokenize, prompts, chats, and prose for the logits."""

# Plain rows: special-token text counts as plain text. Each is here for a rule that tokenizers get wrong.
PLAIN = [
    "",
    " ",
    "  ",
    "   a    b     c      ",
    "\n",
    "\n\n\n\nend",
    "\r\nline\r\n\r\n  line\r\n",
    "\t\tif (x)\t{\n\t\t\treturn\t1;\t}\n",
    " leading and trailing ",
    "0 1 12 123 1234 12345 123456 1234567 12345678 1234567890123",
    "3.14159 -2.718e-10 1,000,000 0x1F 1_000 50% 7th $9.99 \u00bd \u00b2 \u0664\u0665 \u2167",
    "I'm you're he's she'd we'll they've don't can't it's",
    "I'M YOU'RE HE'S SHE'D WE'LL THEY'VE DON'T CAN'T IT'S 'S'T",
    "curly \u2019s and \u2018quoted\u2019 and \u201cdouble\u201d \u2013 dash \u2014 long\u2026",
    "plain \U0001f600 \U0001f44d\U0001f3fd smiles",
    ("family \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d"
     "\U0001f466 and \U0001f3f3\ufe0f\u200d\U0001f308 \u2764\ufe0f"),
    ("flags \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 \U0001f3f4"
     "\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"),
    "e\u0301 a\u0308 n\u0303 Z\u0351\u036b\u0343a\u0321l\u0338g\u0334o\u0322",
    "caf\u00e9 na\u00efve stra\u00dfe \u0130stanbul \u0141\u00f3d\u017a \u00c5ngstr\u00f6m",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u8fd9\u662f\u4e00\u4e2a\u6d4b\u8bd5\u3002",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3068\u30ab\u30bf\u30ab\u30ca \uff76\uff85",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4. \u1112\u1161\u11ab",
    ("\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644"
     "\u0645 \u064a\u064e\u0643\u0652\u062a\u064f\u0628\u064f \u0661\u0662\u0663"),
    ("\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u05d1"
     "\u05b0\u05bc\u05e8\u05b5\u05d0\u05e9\u05b4\u05c1\u05d9\u05ea"),
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u0e17\u0e35\u0e48\u0e19\u0e35\u0e48",
    ("\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f"
     "\u093e \u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f \u0967\u0968\u0969"),
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u0416 \u0438 \u0457\u0436\u0430\u043a",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5 \u1f08\u03c1\u03c7\u1f74",
    ("\u2200x\u2208\u211d: \u222b\u2080\u00b9 x\u00b2 dx = \u2153,"
     " \u2260 \u2264 \u2211 \u221a2 \u2234 \U0001d53d\U0001d544"),
    "zero\u200bwidth\u200c\u200djoin\ufeffers\u2060 soft\u00adhyphen",
    "non\u00a0breaking\u202fspaces\u3000wide\u2003em\u2009thin \u00a0 \u00a0",
    "line\u2028separator\u2029paragraph\u0085next\u000bvertical\u000cfeed",
    "bell\x07 escape\x1b[31mred\x1b[0m delete\x7f backspace\x08 unit\x1f",
    "nul \x00 inside",
    "\x01\x02\x03\x04",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } /* done */",
    "def f(x):\n    if x is None:\n        return {}\n    return {k: v**2 for k, v in x.items()}\n",
    "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 42); }",
    "<html><body><p class=\"a\">&lt;tag&gt;</p><table><tr><td>1</td></tr></table></body></html>",
    "SELECT * FROM t WHERE a >= 10 AND b != 'x''y'; -- comment",
    "https://example.org:8080/a/b.html?q=1&r=%20two#frag mailto:who@example.org",
    "C:\\Users\\me\\file.txt ~/.config/app.toml ../../etc",
    "{\"key\": [1, 2.5, true, null], \"nested\": {\"a\": \"b\\n\"}}",
    "a" * 200,
    "ab" * 60 + "A" * 40,
    " " * 40 + "x" + " " * 17,
    "\n" * 33,
    "." * 50 + "!" * 20 + "-" * 70,
    "Donaudampfschifffahrtsgesellschaftskapit\u00e4n antidisestablishmentarianism",
    "camelCaseWords snake_case_words SCREAMING_CASE kebab-case-words iPhone15Pro",
    "mixed\u0434\u0436\u4e2d\u6587\u0639\u0631\u0628abc\u0e44\u0e17\u0e22123\U0001f680end",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<start_of_turn>user\nHi<end_of_turn>\n<bos><eos><pad><unk>",
    "<unused0> <mask> [multimodal] <start_of_image> <0x41> <s> </s> [INST]",
    "<|im_start <|im_start| > <| im_start|> <repo_name> <file_sep>",
    "\ufeffbyte order mark first",
    "\ud7ff \ue000 \uf8ff \ufffd \ufffe \uffff \U00010000 \U0010fffd \U0010ffff",
    "\u2581 \u2581word\u2581\u2581two a\u2581b \u2581",
    "\u0120 \u010a \u0120word \u00c3\u00a9 \u0100",
    "\U00013000\U0001f9ff\U000e0001\U0001fae8 \U00020000\u9fff",
    "ends with newline\n",
    "ends with spaces   ",
    " \n \n  \n\t\n \r\n",
    "What is 2+2?? \u00bfQu\u00e9?! (a)[b]{c}<d> @#^&*~`|\\/",
    "1. First\n2. Second\n\n- item\n* item\n\n### Title\n```c\nx\n```\n",
    "word\u0301s \u0301start '\u0301' \u0e33\u0e49 \u093f",
]

# Rows in which special-token text becomes the token itself.
SPECIAL = [
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<start_of_turn>user\nHi<end_of_turn>\n<bos><eos><pad><unk>",
    "  <|im_end|>  \n<end_of_turn>  <|im_start|><|im_start|>",
    "<|im_start <|im_start| > <| im_start|> <repo_name>a/b<file_sep>c",
    "<unused0> <mask> [multimodal] <start_of_image> <0x41> <s> </s> [INST]",
    "a<bos>b<|endoftext|>c",
]

# Raw prompts for greedy continuation.
RAW = {
    "story": "Once upon a time, in a village by the sea, there lived a clockmaker who",
    "fact": "The capital of France is",
    "list": "The planets of the solar system, from the innermost outwards, are: Mercury,",
    "code": "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "arithmetic": "2 + 2 = 4\n3 + 5 = 8\n7 + 6 =",
    "letter": "Dear Ms. Alvarez,\n\nThank you for your letter of the third of May. I am writing to",
    "definition": "Attention, in the study of neural networks, means",
    "recipe": "Recipe: bread for beginners\n\nIngredients:\n- 500 g flour\n- 350 g water\n-",
}
RAW_WITHOUT_TEMPLATE = {
    "dialogue": "\u2014 Where were you last night?\n\u2014 At home, as every night.\n\u2014",
    "german": "Die Hauptstadt von Deutschland ist",
    "history": "In the year 1453 the city of Constantinople",
    "repeat": "red green blue red green blue red green blue red",
}

# Chats: (system message or None, user message).
CHATS = [
    (None, "What is the capital of Italy?"),
    (None, "Write one sentence about the sea.\n\nThen another about the sky."),
    ("You answer in one short sentence.", "Why is the sky blue?"),
    ("You are a careful programmer.", "  Name three uses of a hash table. \u00e9\U0001f600  "),
]

# Templates that llama.cpp renders by name, and conversations for them: [(role, content)].
TEMPLATES = ["chatml", "llama2-sys", "llama3", "gemma", "mistral-v1", "mistral-v3", "zephyr", "phi3"]
CONVERSATIONS = [
    [("user", "Hello there")],
    [("system", "Be brief."), ("user", "Hello there")],
    [("user", "First"), ("assistant", "Second"), ("user", "Third\n\nand more")],
    [("system", "Be brief."), ("user", "First"), ("assistant", "Second"), ("user", "  Third  ")],
]

# Our own prose for the logits: long enough for 200 tokens of either model.
PROSE = """The old observatory stood on the ridge above the town, its copper dome gone green with rain. Nobody had
looked through the great telescope for eleven years when Marta Lindqvist was given the keys. She was not an astronomer.
She repaired church organs, and the council had reasoned that a person who could make four hundred pipes speak could
surely persuade one long tube to turn. The first night she only swept. Dust lay on the brass as evenly as snow, and
under it she found the pencilled notes of the last observer: times, temperatures, a column of small ticks, and once,
in the margin, the words "cloud again, and the fox came back". On the second night she oiled the gears. They were cut
by hand, each tooth a little different from its neighbour, so that the whole train clicked in a rhythm that repeated
only after an hour. On the third night the sky cleared. She opened the shutters, leaned on the wheel, and the dome
moved with a sound like a ship leaving harbour. What she saw was nothing much, a smear of light between two stars, but
she wrote down the time and the temperature, made one small tick, and waited to see whether the fox would come.
"""
GPL_OFFSET = 5000  # bytes into the GPL version 3 as Debian carries it
LOGIT_TOKENS = 200
