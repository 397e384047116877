"""Rows of tables from their lines, or from the JSON of `-j`: one file per noun. Every function raises ValueError saying what it cannot read."""
