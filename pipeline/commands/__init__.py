"""What the subcommands of `tandem` do; `pipeline.cli` only parses and calls."""
