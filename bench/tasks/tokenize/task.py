TITLE = (
    "The token ids of two megabytes of source code and of many scripts, by SmolLM2's tokenizer, on one thread, in "
    "texts of about 4,000 characters."
)
ROUNDS = 5
