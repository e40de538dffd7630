"""The subcommands of `stormproof`, one module each."""
