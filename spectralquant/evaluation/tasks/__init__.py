"""Tasks beside perplexity, one a file: every file's `TASK` can be named in `sq compare --tasks`.

A task is a function `(tokenizer, context, chooser, turn)` that makes one `Trial`: a text of about `context` tokens that
ends with an answer which stands in it far back. `chooser` is a `random.Random`; `turn` counts trials, so that depths are
taken in turn.
"""
