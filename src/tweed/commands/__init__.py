"""One module per subcommand; only `tweed.cli` imports them, lazily."""
