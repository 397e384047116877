"""The plugin that container runtimes execute: a relay to the warm agent."""
