"""The audit of the teachers before training: what each is worth on held-out judged train queries, and whether to copy it."""
