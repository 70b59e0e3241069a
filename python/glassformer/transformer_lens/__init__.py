"""TransformerLens' vocabulary over Glassformer: what version 3.9.0 of it understands by its names."""
