"""What to learn from: sources -> prepare (hash, decode, cache) -> manifest -> order -> pipeline."""
