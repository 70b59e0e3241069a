"""Parts of models by what a config says."""
